"""`distill traces generate --on ray`: every shard a Ray task, then one merge.

On the cluster of RAY_ADDRESS, or on this machine when that is not set. Each task runs what `--shard I/N` runs, into a
folder of its own beside `out`, which all machines must see at the same path. A task whose machine dies is started
again and goes on from its journal; the same command does as much for a run that was killed as a whole. The teacher's
key must stand in the environment of the machines: it is sent nowhere.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill import artifact, console
from distill.artifact import Artifact
from distill.errors import InputError
from distill.traces.generate import generate
from distill.traces.merge import merge
from distill.traces.settings import GenerateOptions, GenerateSettings

_TRIES = 3  # of a shard whose worker or machine died
_CONNECT_S = 10.0


def generate_on_ray(settings: GenerateSettings, out: Path, shards: int, options: GenerateOptions) -> Artifact:
    """The trace set of `settings`, made in `shards` parts at a time. A budget is divided evenly among them.

    Raises InputError when Ray is not there, for what `generate` and `merge` refuse, and when a shard failed; the others
    are finished first.
    """
    if settings.shard is not None:
        raise InputError("--on ray makes all shards; --shard makes one of them")
    out = out.absolute()
    if (out / artifact.MANIFEST).is_file() and "partial" not in (artifact.recipe_of(out) or {}):
        return generate(settings, out, options)  # finished, or the error that says what it holds
    share = options.model_copy(
        update={
            "max_cost_usd": options.max_cost_usd and options.max_cost_usd / shards,
            "max_total_tokens": options.max_total_tokens and options.max_total_tokens // shards,
        }
    )
    folders = [out.with_name(f"{out.name}.shard-{number}-of-{shards}") for number in range(1, shards + 1)]
    with cluster() as ray:
        task = ray.remote(num_cpus=1, max_retries=_TRIES)(_shard)
        waiting = {}
        for number, folder in enumerate(folders, start=1):
            part = settings.model_copy(update={"shard": (number, shards)}).model_dump_json()
            waiting[task.remote(part, share.model_dump_json(), str(folder), os.getcwd())] = number
        failures = list(_outcomes(ray, waiting, folders))
    if failures:
        raise InputError(f"{len(failures)} of {shards} shards are not finished: {failures[0]}")
    return merge(folders, out)


def _shard(settings: str, options: str, folder: str, directory: str) -> str | None:
    """One shard, in a worker. Returns the line of an error, None when the shard is finished.

    Text goes in and comes out, so that nothing of ours has to be the same class on both sides.
    """
    os.chdir(directory)  # file names in the settings are relative to where the command was given
    try:
        generate(
            GenerateSettings.model_validate_json(settings), Path(folder), GenerateOptions.model_validate_json(options)
        )
    except InputError as error:
        return str(error)
    return None


def _outcomes(ray: Any, waiting: dict[Any, int], folders: list[Path]) -> Iterator[str]:
    """The errors of shards, as they end."""
    with console.progress() as bar:
        shown = bar.add_task("shards", total=len(waiting))
        while waiting:
            (done,), _ = ray.wait(list(waiting))
            folder = folders[waiting.pop(done) - 1]
            try:
                failure = ray.get(done)
            except ray.exceptions.RayError as error:
                failure = f"{folder}: {str(error).strip().splitlines()[-1][:300]}"
            if failure is None and not (folder / artifact.MANIFEST).is_file():
                failure = f"{folder}: not seen from here; --out must be a folder that all machines of the cluster share"
            if failure is not None:
                yield failure
            bar.advance(shown)


def _require_reachable(address: str, named: str) -> None:
    """Ray itself tries for minutes. Raises InputError; an address that is a word, such as `auto`, is Ray's to find."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--on ray: no cluster at {address}, which is {named} ({error})") from None


@contextmanager
def cluster(address: str | None = None) -> Iterator[Any]:
    """Ray, connected to that address or RAY_ADDRESS; without either one of this machine, which ends with the block. What
    was connected before stays so. Raises InputError where there is none."""
    try:
        import ray
    except ImportError:
        raise InputError("--on ray: Ray is not installed; expected `pip install 'distill-stack[ray]'`") from None
    if ray.is_initialized():
        yield ray
        return
    named = "--address" if address else "RAY_ADDRESS"
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        _require_reachable(address, named)
    try:
        if address:
            ray.init(address, log_to_driver=False, logging_level="ERROR")
        else:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else a Ray of ours would report on its own
            ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises plain ones too
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise InputError(f"--on ray: no cluster at {address or 'this machine'} ({reason})") from None
    try:
        yield ray
    finally:
        ray.shutdown()

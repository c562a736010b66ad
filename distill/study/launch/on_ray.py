"""A study's stages as Ray tasks, which wait for each other's results.

Each task (ray_task.py) runs the stage's command in a process of its own. One whose worker or machine dies, or whose process
is killed, is started again and goes on from what is kept; a stage that fails has said why, and is not. Only what depends on
it goes without.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.study.launch.launch import LaunchSettings, devices_of, stage_arguments
from distill.study.launch.ray_task import Board, Task, do_stage
from distill.study.live import Watched
from distill.study.run import failure_file, keep_failure, stop_requests
from distill.study.settings import StudySettings
from distill.study.stages import Stage
from distill.study.storage import PRESET, Storage
from distill.study.workplace import file_name
from distill.traces.ray_shards import cluster
from distill.training.run import Stopped

_RETRIES = 3  # of a stage whose worker, machine or process died
_POLL_S = 0.3
_GRACE_S = 120.0  # for stages to stop in order: a training saves, a server ends


def do_on_ray(
    settings: StudySettings, out: Path, todo: list[Stage], how: LaunchSettings, storage: Storage | None
) -> None:
    """Do these stages on a cluster, or on a Ray that lives as long as this. What fails is kept as a stage keeps it.

    Raises InputError when there is no Ray, or none of its machines has what a stage takes; Stopped on Ctrl-C or SIGTERM,
    when every stage has ended.
    """
    with cluster(how.address) as ray, stop_requests(), Watched(todo) as watched:
        cpus, needs = _needs(ray, settings, todo, how)
        board = ray.remote(num_cpus=0, max_restarts=-1)(Board).remote()
        refs: dict[str, Any] = {}
        for one in todo:
            remote = ray.remote(max_retries=_RETRIES, retry_exceptions=True, **needs[one.name])(do_stage)
            after = [name for name in one.after if name in refs]
            task = Task(
                stage=one.name,
                arguments=stage_arguments(out, one.name, cpus, how),
                directory=os.getcwd(),
                log=out / "logs" / f"{file_name(one.name)}.log",
                failure=failure_file(out, one.name),
                shared=out / PRESET if how.storage is None else None,
            )
            refs[one.name] = remote.remote(board, task, after, *(refs[name] for name in after))
        try:
            _watch(ray, board, todo, refs, out, storage, watched)
        except BaseException as error:
            for ref in refs.values():
                ray.cancel(ref)
            ray.wait(list(refs.values()), num_returns=len(refs), timeout=_GRACE_S)
            if isinstance(error, KeyboardInterrupt):  # what Ray makes of a signal that comes while it waits
                raise Stopped("stopped; run the same command again", signal.SIGINT) from None
            raise


def _watch(
    ray: Any, board: Any, todo: list[Stage], refs: dict[str, Any], out: Path, storage: Storage | None, watched: Watched
) -> None:
    """Until every stage has ended."""
    failures: set[str] = set()
    begun: set[str] = set()
    waiting = {one.name: one for one in todo}
    while waiting:
        over, _ = ray.wait([refs[name] for name in waiting], num_returns=len(waiting), timeout=0)
        ended = [name for name in waiting if refs[name] in over]
        for name in [*_begun(ray, board), *ended]:
            if name not in begun:
                begun.add(name)
                watched.tell(name, "running", "")
        for name in ended:
            one = waiting.pop(name)
            reason = _reason(ray, refs[name])
            broken = [other for other in one.after if other in failures]
            if reason is None:
                watched.tell(name, "done", "")
                continue
            failures.add(name)
            reason = f"{broken[0]} failed" if broken else reason
            watched.tell(name, "failed", reason)
            if not broken:
                keep_failure(out, name, reason)
                if storage is not None:
                    storage.tell(failure_file(out, name))
        if not ended:
            time.sleep(_POLL_S)


def _begun(ray: Any, board: Any) -> list[str]:
    try:
        return ray.get(board.begun.remote(), timeout=_POLL_S)
    except ray.exceptions.RayError:  # killed, and started again without what it knew; or busy
        return []


def _reason(ray: Any, ref: Any) -> str | None:
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        return str(error.cause or error).strip().splitlines()[-1][:300]
    except ray.exceptions.RayError as error:
        return f"its worker died {_RETRIES + 1} times ({str(error).strip().splitlines()[0][:300]})"


def _needs(
    ray: Any, settings: StudySettings, todo: list[Stage], how: LaunchSettings
) -> tuple[int, dict[str, dict[str, int]]]:
    """Cores of a device, and what each stage takes of one machine. Raises InputError where a stage would wait for ever: a
    cluster that grows by itself must have one machine of each kind up."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = [machine for machine in machines if machine.get("GPU")]
    cpus = how.cpus or max(1, int(min((machine.get("CPU", 0) // machine["GPU"] for machine in gpus), default=1)))
    needs = {}
    for one in todo:
        devices = devices_of(settings, one)
        takes = {"CPU": cpus * devices, "GPU": devices} if gpus else {"CPU": cpus * max(1, devices)}
        if not any(all(machine.get(kind, 0) >= count for kind, count in takes.items()) for machine in machines):
            wanted = " and ".join(f"{count} {kind}s" for kind, count in takes.items())
            raise InputError(f"--on ray: {one.name} takes {wanted}, and no machine of the cluster has as many")
        needs[one.name] = {"num_cpus": takes["CPU"], "num_gpus": takes.get("GPU", 0)}
    return cpus, needs

"""`distill study launch`: every stage of a study by a command of its own, wherever Ray or Slurm puts it.

The command is `distill study stage`. What it makes lies in the study's folder, which all machines share, or travels by a
storage (storage.py); either way a stage that is done is not done again, by whatever machine.
"""

import re
import shlex
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from distill import console
from distill.settings import Settings
from distill.study.run import collect, is_made, write_beginning
from distill.study.settings import StudySettings
from distill.study.stages import Stage, stages
from distill.study.storage import PRESET, Storage
from distill.study.workplace import Workplace
from distill.traces.teachers.settings import VllmSettings

KINDS = ("traces", "ask", "train", "serve", "collect")
SBATCH = re.compile(rf"(?:((?:{'|'.join(KINDS)})(?:-\d+)?):\s*)?(-.+)")  # whom a line is for, and the line
_PARALLEL = re.compile(r"--(?:tensor|pipeline|data)[-_]parallel[-_]size[= ](\d+)")


class LaunchSettings(Settings):
    """Where the stages run. `cpus`: cores of a stage, of one on several devices for each; `sbatch`: further options of the
    scripts, where the line begins with it only of one kind of stage, or of that on so many devices: `train: --time=9:00:00`,
    `train-8: --time=24:00:00`."""

    on: Literal["ray", "slurm"]
    address: str | None = None
    cpus: int | None = Field(None, ge=1)
    gpus: bool = True
    sbatch: list[str] = Field([])
    dry_run: bool = False
    storage: str | None = None

    @model_validator(mode="after")
    def _of_one_kind(self) -> "LaunchSettings":
        of = {"ray": ("address",), "slurm": ("gpus", "sbatch", "dry_run")}
        for kind, names in of.items():
            for name in names:
                if self.on != kind and getattr(self, name) != type(self).model_fields[name].get_default():
                    raise ValueError(f"{name}: is for --on {kind}")
        for line in self.sbatch:
            if SBATCH.fullmatch(line) is None:
                raise ValueError(
                    f"sbatch: expected '--option' or '{{{'|'.join(KINDS)}}}: --option', as in 'train: --time=9:00:00' or "
                    f"'train-8: --time=9:00:00', found {line!r}"
                )
        return self


def launch(settings: StudySettings, out: Path, how: LaunchSettings, *, preset: Path) -> Path | None:
    """Do what is missing of a study; its folder when that has ended, None where others go on with it.

    Raises InputError when it cannot start, Stopped on Ctrl-C or SIGTERM. `preset`: the file that the settings are of.
    """
    command = _command(preset, out, how)
    out = out.absolute()
    storage = Storage(how.storage, out) if how.storage is not None else None
    if storage is not None:
        storage.begin()
    place = Workplace(settings, out, 1, looks_only=True, storage=storage)
    write_beginning(settings, out, command)
    if storage is not None:
        storage.begun()
    todo = [one for one in stages(settings) if not is_made(one, place)]
    if todo and how.on == "slurm":
        from distill.study.launch.on_slurm import submit

        submit(settings, out, todo, how)
        return None
    if todo:
        from distill.study.launch.on_ray import do_on_ray

        do_on_ray(settings, out, todo, how, storage)
    else:
        console.note("every stage is done")
    return collect(settings, out, storage)


def _command(preset: Path, out: Path, how: LaunchSettings) -> str:
    """How to launch it again."""
    command = ["distill", "study", "launch", str(preset), "--out", str(out), "--on", how.on]
    for name in ("storage", "cpus", "address"):
        command += [f"--{name}", str(getattr(how, name))] if getattr(how, name) is not None else []
    command += [part for line in how.sbatch for part in ("--sbatch", line)]
    return shlex.join([*command, *(["--no-gpus"] if not how.gpus else [])])


def stage_arguments(out: Path, name: str, threads: int, how: LaunchSettings) -> list[str]:
    """What follows `distill` in the command of a stage."""
    arguments = ["study", "stage", str(out / PRESET), name, "--out", str(out), "--threads", str(threads)]
    return arguments + (["--storage", how.storage] if how.storage is not None else [])


def devices_of(settings: StudySettings, one: Stage) -> int:
    """How many GPUs a stage takes where there are any: that of traces does where it starts the teacher itself."""
    row = next((row for row in settings.trace_rows if one.name == f"traces {row.name}"), None)
    if row is None or row.tasks is None or not isinstance(row.teacher, VllmSettings):
        return one.devices
    servers = [row.teacher.server, row.teacher.ift_server or row.teacher.server]
    return max(_gpus(" ".join(server.arguments)) for server in servers)


def _gpus(arguments: str) -> int:
    """Of a vLLM server."""
    count = 1
    for size in _PARALLEL.findall(arguments):
        count *= int(size)
    return count

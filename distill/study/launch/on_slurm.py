"""A study's stages as arrays of Slurm jobs.

out/slurm/
  traces.sh, train-1.sh, serve-1.sh, ...   one array for each kind of stage and number of devices
  collect.sh                               the results of what was finished, after all of them
  submit.sh                                submits them; each waits for what it needs and for nothing else
  jobs                                     what was submitted: name and number of each
  logs/

A training waits for its pairs, answers wait for the training of the same index. A job whose need failed is taken out of
the queue (kill-on-invalid-dep) and the others go on.
"""

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from distill import artifact, console
from distill.errors import InputError
from distill.process import distill_command
from distill.study.launch.launch import LaunchSettings, devices_of, stage_arguments
from distill.study.settings import StudySettings
from distill.study.stages import Stage

FOLDER, SUBMIT, JOBS = "slurm", "submit.sh", "jobs"
KINDS = ("traces", "ask", "train", "serve", "collect")
_CORES_OF_A_GPU = 8  # what a data-centre node has at least
_ARRAY_ID = "$SLURM_ARRAY_TASK_ID"
_OF_ONE_KIND = re.compile(rf"({'|'.join(KINDS)}):\s*(.+)")


@dataclass
class Array:
    """Stages that run by one script, each with its index. `waits` is how its jobs wait, in the words of `sbatch
    --dependency`, with the number of job `on` for {}."""

    name: str
    devices: int
    on: str | None = None
    waits: str = ""
    stages: dict[int, str] = field(default_factory=dict)


def submit(settings: StudySettings, out: Path, todo: list[Stage], how: LaunchSettings) -> None:
    """Write the scripts and submit them, or say how to. Raises InputError when Slurm is not there, refuses them, or still
    has jobs of an earlier launch; then nothing of this one stays in the queue."""
    folder = out / FOLDER
    if not how.dry_run:
        _require_slurm(folder / JOBS)
    _write(settings, out, todo, how)
    console.note(f"{len(todo)} stages in {folder}; submitted by {folder / SUBMIT}")
    if how.dry_run:
        return
    run = subprocess.run(["bash", str(folder / SUBMIT)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if run.returncode != 0:
        lines = run.stderr.strip().splitlines() or [f"exit code {run.returncode}"]
        raise InputError(f"--on slurm: {lines[0]} ({folder / SUBMIT}); nothing was submitted")
    artifact.write_atomic(folder / JOBS, run.stdout)
    for line in run.stdout.splitlines():
        console.note(f"submitted {line}")
    console.note(f"see `squeue`; results so far: distill study report {out} --collect")


def arrays(settings: StudySettings, todo: list[Stage]) -> list[Array]:
    """The stages as arrays, each after those that it waits for."""
    made: dict[str, Array] = {}
    where: dict[str, tuple[Array, int]] = {}

    def put(one: Stage, name: str, devices: int, index: int | None = None, **waiting: str) -> None:
        array = made.setdefault(name, Array(name, devices, **waiting))
        index = len(array.stages) if index is None else index
        array.stages[index] = one.name
        where[one.name] = array, index

    for kind in KINDS:
        for one in (one for one in todo if one.name.partition(" ")[0] == kind):
            devices = devices_of(settings, one)
            needed = next((where[name] for name in one.after if name in where), None)
            name = f"{kind}-{devices}" if devices else kind
            if needed is None:
                put(one, name, devices)
            elif kind == "train":  # one array for each set of pairs that is still to be made
                traces, index = needed
                put(one, f"{name}-after-{traces.name}-{index}", devices, on=traces.name, waits=f"afterok:{{}}_{index}")
            else:  # as many arrays for each array of trainings as a student is asked in ways
                training, index = needed
                ways = [f"{training.name.replace('train', kind, 1)}-way-{number}" for number in range(len(todo))]
                way = next(way for way in ways if way not in made or index not in made[way].stages)
                put(one, way, devices, index, on=training.name, waits="aftercorr:{}")
    return list(made.values())


def _write(settings: StudySettings, out: Path, todo: list[Stage], how: LaunchSettings) -> None:
    folder = out / FOLDER
    for old in folder.glob("*.sh"):
        old.unlink()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    found = arrays(settings, todo)
    for array in found:
        artifact.write_atomic(folder / f"{array.name}.sh", _script(array, out, how))
    artifact.write_atomic(folder / "collect.sh", _collect_script(out, how))
    artifact.write_atomic(folder / SUBMIT, _submit_script(found))


def _script(array: Array, out: Path, how: LaunchSettings) -> str:
    cpus = how.cpus or (_CORES_OF_A_GPU if how.gpus and array.devices else 1)
    command = _command(stage_arguments(out, _ARRAY_ID, cpus, how)).replace(
        shlex.quote(_ARRAY_ID), f'"${{stages[{_ARRAY_ID}]}}"'
    )
    options = [f"--array={','.join(map(str, sorted(array.stages)))}", f"--cpus-per-task={cpus * max(1, array.devices)}"]
    options += [f"--gres=gpu:{array.devices}"] if how.gpus and array.devices else []
    options += ["--requeue", "--signal=B:TERM@120", "--kill-on-invalid-dep=yes"]
    names = "".join(f"  [{index}]={shlex.quote(name)}\n" for index, name in sorted(array.stages.items()))
    head = _head(array.name, "%A-%a", options, out, how)
    return f"{head}\nstages=(\n{names})\ncd {shlex.quote(os.getcwd())}\nexec {command}\n"


def _collect_script(out: Path, how: LaunchSettings) -> str:
    arguments = ["study", "report", str(out), "--collect"]
    arguments += ["--storage", how.storage] if how.storage is not None else []
    head = _head("collect", "%j", [f"--cpus-per-task={how.cpus or 1}"], out, how)
    return f"{head}\ncd {shlex.quote(os.getcwd())}\nexec {_command(arguments)}\n"


def _head(name: str, log: str, options: list[str], out: Path, how: LaunchSettings) -> str:
    """Until 120 s before its time is over, when Slurm sends the signal that a stage stops in order on, all of a job's time is
    its own. Of an option that is given twice Slurm takes the last, which is the user's."""
    place = str(out / FOLDER / "logs" / name).replace("%", "%%")
    lines = [f"--job-name=distill-{name}", "--nodes=1", "--ntasks=1", "--open-mode=append", *options]
    if how.storage is None:  # else the folder may not be on the machines, and logs go where Slurm puts them
        lines.append(f'--output="{place}-{log}.log"')
    for line in how.sbatch:
        of_kind = _OF_ONE_KIND.fullmatch(line)
        if of_kind is None or of_kind[1] == name.partition("-")[0]:
            lines.append(line if of_kind is None else of_kind[2])
    return "\n".join(["#!/bin/bash", *(f"#SBATCH {line}" for line in lines)]) + "\n\nexport PYTHONSAFEPATH=1\n"


def _command(arguments: list[str]) -> str:
    return shlex.join(distill_command(*arguments))


def _submit_script(found: list[Array]) -> str:
    """Prints name and number of every job; what was submitted before a failure is taken back."""
    lines = []
    for array in found:
        variable = _variable(array.name)
        waits = array.waits.format(f"${{{_variable(array.on)}}}") if array.on else ""
        dependency = f' --dependency="{waits}"' if waits else ""
        lines.append(f"submit {array.name}{dependency}; {variable}=$job")
    numbers = "".join(f":${{{_variable(array.name)}}}" for array in found)
    lines.append(f'submit collect --dependency="afterany{numbers}"')
    return _SUBMIT + "\n".join(lines) + "\n"


_SUBMIT = """#!/bin/bash
set -eEuo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
jobs=()
trap 'if ((${#jobs[@]})); then scancel "${jobs[@]}"; fi' ERR

submit() {  # NAME [option...]
  job=$(sbatch --parsable "${@:2}" "$here/$1.sh")
  job=${job%%;*}
  jobs+=("$job")
  echo "$1 $job"
}

"""


def _variable(name: str) -> str:
    return name.replace("-", "_")


def _require_slurm(jobs: Path) -> None:
    if shutil.which("sbatch") is None:
        raise InputError("--on slurm: there is no sbatch here; expected a machine that submits, or --dry-run")
    numbers = [line.split()[-1] for line in jobs.read_text().splitlines()] if jobs.is_file() else []
    if numbers and shutil.which("squeue") is not None:
        queue = ["squeue", "--noheader", "--jobs", ",".join(numbers)]
        listed = subprocess.run(queue, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if listed.returncode == 0 and listed.stdout.strip():
            raise InputError(
                f"--on slurm: jobs of an earlier launch are still queued; wait, or scancel {' '.join(numbers)}"
            )

"""A study's stages as arrays of Slurm jobs.

out/slurm/
  traces.sh, train-1.sh, serve-1.sh, ...   one array for each kind of stage and number of devices
  collect.sh                               the results of what was finished, after all of them
  submit.sh                                submits them; each waits for what it needs and for nothing else
  jobs                                     what was submitted: name and number of each
  logs/

A training waits for its pairs and for the one that it goes on from, answers wait for the training of the same index. A job whose need failed is taken out of
the queue (kill-on-invalid-dep) and the others go on.
"""

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from distill import artifact, console
from distill.errors import InputError
from distill.process import distill_command
from distill.study.launch.launch import KINDS, SBATCH, LaunchSettings, devices_of, stage_arguments
from distill.study.settings import StudySettings
from distill.study.stages import Stage

FOLDER, SUBMIT, JOBS = "slurm", "submit.sh", "jobs"
_CORES_OF_A_GPU = 8  # what a data-centre node has at least
_ARRAY_ID = "$SLURM_ARRAY_TASK_ID"


@dataclass
class Array:
    """Stages that run by one script, each with its index. All its jobs wait `after` these jobs, by array and index, or each
    for that of the same index of the array `beside`."""

    name: str
    devices: int
    after: tuple[tuple[str, int], ...] = ()
    beside: str | None = None
    stages: dict[int, str] = field(default_factory=dict)

    @property
    def dependency(self) -> str:
        """For `sbatch --dependency`, with a variable of submit.sh for the number of each array; empty where there is none."""
        if self.beside is not None:
            return f"aftercorr:${{{_variable(self.beside)}}}"
        jobs = [f"${{{_variable(name)}}}_{index}" for name, index in self.after]
        return ":".join(["afterok", *jobs]) if jobs else ""


def submit(settings: StudySettings, out: Path, todo: list[Stage], how: LaunchSettings) -> None:
    """Write the scripts and submit them, or say how to. Raises InputError when Slurm is not there, refuses them, or still
    has jobs of an earlier launch; then nothing of this one stays in the queue."""
    folder = out / FOLDER
    if any(character in str(folder) for character in "\n\\"):
        raise InputError(
            f"--on slurm: --out {str(out)!r}: expected a path that Slurm can read, without \\ and line ends"
        )
    if not how.dry_run:
        _require_slurm(folder / JOBS)
        (folder / JOBS).unlink(missing_ok=True)
    _write(settings, out, todo, how)
    console.note(f"{len(todo)} stages in {folder}; submitted by {folder / SUBMIT}")
    if how.dry_run:
        return
    run = subprocess.run(["bash", str(folder / SUBMIT)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if run.returncode != 0:
        lines = run.stderr.strip().splitlines() or [f"exit code {run.returncode}"]
        said = next((line for line in lines if "error" in line), lines[0])  # a site may have more to say
        raise InputError(f"--on slurm: {said} ({folder / SUBMIT}); nothing was submitted")
    for line in run.stdout.splitlines():
        console.note(f"submitted {line}")
    console.note(f"see `squeue`; results so far: distill study report {out} --collect")


def arrays(settings: StudySettings, todo: list[Stage]) -> list[Array]:
    """The stages, in an order in which each comes after what it waits for, as arrays of which the same is true."""
    made: dict[str, Array] = {}
    where: dict[str, tuple[str, int]] = {}

    def put(one: Stage, array: Array, index: int | None = None) -> None:
        array = made.setdefault(array.name, array)
        where[one.name] = array.name, len(array.stages) if index is None else index
        array.stages[where[one.name][1]] = one.name

    for kind in KINDS:
        for one in (one for one in todo if one.name.partition(" ")[0] == kind):
            devices = devices_of(settings, one)
            needed = tuple(where[name] for name in one.after if name in where)
            name = f"{kind}-{devices}" if devices else kind
            if kind == "serve" and needed:  # as many arrays for each array of trainings as a student is asked in ways
                ((training, index),) = needed
                ways = [f"{training.replace('train', kind, 1)}-way-{number}" for number in range(len(todo))]
                way = next(way for way in ways if way not in made or index not in made[way].stages)
                put(one, Array(way, devices, beside=training), index)
            else:  # of trainings one array for each set of what is still to be made: pairs, and whom they go on from
                after = "-and-".join(f"{array}-{index}" for array, index in needed)
                put(one, Array(f"{name}-after-{after}" if after else name, devices, after=needed))
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
    place = str(out / FOLDER / "logs" / name).replace("%", "%%").replace('"', '\\"')
    lines = [f"--job-name=distill-{name}", "--nodes=1", "--ntasks=1", "--open-mode=append", *options]
    if how.storage is None:  # else the folder may not be on the machines, and logs go where Slurm puts them
        lines.append(f'--output="{place}-{log}.log"')
    for line in how.sbatch:
        whom, option = SBATCH.fullmatch(line).groups()
        if whom is None or f"{name}-".startswith(f"{whom}-"):
            lines.append(option)
    return "\n".join(["#!/bin/bash", *(f"#SBATCH {line}" for line in lines)]) + "\n\nexport PYTHONSAFEPATH=1\n"


def _command(arguments: list[str]) -> str:
    return shlex.join(distill_command(*arguments))


def _submit_script(found: list[Array]) -> str:
    """Prints name and number of every job; what was submitted before a failure is taken back."""
    lines = []
    for array in found:
        dependency = f' --dependency="{array.dependency}"' if array.dependency else ""
        lines.append(f"submit {array.name}{dependency}; {_variable(array.name)}=$job")
    numbers = "".join(f":${{{_variable(array.name)}}}" for array in found)
    lines.append(f'submit collect --dependency="afterany{numbers}"')
    return _SUBMIT + "\n".join(lines) + "\n"


_SUBMIT = """#!/bin/bash
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
jobs=()

end() {
  local status=$?
  if ((status && ${#jobs[@]})) && scancel "${jobs[@]}"; then rm "$here/jobs"; fi
  exit $status
}
trap end EXIT

submit() {  # NAME [option...]
  job=$(sbatch --parsable "${@:2}" "$here/$1.sh")
  job=${job%%;*}
  jobs+=("$job")
  echo "$1 $job" | tee -a "$here/jobs"
}

"""


def _variable(name: str) -> str:
    return name.replace("-", "_")


def _require_slurm(jobs: Path) -> None:
    if shutil.which("sbatch") is None:
        raise InputError("--on slurm: there is no sbatch here; expected a machine that submits, or --dry-run")
    numbers = [line.split()[-1] for line in jobs.read_text().splitlines()] if jobs.is_file() else []
    if numbers and shutil.which("squeue") is not None:
        queue = ["squeue", "--noheader", "--format=%F", "--jobs", ",".join(numbers)]
        listed = subprocess.run(queue, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        queued = sorted(set(listed.stdout.split()), key=int)
        if listed.returncode == 0 and queued:
            raise InputError(
                f"--on slurm: jobs of an earlier launch are still queued; wait, or scancel {' '.join(queued)}"
            )

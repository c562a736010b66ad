"""The flags of `distill traces generate` as the settings they mean, over those of a YAML file."""

import shlex
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.tasks.benchmark import BENCHMARKS
from distill.tasks.questions import TASK_NAME
from distill.tasks.registry import TASKS
from distill.traces.settings import GenerateOptions

OWN = "own"  # the task of a --data without a name
_ALIKE = ("tasks", "split", "seed", "samples", "gold", "shard")  # flags that are called as their settings
_LIMITS = {"max_cost": "max_cost_usd", "max_total_tokens": "max_total_tokens", "partial": "partial"}
_OF_DATA = {"prompt": "prompt", "answer": "answer", "answer_format": "answer_format", "checker": "checker"}
_OF_DATA |= {"system": "system", "skip_bad": "skip_bad"}
_OF_TEACHER = (
    *("model", "revision", "thinking", "temperature", "top_p", "max_tokens", "top_k", "tokenizer", "concurrency"),
    *("api_key_env", "ift_model", "vllm_arguments", "usd_per_million_input", "usd_per_million_output"),
)


def from_flags(written: dict[str, Any], given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(values of GenerateSettings, values of GenerateOptions), not yet validated.

    `written` is what a file says, `given` are the flags that were. Raises InputError for a flag that needs another.
    """
    limits = {name: written[name] for name in GenerateOptions.model_fields if name in written}
    values = {name: value for name, value in written.items() if name not in limits}
    limits |= {field: given[flag] for flag, field in _LIMITS.items() if flag in given}
    values |= {name: given[name] for name in _ALIKE if name in given}
    about = {field: given[flag] for flag, field in _OF_DATA.items() if flag in given}
    files = _files(given.get("data", []))
    mine = {name: {"path": path} | about for name, path in files.items() if not _is_known(name)}
    if (about and not mine) or ("count" in given and not files):
        flag = next(flag for flag in (*_OF_DATA, "count") if flag in given)
        why = f"has only {', '.join(files)}, whose fields are known" if files else "is not given"
        raise InputError(f"--{flag.replace('_', '-')} is about the questions of --data, which {why}")
    if files:
        # The tasks of the file go with its data.
        tasks = dict(given.get("tasks", {}) if "data" in written else values.get("tasks", {}))
        for name, path in files.items():
            count = tasks.pop(name, None)
            if count is not None and "count" in given:
                raise InputError(f"--count and --tasks {name}={count}: two ways to say how many; give one")
            tasks[name if name in mine else f"{name}:{path}"] = given.get("count", count)
        values |= {"tasks": tasks, "data": mine}
    values["teacher"] = _teacher(given.get("teacher", values.get("teacher", "solver")), given)
    return values, limits


def _files(data: list[str]) -> dict[str, str]:
    """Paths by the names of the tasks they make, from `PATH` and `NAME=PATH`; a file that is there is a path."""
    files: dict[str, str] = {}
    for text in data:
        name, equals, path = text.partition("=")
        if not (equals and path and TASK_NAME.fullmatch(name)) or Path(text).exists():
            name, path = OWN, text
        if name in files:
            raise InputError(f"--data {text}: {name} is named twice; expected NAME=PATH with a name of its own")
        files[name] = path
    return files


def _is_known(name: str) -> bool:
    """Whether the rows are those of a task with a format of its own, as `--tasks NAME:PATH` says it too."""
    return name in (*TASKS, *BENCHMARKS) or name.endswith((".yaml", ".yml"))


def _teacher(who: Any, given: dict[str, Any]) -> Any:
    """A name, a URL or a mapping, with what the flags say about it."""
    about = {flag: given[flag] for flag in _OF_TEACHER if flag in given}
    if isinstance(who, str) and who.startswith("vllm:"):
        who = {"vllm": who.removeprefix("vllm:")}
    if who == "solver" or not isinstance(who, str | dict):
        if about:
            flag = next(iter(about)).replace("_", "-")
            raise InputError(f"--{flag} is about a teacher that is a model, found {who!r}; give --teacher")
        return who
    if isinstance(who, str):
        if not who.startswith(("http://", "https://")):
            raise InputError(f"--teacher: expected solver, the URL of a server or vllm:MODEL, found {who!r}")
        who = {"url": who}
    elif "vllm" in who and "ift_model" in about:
        about["ift_vllm"] = about.pop("ift_model")
    if "vllm_arguments" in about:
        if "vllm" not in who:
            raise InputError("--vllm-arguments is for --teacher vllm:MODEL; a server that is there has its own")
        try:
            arguments = shlex.split(about.pop("vllm_arguments"))
        except ValueError as error:
            raise InputError(f"--vllm-arguments: not as a shell would read it ({error})") from None
        server = who.get("server", {})
        about["server"] = server | {"arguments": arguments} if isinstance(server, dict) else server
    who |= about
    if "url" in who and "model" not in who:
        raise InputError(f"--teacher {who['url']}: --model says which of the server's models is asked")
    return who

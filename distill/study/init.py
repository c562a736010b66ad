"""`distill study init`: a study of questions of your own, as a YAML file with comments that a person goes on editing.

The file is read as every stage will read it: its questions are counted, those that are asked are told from those that are
trained on, and the checker that fits the gold answers is chosen and named with the reason.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distill.artifact import read_json, require_file_place, write_atomic
from distill.errors import InputError
from distill.settings import SettingsLoader, validate
from distill.study.settings import StudySettings
from distill.tasks.benchmark import BENCHMARKS
from distill.tasks.checkers import QUICK, is_mathematics, label_set
from distill.tasks.problem import AnswerFormat, Problem, Split
from distill.tasks.questions import OwnTask, QuestionFile
from distill.tasks.registry import TASKS
from distill.traces.flags import from_flags
from distill.training.sizes import SIZES, check_student, default_learning_rate

LEAST_ASKED, LEAST_TRAINED = 20, 100  # questions: with fewer every answer is *cannot tell*
MOST_ASKED = 1000  # more would hardly narrow an interval, and cost as much again
MOST_TOKENS = 4096  # of an answer
MOST_LABELS = 50
LONG_ANSWER = 30  # words: of texts so long hardly two are the same

_NUMBER = re.compile(r"[-+]?[$€£¥]?\s?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]+)?\s?%?")
_LETTER = re.compile(r"\(?[A-Ja-j][).]?")
_SEPARATOR = re.compile(r"[,;|\n]")


@dataclass(frozen=True)
class Checker:
    """How answers are graded, and the reason in words."""

    name: str
    format: AnswerFormat
    metrics: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Made:
    """A preset that was written, and what it is about."""

    path: Path
    settings: StudySettings
    summary: dict[str, Any]


def init_study(
    data: str,
    out: Path,
    *,
    prompt: str,
    answer: str,
    teacher: str,
    students: list[str],
    model: str | None = None,
    checker: str | None = None,
    answer_format: str | None = None,
    metrics: list[str] | None = None,
    skip_bad: bool = False,
    margin: float = 2.0,
    seeds: int = 3,
    force: bool = False,
) -> Made:
    """Write a study of the questions in `data` (a file, a folder saved by `datasets`, or a Hub id) to the YAML file `out`.

    `prompt` and `answer` are fields of its rows; with `skip_bad` those that cannot be read are left out. Raises InputError, and writes nothing, for what cannot be studied.
    """
    if out.exists() and not force:
        raise InputError(f"{out}: is there already; --force writes over it, --out elsewhere")
    require_file_place(out)
    if seeds < 1:
        raise InputError(f"--seeds: expected at least 1, found {seeds}")
    rows = _student_rows(students, seeds)
    asked_of = _teacher(teacher, model)
    read = validate(QuestionFile, {"path": data, "prompt": prompt, "answer": answer, "skip_bad": skip_bad}, source=data)
    task = OwnTask(_task_name(data), read)
    graded_by = _chosen(task, checker, answer_format, metrics)
    about = {"checker": graded_by.name, "answer_format": graded_by.format, "metrics": list(graded_by.metrics) or None}
    file = validate(QuestionFile, read.model_dump(exclude_none=True) | about, source=data)
    task = OwnTask(task.name, file)  # now every gold answer is read as its checker reads it
    split = {name: len(task.problems(name, None, 0)) for name in ("train", "test")}
    _require_enough(data, task, split)
    text = _text(task, file, graded_by, split, asked_of, rows, margin)
    settings = validate(StudySettings, yaml.load(text, SettingsLoader), source=str(out))
    write_atomic(out, text)
    summary = {
        "file": str(out),
        "questions": task.distinct_prompts,
        "trained on": split["train"],
        "asked": min(split["test"], MOST_ASKED),
        "checker": f"{graded_by.name}: {graded_by.why}",
        "students": ", ".join(row["student"] for row in rows),
        "verdict read in": rows[-1]["name"],
    }
    for reason, what in (("repeated", "rows that repeat a question"), ("malformed", "rows that cannot be read")):
        if count := sum(row.reason == reason for row in task.bad_rows):
            summary[what] = count
    return Made(out, settings, summary)


# What was given, as it is meant.


def _student_rows(students: list[str], seeds: int) -> list[dict[str, Any]]:
    if not students:
        raise InputError("--students: found none; expected folders, Hub ids (owner/name) or sizes, with commas between")
    rows: list[dict[str, Any]] = []
    for student in students:
        check_student(student)
        name = re.sub(r"[^a-z0-9._]+", "_", student.rstrip("/").rpartition("/")[2].lower()).strip("._") or "student"
        if name in (row["name"] for row in rows):
            raise InputError(f"--students {student}: another student is called {name} too; give each of them once")
        rate = default_learning_rate(student)
        rows.append({"name": name, "student": student, "learning_rate": rate, "seeds": list(range(seeds))})
    for row in rows:
        if row["student"] not in SIZES:  # some tokenizers have no think tags of their own; from-scratch ones have
            row["training"] = {"think_tags": ["<think>", "</think>"]}
    return rows


def _teacher(teacher: str, model: str | None) -> dict[str, Any]:
    if teacher == "solver":
        raise InputError(
            "--teacher solver: answers the embedded tasks only; expected a server's URL or vllm:MODEL for questions of your own"
        )
    given = {"teacher": teacher} | ({} if model is None else {"model": model})
    values, _ = from_flags({}, given)
    if "vllm" in values["teacher"] and model is not None:
        raise InputError(f"--model is about a server's URL, found --teacher {teacher}, which names its model")
    return values["teacher"]


def _task_name(data: str) -> str:
    """The file's name, where no task has it."""
    last = data.rstrip("/").rpartition("/")[2].partition(":")[0]
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", last.removesuffix(Path(last).suffix) or last).strip("._-")
    return name if name and name not in (*TASKS, *BENCHMARKS) else f"own_{name}".rstrip("_")


def _require_enough(data: str, task: OwnTask, split: dict[Split, int]) -> None:
    for name, least, what in (("test", LEAST_ASKED, "held out to be asked"), ("train", LEAST_TRAINED, "trained on")):
        if split[name] < least:
            raise InputError(
                f"{data}: {task.distinct_prompts} questions, of which a hash leaves {split[name]} to be {what}; expected "
                f"at least {least} (of 300 questions about 30 are asked, and 240 trained on)"
            )


# How answers are graded.


def _chosen(task: OwnTask, name: str | None, answer_format: str | None, metrics: list[str] | None) -> Checker:
    found = fitting_checker(task.problems("all", None, 0)) if name is None else _given(name)
    kept = {"format": answer_format or found.format, "metrics": found.metrics if metrics is None else tuple(metrics)}
    return Checker(found.name, why=found.why, **kept)


def _given(name: str) -> Checker:
    formats: dict[str, AnswerFormat] = {"choice": "choice", "labels": "labels"}
    return Checker(name, formats.get(name, "open"), ("macro_f1",) if name == "labels" else (), "as --checker says")


def fitting_checker(problems: list[Problem]) -> Checker:
    """The checker that fits all gold answers: option letters, numbers, labels, mathematics, or words."""
    golds = [problem.gold for problem in problems]
    n = len(golds)
    if all(_LETTER.fullmatch(gold) for gold in golds) and len(set(golds)) > 1:
        return Checker("choice", "choice", (), f"all {n:,} answers are letters of options")
    if all(_NUMBER.fullmatch(gold) and re.search("[0-9]", gold) for gold in golds):
        return Checker("number", "open", (), f"all {n:,} answers are numbers")
    if labels := _labels(golds):
        several = sum(len(one) > 1 for one in map(label_set, golds) if one)
        each = f"; {several:,} answers have several" if several else ""
        why = f"all {n:,} answers are made of {len(labels)} labels that come again and again{each}"
        return Checker("labels", "labels", ("macro_f1",), why)
    if all(map(is_mathematics, golds)):
        return Checker("math", "open", (), f"all {n:,} answers are mathematics")
    quoted = sum(problem.gold.casefold() in problem.prompt.casefold() for problem in problems)
    words = sorted(len(gold.split()) for gold in golds)[n // 2]
    if 2 * quoted > n:
        why = f"answers are words, and {quoted:,} of {n:,} stand in their question"
        return Checker("normalised", "extraction", ("rouge_l",), why)
    long = f"; half of them have {words} words or more, and texts so long are hardly ever the same" * (
        words > LONG_ANSWER
    )
    return Checker("normalised", "open", ("rouge_l",), f"answers are words{long}")


def _labels(golds: list[str]) -> set[str]:
    """The labels that the answers are made of, where they are few, short and come again; else none."""
    counts = Counter(label for gold in golds for label in label_set(gold) or ())
    short = all(len(part.split()) <= 5 for gold in golds for part in _SEPARATOR.split(gold))
    few = len(counts) <= MOST_LABELS and sum(counts.values()) >= 5 * len(counts)
    return set(counts) if short and few and len(counts) > 1 else set()


# The file.


def _text(
    task: OwnTask,
    file: QuestionFile,
    graded_by: Checker,
    split: dict[Split, int],
    teacher: dict[str, Any],
    students: list[dict[str, Any]],
    margin: float,
) -> str:
    asked = min(split["test"], MOST_ASKED)
    pretrained = [row["name"] for row in students if row["student"] not in SIZES]
    fields = file.model_dump(mode="json", exclude_none=True, include={"prompt", "answer", "answer_format", "checker"})
    data = {"path": str(file.path), **fields} | ({"metrics": list(file.metrics)} if file.metrics else {})
    data |= {"skip_bad": True} if file.skip_bad else {}
    by_rule = graded_by.name in QUICK
    # Traces are labelled as they are asked for by what decides in a moment; mathematics is not.
    unlabelled = {name: value for name, value in data.items() if name not in ("checker", "metrics")}
    problems = task.problems("all", None, 0)
    prompt_tokens = 20 + sum(len(problem.prompt) for problem in problems) // (4 * len(problems))
    answer_tokens = 2 + sum(len(problem.gold) for problem in problems) // (4 * len(problems))
    lines = [
        f"# A study of {_on_a_line(str(file.path))}, written by `distill study init`. Every line may be edited;",
        "# docs/study.md says what each field means. First `distill study plan` this file, then `distill study run`.",
        f"title: {_scalar(f'Does reasoning pay on {task.name}?')}",
        "question: Is it worth training a student on the teacher's reasoning, or are the answers enough?",
        "",
        f"# {task.distinct_prompts:,} questions, told apart by a hash of the prompt: {split['train']:,} to train on, "
        f"{split['test']:,} to ask;",
        "# the rest is yours. Speed is measured on any of them.",
        f"# Checker {graded_by.name}: {_on_a_line(graded_by.why)}.",
        f"# There are {', '.join(QUICK)} and math; docs/benchmarks-howto.md says what each takes for right.",
        "tasks:",
        f"  - task: {_scalar(task.name)}",
        f"    data: &questions {_flow(data)}",
        f"    test: {asked}",
        "",
        "# Your answers are what both arms teach, so that a difference is that of the reasoning: the teacher is asked for its",
        "# reasoning only. `gold: shown` shows it your answer first; `gold: grade` has it write both answers, to be taken by",
        "# `answers: teacher` below.",
        "traces:",
        "  - name: pairs",
        f"    tasks: {{{_scalar(task.name)}: {split['train']}}}",
        f"    data: {{{_scalar(task.name)}: {'*questions' if by_rule else _flow(unlabelled)}}}",
        "    gold: answer",
        "    teacher:",
        *(f"      {name}: {_scalar(value)}" for name, value in teacher.items()),
        "      thinking: template   # how it is switched on and off; docs/traces.md has the other ways",
        "      max_tokens: 4096",
        "      # usd_per_million_input: 0.2    # its prices, for the plan and the report",
        "      # usd_per_million_output: 0.8",
        "    # What the plan expects in tokens until there are traces: a quarter of the characters of your questions and",
        "    # answers, and a guess for the reasoning. Put in what you know.",
        f"    expected_tokens: {{prompt: {prompt_tokens}, reasoning: 800, ift: {answer_tokens}}}",
        "",
        "# With three seeds or more the verdict is about reasoning, with fewer about these trained students.",
        "students:",
        *(f"  - {_flow(row)}" for row in students),
        "",
        "arms:",
        "  - {arm: ift, answers: gold, name: ift}",
        "  - {arm: reasoning, answers: gold, name: reasoning}",
        "  # Answers only, repeated until as many tokens were seen as with reasoning.",
        "  - {arm: ift, answers: gold, match: tokens, name: ift_tokens_matched}",
        '  - {arm: "sequential:0.25", answers: gold, name: sequential_quarter}',
        "",
        "training:",
        *(
            ["  keep: verified   # only pairs whose reasoning comes to your answer, in every arm alike"]
            if by_rule
            else ["  # keep: verified   # wants pairs that `distill traces verify` has labelled: see docs/study.md"]
        ),
        "  batch: 16",
        "  row_tokens: 8192     # longer pairs are left out of every arm",
        "  schedule: cosine",
        "  warmup_steps: 20",
        *(
            ["  # lora_rank: 32      # adapters instead of all weights; then learning rates ten times as large"]
            if len(pretrained) == len(students)
            else []
        ),
        "",
        f"evaluation: {{max_tokens: {_answer_limit(students)}}}   # an answer that hits the limit is wrong",
        f"serving: {{concurrencies: [1, 16], requests: {_requests(task.distinct_prompts)}, warmup_requests: 4}}",
        "",
        *(["# What the students knew before they were trained.", "comparators:"] if pretrained else []),
        *([f"  base: {{few_shot: 5, students: {_flow(pretrained)}}}", ""] if pretrained else []),
        "# Declared before the run: the smallest gain, in points, that you would pay for, and what is compared.",
        f"margin_points: {margin:g}",
        "contrasts:",
        f"  - {{treatment: reasoning, control: ift, matched: samples, verdict_size: {_scalar(students[-1]['name'])}}}",
        "  - {treatment: reasoning, control: ift_tokens_matched, matched: tokens}",
        "  - {treatment: sequential_quarter, control: ift, matched: samples}",
        f"hardware: {'h200-sxm' if pretrained else 'cpu-2core'}   # a row of distill/hardware.yaml: what a device costs an hour",
    ]
    return "\n".join(lines) + "\n"


def _answer_limit(students: list[dict[str, Any]]) -> int:
    """Tokens of an answer: at most half of the positions that any student has."""
    from distill.training.student import SCRATCH_POSITIONS

    positions = []
    for name in (row["student"] for row in students):
        config = Path(name) / "config.json"
        said = read_json(config) if config.is_file() else None
        there = said.get("max_position_embeddings") if isinstance(said, dict) else None
        positions.append(SCRATCH_POSITIONS if name in SIZES else there or 2 * MOST_TOKENS)
    return min(MOST_TOKENS, min(positions) // 2)


def _requests(questions: int) -> int:
    """So many under each load, that no question is sent twice: both loads warm up with 4, and end with 1 and 16 more."""
    return min(64, (questions - 25) // 2)


class _Dumper(yaml.SafeDumper):
    """Quotes text that settings would be read from as a number."""

    yaml_implicit_resolvers = SettingsLoader.yaml_implicit_resolvers


def _scalar(value: Any) -> str:
    """A value as YAML writes it on one line."""
    return _flow(value).removesuffix("...").strip()


def _flow(value: Any) -> str:
    how = {"default_flow_style": True, "allow_unicode": True, "sort_keys": False, "width": 10**6}
    return yaml.dump(json.loads(json.dumps(value)), Dumper=_Dumper, **how).strip()


def _on_a_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())

"""`distill bench evaluation`: what `distill evaluate` takes, beside what vLLM alone takes.

*Generation.* The same student, prompts, sampling and lengths through our loop (evaluation_generation.py) and through
`LLM.generate` in a process of its own (offline.py), which has no server, no HTTP and no journal. Both are up all the
time and take turns; who waits uses no processor. The server is the one that `distill evaluate` starts; `LLM` has its
model arguments and vLLM's own offline defaults for the size of a batch. A third turn is ours again, interrupted when
half of its answers are kept, and gone on with. Every turn has questions of its own, so that no prefix is cached.

*Grading.* So many made-up answers of one checker, half of them right, as `distill evaluate` grades them
(evaluation_grading.py), in every round anew.

The result:

    machine, settings        what it ran on, EvaluationBenchSettings as given
    generation[]             one entry a model
      model, parameters, requests        of one turn
      kept                   answers that the interrupted turn had when it was interrupted
      measured
        evaluation, offline  output tokens/s: {"median", "rounds"}
        ratio                the first over the second, with a 95 % interval over rounds (spread.py)
        interrupted          seconds of the interrupted turn over those of a whole one, the same way
        again                tokens that its server made twice, of answers that were on their way, over all tokens:
                             {"median", "rounds"}
    journal
      answers, tokens        kept by an evaluation that is gone on with
      measured.seconds       of reading them: {"median", "rounds"}
    grading[]                one entry a checker
      checker, answers, correct, workers (0: in the process itself)
      measured.seconds       {"median", "rounds"}
"""

import tempfile
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import Field

from distill import console
from distill.bench.spread import shown
from distill.settings import Settings

WANTED = 0.95
LONGEST_S = 60.0  # to grade GRADED answers
GRADED = 10_000
CHECKERS = ("choice", "number", "ifeval", "math")


class EvaluationBenchSettings(Settings):
    """Defaults fit a CPU of two cores."""

    models: tuple[str, ...] = Field(("tiny", "large"), description="tiny, large or a folder")
    questions: int = Field(384, ge=8, description="of a turn")
    tokens: int = Field(192, ge=16, description="of the longest answer")
    rounds: int = Field(5, ge=1)
    threads: int | None = Field(None, ge=1, description="of the model on a CPU; all cores but one if not given")
    checkers: tuple[Literal["choice", "number", "ifeval", "math"], ...] = CHECKERS
    answers: int = Field(GRADED, ge=2, description="graded by each checker")
    grading_rounds: int = Field(3, ge=1)
    workers: int | None = Field(None, ge=1, description="processes of the slow checkers; one a core if not given")
    seed: int = 0


def bench_evaluation(settings: EvaluationBenchSettings) -> dict[str, Any]:
    """Run the benchmark; the result is described at the top of this file. Raises InputError."""
    from distill.bench.evaluation_generation import measure_generation, measure_journal
    from distill.bench.evaluation_grading import measure_grading
    from distill.bench.machine import machine
    from distill.serve.server import require_vllm

    if settings.models:
        require_vllm()
    about, generation = machine(), []
    with tempfile.TemporaryDirectory(prefix="distill-bench-") as folder:
        for name in settings.models:
            console.note(f"generating with {name}")
            generation.append(measure_generation(settings, name, Path(folder)))
        journal = measure_journal(settings, Path(folder))
    grading = []
    for checker in settings.checkers:
        console.note(f"grading {settings.answers:,} answers: {checker}")
        grading.append(measure_grading(settings, checker))
    return {
        "machine": about,
        "settings": settings.model_dump(mode="json"),
        "generation": generation,
        "journal": journal,
        "grading": grading,
    }


def show_evaluation(result: dict[str, Any]) -> None:
    """The result as tables on standard output."""
    for title, columns, rows in evaluation_tables(result):
        if rows:
            console.table(title, columns, rows)


def evaluation_tables(result: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, columns, rows) of generation, interruption and grading."""
    generation, interrupted = [], []
    for entry in result["generation"]:
        measured = entry["measured"]
        size = "" if entry["parameters"] is None else f" ({entry['parameters'] / 1e6:.2g}M parameters)"
        name = f"{entry['model']}{size}"
        rates = [f"{measured[who]['median']:,.0f}" for who in ("evaluation", "offline")]
        generation.append([name, f"{entry['requests']:,}", *rates, shown(measured["ratio"])])
        kept = f"{entry['kept']:,} of {entry['requests']:,}"
        interrupted.append([name, kept, f"{measured['again']['median']:.1%}", shown(measured["interrupted"])])
    grading = [
        [
            entry["checker"],
            f"{entry['answers']:,}",
            str(entry["workers"] or "in the process itself"),
            f"{(seconds := entry['measured']['seconds'])['median']:.2f}",
            f"{min(seconds['rounds']):.2f}-{max(seconds['rounds']):.2f}",
            f"{entry['answers'] / seconds['median']:,.0f}",
        ]
        for entry in result["grading"]
    ]
    return [
        (
            "generation, output tokens/s",
            ["model", "requests", "our loop", "vLLM offline", "our loop over offline"],
            generation,
        ),
        (
            "interrupted and gone on with",
            ["model", "kept", "tokens made twice", "seconds over those of a whole turn"],
            interrupted,
        ),
        ("grading", ["checker", "answers", "workers", "seconds", "of rounds", "answers/s"], grading),
    ]


def journal_text(result: dict[str, Any]) -> str:
    """What reading the journal takes, in a sentence."""
    journal = result["journal"]
    seconds = journal["measured"]["seconds"]["median"]
    return f"An evaluation that is gone on with reads {journal['answers']:,} kept answers in {seconds:.2f} s."


def evaluation_targets(result: dict[str, Any]) -> list[list[str]]:
    """[target, wanted, measured, "met" or "missed"]; of grading where GRADED answers or more were graded."""
    met = lambda reached: "met" if reached else "missed"  # noqa: E731
    rows = []
    for entry in result["generation"]:
        found = entry["measured"]["ratio"]
        reached = found["value"] is not None and found["value"] >= WANTED
        what = f"generation with {entry['model']} over vLLM's own"
        rows.append([what, f"at least {WANTED:g}x", shown(found), met(reached)])
    for entry in result["grading"]:
        if entry["checker"] == "math" or entry["answers"] < GRADED:
            continue
        seconds = entry["measured"]["seconds"]["median"] * GRADED / entry["answers"]
        what = f"grading {GRADED:,} answers, {entry['checker']}"
        rows.append([what, f"at most {LONGEST_S:g} s", f"{seconds:.2f} s", met(seconds <= LONGEST_S)])
    return rows


def spread_of(values: list[float]) -> dict[str, Any]:
    """{"median", "rounds"}."""
    return {"median": median(values), "rounds": values}

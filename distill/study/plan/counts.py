"""What a cell is trained on, before it is: counted from pairs that are there, or expected from what the preset says.

Counted: the pairs are rendered and every step is planned by the code that trains, so tokens, steps and FLOPs are those of
the training. It is done for one seed of a cell: with another, a mix draws other pairs for its reasoning, and its tokens
differ by what these differ.

Expected: pairs all of the mean length that `expected_tokens` says. Attention grows with the square of a length, so FLOPs
come out low where lengths vary much; rows are taken to be full.
"""

import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distill.packing.render import MODES, Rendered, Rendering, render
from distill.packing.source import TraceSet
from distill.study.plan.shapes import Shape
from distill.study.rows import ExpectedTokens
from distill.traces.trace import Mode, Pair
from distill.training.describe import describe
from distill.training.prepare import make_ready
from distill.training.settings import TrainSettings
from distill.training.student import Origin


@dataclass(frozen=True)
class Lengths:
    """Mean tokens by mode and task, the task `None` being all of them together."""

    prompt: dict[str | None, float]
    answer: dict[Mode, dict[str | None, float]]  # with reasoning, tags and end of turn: what is generated
    thinking: dict[str | None, float]  # of it, in the mode reasoning

    def but(self, others: list["Lengths"]) -> "Lengths":
        """These, with what the others say of tasks."""
        prompt, thinking = dict(self.prompt), dict(self.thinking)
        answer = {mode: dict(by_task) for mode, by_task in self.answer.items()}
        for other in others:
            tasks = [task for task in other.prompt if task is not None]
            prompt |= {task: other.prompt[task] for task in tasks}
            thinking |= {task: other.thinking[task] for task in tasks}
            for mode in answer:
                answer[mode] |= {task: other.answer[mode][task] for task in tasks}
        return Lengths(prompt, answer, thinking)

    def of(self, mode: Mode, task: str) -> float:
        by_task = self.answer[mode]
        return by_task.get(task, by_task[None])

    def prompt_of(self, task: str) -> float:
        return self.prompt.get(task, self.prompt[None])

    def thinking_of(self, task: str) -> float:
        return self.thinking.get(task, self.thinking[None])


@dataclass(frozen=True)
class Training:
    """One student of a cell."""

    source: Literal["counted", "expected"]
    pairs: int
    examples: int
    steps: int
    rows: int
    tokens: int
    supervised_tokens: int
    flops: float  # of training; every learning rate that is tried, and validation, included
    reasoning_share: float  # of the examples
    lengths: Lengths
    widest: list[np.ndarray]  # documents' lengths of the rows that need the most memory
    most_supervised: int  # tokens of a row
    dropped_pairs: int = 0
    vocabulary: int = 0  # of a from-scratch student
    origin: Origin | None = None  # with its tokenizer; None where that is not here

    def to_json(self) -> dict[str, Any]:
        names = (
            "source",
            "pairs",
            "examples",
            "steps",
            "rows",
            "tokens",
            "supervised_tokens",
            "flops",
            "dropped_pairs",
        )
        return {name: getattr(self, name) for name in names} | {"reasoning_share": self.reasoning_share}


def counted(
    settings: TrainSettings, traces: TraceSet, documents: Path, solved: dict[str, list[Pair]] | None = None
) -> Training:
    """`solved`: pairs of the questions that will be asked, by task, where they are known. Raises InputError for pairs that
    cannot be rendered, and a student whose tokenizer is not here."""
    ready = make_ready(settings, traces, weights=False, documents=documents)
    counts, rendered = describe(settings, ready), ready.rendered
    rows = [row for step in ready.steps for row in step.rows]
    lengths, together = [rendered.lengths[row] for row in rows], 1
    if not settings.packed:  # rows of one document are run together, padded, up to row_tokens
        longest = max(lengths, key=lambda row: row[0])
        together = max(1, min(settings.row_tokens // longest[0], settings.batch))
        lengths = [longest.repeat(together)]
    flops = counts["flops"]
    if counts["validation"] is not None:
        flops += len(ready.validate_after) * counts["validation"]["flops"]
    return Training(
        source="counted",
        **{name: counts[name] for name in ("pairs", "examples", "steps", "rows", "tokens", "supervised_tokens")},
        flops=flops * len(settings.candidates),
        reasoning_share=counts["shares"]["reasoning"]["examples"],
        lengths=_lengths(rendered).but(_of_questions(solved or {}, ready.origin, settings)),
        widest=sorted(lengths, key=lambda row: (row.sum(), np.square(row).sum()))[-8:],
        most_supervised=together * max(int(rendered.supervised[row].sum()) for row in rows),
        dropped_pairs=counts["dropped_pairs"],
        vocabulary=counts["vocabulary"],
        origin=ready.origin,
    )


def expected(settings: TrainSettings, shape: Shape, mean: ExpectedTokens, pairs: int) -> Training:
    """Of `pairs` pairs, all of the mean length."""
    arm, trained = settings.shown, round(pairs * (1 - settings.validation))
    if arm.curriculum:
        shown = {
            "reasoning": sum(r * own for r, own in arm.curriculum),
            "ift": sum((1 - r) * own for r, own in arm.curriculum),
        }
        epochs = sum(own for _, own in arm.curriculum)
    else:
        shown, epochs = (
            {"reasoning": arm.ratio * settings.epochs, "ift": (1 - arm.ratio) * settings.epochs},
            settings.epochs,
        )
    one = {"reasoning": mean.prompt + mean.reasoning, "ift": mean.prompt + mean.ift}
    learned = {"reasoning": mean.reasoning, "ift": mean.ift}

    def flops(mode: str) -> float:
        return shape.model.training_flops([one[mode]], 0) + shape.model.training_flops([], 1) * learned[mode]

    a_pair = {"tokens": one, "flops": {mode: flops(mode) for mode in one}}
    examples = {mode: trained * times for mode, times in shown.items()}
    factor = 1.0
    spent = lambda unit: sum(examples[mode] * a_pair[unit][mode] for mode in examples)  # noqa: E731
    if settings.tokens is not None:
        factor = settings.tokens / spent("tokens")
    elif settings.match in a_pair:
        factor = trained * epochs * a_pair[settings.match]["reasoning"] / spent(settings.match)
    examples = {mode: count * factor for mode, count in examples.items()}
    tokens = spent("tokens") if factor == 1.0 else sum(examples[m] * one[m] for m in examples)
    rows = max(1, round(tokens / settings.row_tokens))
    if settings.batch_unit == "examples":
        steps = sum(examples.values()) / settings.batch
    else:
        steps = tokens / settings.batch
    steps = max(1, -int(-steps // 1))
    longest = max((mode for mode in examples if examples[mode]), key=lambda mode: one[mode])
    in_a_row = max(1, int(settings.row_tokens // one[longest]))
    validation = 0.0
    if settings.validation:
        times = settings.epochs if settings.validation_steps is None else max(1, steps // settings.validation_steps)
        held = pairs - trained
        validation = (
            times
            * held
            * sum(
                shape.model.forward_flops([one[m]], 0) + 2.0 * shape.model.hidden * shape.model.vocab * learned[m]
                for m in examples
                if examples[m]
            )
        )
    total = sum(examples[mode] * a_pair["flops"][mode] for mode in examples) + validation
    everything: list[str | None] = [None]
    return Training(
        source="expected",
        pairs=trained,
        examples=round(sum(examples.values())),
        steps=steps,
        rows=max(rows, steps) if settings.packed else round(sum(examples.values())),
        tokens=round(tokens),
        supervised_tokens=round(sum(examples[mode] * learned[mode] for mode in examples)),
        flops=total * len(settings.candidates),
        reasoning_share=examples["reasoning"] / sum(examples.values()),
        lengths=Lengths(
            prompt={task: mean.prompt for task in everything},
            answer={mode: {task: learned[mode] for task in everything} for mode in ("ift", "reasoning")},
            thinking={task: max(0.0, mean.reasoning - mean.ift) for task in everything},
        ),
        widest=[np.full(in_a_row, min(one[longest], settings.row_tokens))],
        most_supervised=int(min(in_a_row * learned[longest], settings.row_tokens)),
    )


def _of_questions(solved: dict[str, list[Pair]], origin: Origin, settings: TrainSettings) -> list[Lengths]:
    """What this student's tokenizer makes of them."""
    how = Rendering(settings.answers, max_length=sys.maxsize, vocab_size=origin.model.config.vocab_size)
    return [_lengths(render(pairs, origin.chat, how)) for pairs in solved.values()]


def _lengths(rendered: Rendered) -> Lengths:
    """Means over all pairs that are rendered, those held out among them."""
    tasks = [name.rpartition("/")[0] for name in rendered.pair_ids]  # as `Problem.id` has it
    of_task: dict[str | None, np.ndarray] = defaultdict(lambda: np.zeros(0, np.int64))
    names = np.array(tasks)
    of_task[None] = np.arange(len(names))
    for name in dict.fromkeys(tasks):
        of_task[name] = np.flatnonzero(names == name)
    answer: dict[Mode, dict[str | None, float]] = {mode: {} for mode in MODES}
    prompt, thinking = {}, {}
    for name, pairs in of_task.items():
        for number, mode in enumerate(MODES):
            answer[mode][name] = float(rendered.supervised[2 * pairs + number].mean())
        prompt[name] = float(rendered.prompt_lengths[2 * pairs].mean())
        thinking[name] = float(rendered.reasoning_lengths[2 * pairs + 1].mean())
    return Lengths(prompt, answer, thinking)

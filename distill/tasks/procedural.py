"""Tasks whose problems are made, not stored: every prompt has a number, and problems are drawn without replacement.

A family numbers its prompts within strata (lengths, kinds of message). A draw picks a stratum uniformly among those
that are not used up, then the next prompt of a random order of that stratum, until one belongs to the split.
"""

import random
from collections.abc import Iterator

from distill.tasks.problem import AnswerFormat, Problem, Split
from distill.tasks.task import ACCURACY, CheckedByName, Metric, check_request, split_of, too_few


class ProceduralTask(CheckedByName):
    """Base of the embedded families. A family gives the class attributes, `prompt` and `solve_prompt`."""

    name: str
    revision: str
    answer_format: AnswerFormat
    strata: tuple[int, ...]  # how many prompts each stratum has

    def __init__(self) -> None:
        self.metrics: dict[str, Metric] = {"accuracy": ACCURACY}

    def prompt(self, stratum: int, index: int) -> str:
        """Prompt number `index` of a stratum; different for every (stratum, index)."""
        raise NotImplementedError

    def solve_prompt(self, prompt: str) -> tuple[str, str]:
        """(reasoning, answer) worked out from the text of the prompt."""
        raise NotImplementedError

    @property
    def distinct_prompts(self) -> int:
        return sum(self.strata)

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        check_request(split, count)
        if count > self.distinct_prompts:
            raise too_few(self.name, split, count, f"{self.distinct_prompts} in all splits together")
        rng = random.Random(f"{self.name} {split} {seed}")
        streams = [self._draw(rng, stratum, split) for stratum in range(len(self.strata))]
        found: list[Problem] = []
        while len(found) < count:
            if not streams:
                raise too_few(self.name, split, count, str(len(found)))
            stream = rng.choice(streams)
            prompt = next(stream, None)
            if prompt is None:
                streams.remove(stream)
            else:
                found.append(Problem(self.name, prompt, self.solve_prompt(prompt)[1], self.answer_format))
        return found

    def solve(self, problem: Problem) -> tuple[str, str]:
        return self.solve_prompt(problem.prompt)

    def _draw(self, rng: random.Random, stratum: int, split: Split) -> Iterator[str]:
        for index in shuffled_range(rng, self.strata[stratum]):
            prompt = self.prompt(stratum, index)
            if split_of(prompt) == split:
                yield prompt


def shuffled_range(rng: random.Random, size: int) -> Iterator[int]:
    """0 .. size-1 in random order, lazily: a Fisher-Yates shuffle that stores only the places it has moved."""
    moved: dict[int, int] = {}
    for i in range(size):
        j = rng.randrange(i, size)
        chosen = moved.get(j, j)
        moved[j] = moved.pop(i, i)
        yield chosen


def mixed_radix(index: int, *radices: int) -> list[int]:
    """The digits of `index` in a number system with these radices, the first digit fastest.

    >>> mixed_radix(7, 2, 3, 4)
    [1, 0, 1]
    """
    digits = []
    for radix in radices:
        index, digit = divmod(index, radix)
        digits.append(digit)
    return digits

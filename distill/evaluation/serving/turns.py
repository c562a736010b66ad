"""Students under load in turns: round by round, the same questions for all, so that drift of the machine hits all alike.

In a round every load is put on every contender, one after the other; the next round goes through them in the opposite
order (ABBA), so that not even steady drift favours one. While one is measured the others' servers have nothing to do,
which costs under 1 % of a core.

A contender is asked no question twice. Several contenders may share a server: each request carries its contender's
salt, and what vLLM's prefix cache keeps under one salt is not found under another.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from distill.evaluation.generate import Sampling
from distill.evaluation.questions import Asked
from distill.evaluation.serving.measure import Respondent, Served
from distill.serve.energy import EnergyMeter
from distill.serve.load.clients import Clients
from distill.serve.load.run import Run, requests_of, run_load
from distill.serve.load.shapes import Load


class Salted(Sampling):
    """What vLLM keeps of a prompt is found again only under the same salt."""

    cache_salt: str


@dataclass(frozen=True)
class Contender:
    """A student that is asked in one way, and the server that answers for it."""

    name: str
    respondent: Respondent
    server: Served


@dataclass(frozen=True)
class Turns:
    """How every contender is put under a load."""

    clients: Clients
    requests: int  # measured
    warmup: int  # requests sent before them
    seed: int = 0  # of the arrivals of open loops
    meter: EnergyMeter | None = None
    on_result: Callable[[], None] | None = None

    def size(self, load: Load) -> int:
        """How many questions one run takes."""
        return requests_of(load, self.requests, self.warmup)

    def run(self, contender: Contender, questions: Sequence[str], load: Load, *, salt: str = "") -> Run:
        """One load of questions, by id. Raises InputError when the server is gone; other failures are counted."""
        sampling = contender.respondent.sampling.model_dump() | {"cache_salt": f"{contender.name} {salt}".strip()}
        run = run_load(
            self.clients,
            contender.server.endpoint,
            [contender.respondent.prompts.ids[question] for question in questions],
            load,
            Salted(**sampling),
            warmup=self.warmup,
            seed=self.seed,
            meter=self.meter,
            on_result=self.on_result,
        )
        if any(c.error is not None for c in run.completions):
            contender.server.check()
        return run


def measure_in_turns(
    contenders: Sequence[Contender], asked: Asked, loads: Sequence[Load], rounds: Iterable[int], turns: Turns
) -> Iterator[tuple[int, list[dict[str, Run]]]]:
    """The number of each round and, for every load, what came of it for every contender, by name.

    `rounds` are the numbers of those that are to be measured: each has its own part of the questions. Raises
    InputError when a server is gone.
    """
    for number in rounds:
        supply = iter(asked.problems[number * sum(turns.size(load) for load in loads) :])
        measured: list[dict[str, Run]] = []
        for load in loads:
            ids = [next(supply).id for _ in range(turns.size(load))]
            order = contenders if number % 2 == 0 else contenders[::-1]
            runs = {contender.name: turns.run(contender, ids, load) for contender in order}
            measured.append({c.name: runs[c.name] for c in contenders})
        yield number, measured


Search = Generator[Load, dict[str, Any], dict[str, Any]]


def search_in_turns(searches: Sequence[tuple[Search, Callable[[Load], dict[str, Any]]]]) -> list[dict[str, Any]]:
    """What each search found, given the level of each load that it wants by its own `measure`, load by load in turns."""
    found: list[dict[str, Any] | None] = [None] * len(searches)
    wanted = [next(search) for search, _ in searches]
    forward = True
    while None in found:
        places = [place for place, result in enumerate(found) if result is None]
        for place in places if forward else places[::-1]:
            search, measure = searches[place]
            try:
                wanted[place] = search.send(measure(wanted[place]))
            except StopIteration as end:
                found[place] = end.value
        forward = not forward
    return found

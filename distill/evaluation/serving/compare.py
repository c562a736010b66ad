"""`distill serve compare A B`: two students on the same questions in turns, and how much dearer A's answers are.

    folder/
      compare.json     described below
      compare.html     the same as a page

Every level of every round is put on A, on A with each thinking budget, and on B (turns.py). What is said of a level is
over its rounds put together. `reference` is B.

    settings                    CompareSettings as given
    reference                   the name of the contender that the others are held against
    contenders[]                {"name", "student": folder, "thinking_budget", "arguments": of vLLM's, as given, "price":
                                as pricing.py describes it, null without one}
    machine, engine             what it ran on; engine null of servers that were there already
    idle_watts                  of the devices whose energy was measured, before there was load; null
    client                      the most that the clients reach (serve/profile.py)
    tasks                       by name
      levels[]                  one per load
        load, concurrency
        contenders              by name
          requests, failed, errors      over all rounds; failures are not tried again
          rounds_left_out       those in which some contender gave no answer at all; nothing below is of them
          completed             answers
          unfinished            of them: cut off, or ended inside a think block
          tokens                {"per_answer": {"prompt", "output", "thinking", "answer"}}: means
          measured
            rounds[]            {"output_tokens_per_s": value, low, high, "answers", "tokens", "correct"}
            output_tokens_per_s, answers_per_s, seconds_per_answer, in_flight
                                the first is the rounds' geometric mean, the others follow from it and the mean tokens
            ttft_s, ttfat_s, tpot_s, e2e_s         {"mean", "p50", "p90", "p99", "count"} or null
            energy              {"joules", "seconds"} of all rounds, or {"reason"}
            server              counters summed over rounds, means of its means; null where it shows none
            cost                what cost.py's `cost` says
            client_share        of `client`
        factors                 by name, of every contender but the reference, what cost.py's `factors` says, and
          metrics               by name: {"value", "reference", "difference": {value, low, high} paired by question,
                                "per_added_point": what cost.py says}
      objective                 null without one
        objective               as given
        contenders              by name, under measured
          rates                 requests/s that each round's search found to keep it; [] where none did
          failed_at             the lowest that failed in each
          limited               false where the search met no rate that fails: then a closed loop's throughput is taken
          answers_per_s         {value, low, high} over rounds; null where no rate keeps it
          cost                  {"per_answer", "per_correct": {"seconds", "usd"}}
        factors                 by name, of those that keep it: {"token_factor", "per_token_factor", "cost_factor",
                                "cost_factor_per_correct"}

Everything that depends on a clock is under `measured` or `factors`. Intervals are at 95 % over the questions and rounds
of these two trained students on this machine: no training seed is drawn.
"""

import itertools
import os
import platform
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from distill import artifact, console
from distill.artifact import Artifact
from distill.errors import InputError
from distill.evaluation.answers import Think
from distill.evaluation.budgets import server_arguments, why_not_vllm
from distill.evaluation.endpoint import ModelSettings
from distill.evaluation.generate import Sampling
from distill.evaluation.grading import grading_recipe
from distill.evaluation.questions import Asked
from distill.evaluation.server import Serving, engine_version
from distill.evaluation.serving.at_objective import at_objective
from distill.evaluation.serving.cost import Price
from distill.evaluation.serving.measure import Respondent, draw_questions, sending_processes, served
from distill.evaluation.serving.page import write_compare_page
from distill.evaluation.serving.pricing import PriceSettings, price_of, server_threads
from distill.evaluation.serving.rounds import Kept, has_failed, keep, level, reckoned, usable
from distill.evaluation.serving.turns import Contender, Turns, measure_in_turns, search_in_turns
from distill.evaluation.settings import Budget, Questions
from distill.journal import Journal
from distill.serve.energy import EnergyMeter
from distill.serve.load.clients import Clients
from distill.serve.load.run import requests_of
from distill.serve.load.shapes import ClosedLoop, Load
from distill.serve.objective import Objective
from distill.serve.profile import compare_with_ceiling, summarise
from distill.serve.saturation import FIRST_SHARE, MOST_REQUESTS, rate_search, requests_at
from distill.serve.server import is_cpu_build
from distill.settings import Settings
from distill.traces.trace import Mode

KIND = "serving comparison"
MADE_BY = "distill serve compare"
FORMAT = 1  # of compare.json
JOURNAL = "rounds.jsonl"
SHARE_OF_A_GPU = 0.45  # of its memory for each of the two servers


class CompareSettings(Settings):
    """What is asked, and how it is measured."""

    questions: list[Questions] = Field(min_length=1)
    mode: Mode | None = Field(None, description="what students with a mode signal are asked for")
    think: Think = "free"
    thinking_budgets: tuple[Budget, ...] = Field((None,), min_length=1, description="of A; None: no limit")
    concurrencies: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 8, 32), min_length=1)
    rounds: int = Field(4, ge=2, description="in which every contender has its turn at every load")
    requests: int = Field(64, ge=2, description="measured of each contender at each load in each round")
    warmup_requests: int = Field(4, ge=0)
    max_tokens: int = Field(512, ge=1)
    temperature: float = Field(0.0, ge=0)
    objective: Objective | None = None
    burstiness: float = Field(1.0, gt=0, allow_inf_nan=False, description="of the arrivals that keep the objective")
    seed: int = Field(0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _fits(self) -> "CompareSettings":
        for name in ("thinking_budgets", "concurrencies"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name}: one is named twice")
        if self.limits_thinking and self.think == "off":
            raise ValueError("thinking_budgets: with think off there is no thinking to limit")
        return self

    @property
    def limits_thinking(self) -> bool:
        return self.thinking_budgets != (None,)

    @property
    def loads(self) -> tuple[ClosedLoop, ...]:
        return tuple(ClosedLoop(concurrency=c) for c in self.concurrencies)

    @property
    def questions_needed(self) -> int:
        """Of every task; the search for an objective's rate asks them again, unknown to the server's prefix cache."""
        return self.rounds * sum(requests_of(load, self.requests, self.warmup_requests) for load in self.loads)


@dataclass(frozen=True)
class Entrant:
    """One of the two students, as the command line names it: its name, folder, server and price."""

    name: str
    folder: Path
    serving: Serving
    price: PriceSettings | None = None
    remote: ModelSettings | None = None  # where `serving` finds the server, if it was there before


def compare_students(settings: CompareSettings, a: Entrant, b: Entrant, out: Path) -> Artifact:
    """Put both under load in turns. Raises InputError."""
    if a.name == b.name:
        raise InputError(f"{b.folder}: both students are named {b.name!r}; name one: NAME={b.folder}")
    needed = settings.questions_needed
    most = needed if settings.objective is None else max(needed, 2 * MOST_REQUESTS)
    asked = draw_questions(settings.questions, least=needed, most=most)
    entries = [_entry(settings, who, asked) for who in (a, b)]
    contenders = _contenders(settings, *entries)
    recipe = _recipe(settings, entries, asked)
    with artifact.workspace(out, KIND, recipe) as work:
        if work.finished:
            console.note(f"{out}: already compared, nothing to do")
            return work.finished
        result = _measure(settings, asked, entries, contenders, work.path / JOURNAL, out)
        ours = all(e.who.remote is None for e in entries)
        result |= {"machine": recipe["machine"], "engine": recipe["engine"] if ours else None}
        artifact.write_json(work.path / "compare.json", result)
        write_compare_page(work.path / "compare.html", result, kicker=f"{MADE_BY} · {work.key}")
        return work.commit(_summary(result), remove=(JOURNAL,))


@dataclass(frozen=True)
class _Entry:
    """A student that is ready to be served."""

    who: Entrant
    respondent: Respondent
    threads: int | None
    price: Price | None
    priced: dict[str, Any] | None


def _entry(settings: CompareSettings, who: Entrant, asked: list[Asked]) -> _Entry:
    sampling = Sampling(max_tokens=settings.max_tokens, temperature=settings.temperature, seed=settings.seed)
    respondent = Respondent.load(who.folder, asked, sampling, mode=settings.mode, think=settings.think)
    threads = server_threads(who.serving.threads) if who.serving.endpoint is None else None
    price, priced = price_of(who.price, respondent.subject, threads) if who.price else (None, None)
    return _Entry(who, respondent, threads, price, priced)


@dataclass(frozen=True)
class _Asking:
    """A student asked in one way: what becomes a contender once there is a server."""

    name: str
    entry: _Entry
    budget: int | None

    @property
    def respondent(self) -> Respondent:
        respondent = self.entry.respondent
        sampling = respondent.sampling.model_copy(update={"thinking_token_budget": self.budget})
        return replace(respondent, sampling=sampling)


def _contenders(settings: CompareSettings, a: _Entry, b: _Entry) -> list[_Asking]:
    """A with every thinking budget, then B. Raises InputError when vLLM cannot limit the thinking of A."""
    if settings.limits_thinking and (reason := why_not_vllm(a.respondent.subject.require_chat(), a.respondent.prompts)):
        raise InputError(f"--thinking-budget: vLLM cannot limit the thinking of {a.who.folder} ({reason})")
    named = lambda budget: a.who.name if budget is None else f"{a.who.name}, budget {budget}"  # noqa: E731
    return [*(_Asking(named(budget), a, budget) for budget in settings.thinking_budgets), _Asking(b.who.name, b, None)]


def _recipe(settings: CompareSettings, entries: list[_Entry], asked: list[Asked]) -> dict[str, Any]:
    """Everything but the clock that a comparison depends on, the machine among it."""
    return {
        "format": FORMAT,
        # How many questions there are follows from the rest.
        "settings": settings.model_dump(mode="json", exclude_none=True, exclude={"questions": {"__all__": {"count"}}}),
        "students": [
            {
                "name": e.who.name,
                "student": e.respondent.subject.identity,
                "rendered": e.respondent.subject.require_chat().rendered,
                "dtype": e.respondent.subject.dtype,
                "threads": e.threads,
                "endpoint": e.who.remote and e.who.remote.model_dump(mode="json", exclude={"api_key_env"}),
                "price": e.priced,
            }
            | e.who.serving.of_recipe
            for e in entries
        ],
        "tasks": {a.task.name: a.task.revision for a in asked},
        "grading": grading_recipe(asked),
        "engine": engine_version("vllm"),
        "machine": {"processor": platform.machine(), "cores": len(os.sched_getaffinity(0)), "gpu": _gpu()},
    }


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _measure(
    settings: CompareSettings,
    asked: list[Asked],
    entries: list[_Entry],
    askings: list[_Asking],
    journal_file: Path,
    out: Path,
) -> dict[str, Any]:
    """compare.json. What a run that was killed has measured is taken from the journal."""
    with Journal(journal_file) as journal, Clients(sending_processes()) as clients, ExitStack() as stack:
        if len(journal):
            console.note(f"{out}: going on; {len(journal)} rounds are there from before")
        measuring = _Measuring(
            settings, askings, journal, clients, lambda: _serve(settings, entries, askings, out, stack)
        )
        try:
            kept = measuring.rounds(asked)
            for a, i in itertools.product(asked, range(len(settings.loads))):
                _require_answers(a, settings.loads[i], [of_round[i] for of_round in kept[a.task.name]])
            found = measuring.searches(asked, kept) if settings.objective is not None else {}
        except InputError as error:
            if len(journal):
                raise InputError(f"{error}\n{len(journal)} rounds are kept; run the same command again") from None
            raise
        result = _result(settings, asked, askings, kept, found)
        levels = [
            of_load["contenders"][asking.name]
            for task in result["tasks"].values()
            for of_load in task["levels"]
            for asking in askings
        ]
        of_all = {"levels": levels}
        compare_with_ceiling(clients, [of_all])
        return result | {"client": of_all["client"], "idle_watts": measuring.idle_watts}


def _serve(
    settings: CompareSettings, entries: list[_Entry], askings: list[_Asking], out: Path, stack: ExitStack
) -> tuple[list[Contender], EnergyMeter | None]:
    """Both servers for as long as the stack lasts, and a meter that has seen them idle."""
    ours = all(entry.who.serving.endpoint is None for entry in entries)
    servers = []
    for label, entry in zip("ab", entries, strict=True):
        console.note(f"{'starting' if entry.who.serving.endpoint is None else 'reaching'} vLLM with {entry.who.name}")
        chat, arguments = entry.respondent.subject.require_chat(), ()
        # Also for B, so that whatever it costs to be able to limit thinking, both pay.
        if settings.limits_thinking and why_not_vllm(chat, entry.respondent.prompts) is None:
            arguments += server_arguments(chat)
        if ours and not is_cpu_build():
            arguments += ("--gpu-memory-utilization", str(SHARE_OF_A_GPU))
        place = out.with_name(f"{out.name}.{label}")
        servers.append(stack.enter_context(served(entry.respondent, entry.who.serving, place, arguments=arguments)))
    meter = None
    if ours:  # the energy of a server elsewhere cannot be seen from here
        meter = stack.enter_context(EnergyMeter())
        meter.measure_idle()
    return [Contender(a.name, a.respondent, servers[entries.index(a.entry)]) for a in askings], meter


class _Measuring:
    """Rounds and searches that are not in the journal are measured; servers are started with the first of them."""

    idle_watts: float | None = None

    def __init__(
        self,
        settings: CompareSettings,
        askings: list[_Asking],
        journal: Journal,
        clients: Clients,
        serve: Callable[[], tuple[list[Contender], EnergyMeter | None]],
    ):
        self.settings, self.askings, self.journal, self.clients, self.serve = settings, askings, journal, clients, serve
        self.contenders: list[Contender] = []
        self.meter: EnergyMeter | None = None

    def start(self) -> None:
        if not self.contenders:
            self.contenders, self.meter = self.serve()
            self.idle_watts = self.meter and self.meter.idle_watts

    def turns(self, on_result: Callable[[], None]) -> Turns:
        s = self.settings
        return Turns(self.clients, s.requests, s.warmup_requests, s.seed, self.meter, on_result)

    def rounds(self, asked: list[Asked]) -> dict[str, list[list[dict[str, Kept]]]]:
        """By task: of every round, for every load what is kept of each contender."""
        s = self.settings
        found: dict[str, list[list[dict[str, Kept]]]] = {a.task.name: [] for a in asked}
        everything = [(number, a) for number in range(s.rounds) for a in asked]
        if any(_key(number, a) not in self.journal for number, a in everything):
            self.start()
        with console.progress() as bar:
            todo = sum(_key(number, a) not in self.journal for number, a in everything)
            size = len(self.askings) * s.questions_needed // s.rounds
            task = bar.add_task("answering in turns", total=todo * size)
            for number, a in everything:
                if _key(number, a) not in self.journal:
                    kept = self.one_round(number, a, partial(bar.advance, task))
                else:
                    kept = self.journal.get(_key(number, a))
                found[a.task.name].append(kept)
        return found

    def one_round(self, number: int, asked: Asked, on_result: Callable[[], None]) -> list[dict[str, Kept]]:
        turns = self.turns(on_result)
        ((_, runs),) = measure_in_turns(self.contenders, asked, self.settings.loads, [number], turns)
        kept = [{c.name: keep(c, asked, of_load[c.name]) for c in self.contenders} for of_load in runs]
        # Of what failed another try may succeed: it is counted in this run, and not kept for the next.
        if not any(has_failed(one) for of_load in kept for one in of_load.values()):
            self.journal.append(_key(number, asked), kept)
        return kept

    def searches(
        self, asked: list[Asked], kept: dict[str, list[list[dict[str, Kept]]]]
    ) -> dict[str, list[dict[str, dict[str, Any]]]]:
        """By task: of every round what the search for the objective's rate found for each contender."""
        found: dict[str, list[dict[str, dict[str, Any]]]] = {}
        for a in asked:
            at = {asking.name: best_answers_per_s(kept[a.task.name], asking.name) for asking in self.askings}
            found[a.task.name] = []
            for number in range(self.settings.rounds):
                key = f"objective {_key(number, a)}"
                if key not in self.journal:
                    self.start()
                    self.journal.append(key, self.one_search(number, a, at))
                one = self.journal.get(key)
                found[a.task.name].append(one)
                if any(one[name]["rate"] is None for name in at):
                    break
                at = {name: one[name]["rate"] / FIRST_SHARE for name in at}  # where the next search begins
        return found

    def one_search(self, number: int, asked: Asked, saturated: dict[str, float]) -> dict[str, dict[str, Any]]:
        s, ids = self.settings, [problem.id for problem in asked.problems]
        runs = 0
        with console.progress() as bar:
            task = bar.add_task(f"rates that keep the objective, {asked.task.name}", total=None)

            def measure(contender: Contender, load: Load) -> dict[str, Any] | None:
                nonlocal runs
                runs += 1
                # Fewer than show best whether the server keeps up, where there are not as many questions.
                most = len(ids) - s.warmup_requests - load.cooldown_requests
                if most < s.requests:
                    return None
                requests = min(requests_at(load.rate, s.requests), most)
                turns = replace(self.turns(partial(bar.advance, task)), requests=requests)
                # What was asked before is asked again, under a salt that the server's prefix cache has not seen.
                start = runs * turns.size(load) % len(ids)
                questions = [*ids[start:], *ids[:start]][: turns.size(load)]
                run = turns.run(contender, questions, load, salt=f"search {number} {runs}")
                respondent = contender.respondent
                return summarise(run, *respondent.think_ids, s.objective, opened=respondent.prompts.opened)

            searches = [
                (rate_search(saturated=saturated[c.name], burstiness=s.burstiness), partial(measure, c))
                for c in self.contenders
            ]
            found = search_in_turns(searches)
        return {contender.name: one for contender, one in zip(self.contenders, found, strict=True)}


def _key(number: int, asked: Asked) -> str:
    return f"round {number} {asked.task.name}"


def best_answers_per_s(rounds: list[list[dict[str, Kept]]], name: str) -> float:
    """The highest throughput of one contender in any round and load, in answers a second."""
    answers = [
        reckoned(one) for of_round in rounds for of_load in of_round for who, one in of_load.items() if who == name
    ]
    return max(a.rate.value / float(a.output_tokens.mean()) for a in answers if a is not None)


def _result(
    settings: CompareSettings,
    asked: list[Asked],
    askings: list[_Asking],
    kept: dict[str, list[list[dict[str, Kept]]]],
    found: dict[str, list[dict[str, dict[str, Any]]]],
) -> dict[str, Any]:
    prices = {asking.name: asking.entry.price for asking in askings}
    reference = askings[-1].name
    tasks = {}
    for a in asked:
        rounds = kept[a.task.name]
        by_load = [[of_round[i] for of_round in rounds] for i in range(len(settings.loads))]
        tasks[a.task.name] = {
            "levels": [
                level(load, of_load, prices, reference, a.task.metrics)
                for load, of_load in zip(settings.loads, by_load, strict=True)
            ],
            "objective": None
            if settings.objective is None
            else at_objective(
                settings.objective,
                found[a.task.name],
                {name: best_answers_per_s(rounds, name) for name in prices},
                {name: [reckoned(one[name]) for of_load in by_load for one in usable(of_load)] for name in prices},
                prices,
                reference,
            ),
        }
    return {
        "settings": settings.model_dump(mode="json"),
        "reference": reference,
        "contenders": [
            {
                "name": asking.name,
                "student": str(asking.entry.who.folder),
                "thinking_budget": asking.budget,
                "arguments": list(asking.entry.who.serving.arguments),
                "price": asking.entry.priced,
            }
            for asking in askings
        ],
        "tasks": tasks,
    }


def _require_answers(asked: Asked, load: Load, rounds: list[dict[str, Kept]]) -> None:
    if usable(rounds):
        return
    for name, one in rounds[0].items():
        if reckoned(one) is None:
            reason = next(iter(one["errors"]), "no output token in any answer")
            raise InputError(f"{name}: gave no answer to {asked.task.name} at {load.name} ({reason})")
    raise InputError(f"{asked.task.name} at {load.name}: in no round did all students answer")


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of it: the factors at every load."""
    return {
        name: [
            {
                "load": one["load"]["name"],
                "factors": {
                    who: {"token_factor": f["token_factor"], **f["seconds"]} for who, f in one["factors"].items()
                },
            }
            for one in task["levels"]
        ]
        for name, task in result["tasks"].items()
    }

"""The answering half of `distill bench gap`: both students behind vLLM, under the same loads in turns."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from distill import console
from distill.bench.gap import ARMS, GapSettings
from distill.bench.spread import ratio
from distill.errors import InputError
from distill.evaluation.answers import Answer
from distill.evaluation.generate import Sampling
from distill.evaluation.questions import Asked
from distill.evaluation.server import Serving
from distill.evaluation.serving.compare import SHARE_OF_A_GPU
from distill.evaluation.serving.cost import Answers, Price, Student, cost, factors, over_rounds, product
from distill.evaluation.serving.measure import Respondent, draw_questions, reckoned, sending_processes, served
from distill.evaluation.serving.turns import Contender, Turns, measure_in_turns
from distill.evaluation.settings import Questions
from distill.flops import ModelShape
from distill.packing.source import TraceSet
from distill.serve import ClosedLoop, EnergyMeter
from distill.serve.load.clients import Clients
from distill.serve.load.run import Run, requests_of
from distill.serve.server import is_cpu_build
from distill.tasks.registry import EMBEDDED
from distill.training.device import this_device
from distill.training.peak import peak_flops

WARMUP_REQUESTS = 4  # of every run, left out
_ONE = Price(1.0)  # factors of seconds and joules do not depend on it


def prepare_questions(settings: GapSettings, trace_set: TraceSet) -> list[Asked]:
    """Test questions of every task, others in every run of a student. Raises InputError when they cannot be had."""
    names = settings.tasks or tuple(dict.fromkeys(pair.problem.task for pair in trace_set.pairs))
    unknown = [name for name in names if not settings.tasks and name not in EMBEDDED]
    if unknown:
        raise InputError(
            f"the traces' task {unknown[0]!r} needs a file of questions; name it: --tasks {unknown[0]}:PATH"
        )
    needed = settings.rounds * sum(requests_of(load, settings.requests, WARMUP_REQUESTS) for load in _loads(settings))
    questions = [Questions(task=name, split="test", seed=settings.seed) for name in names]
    return draw_questions(questions, least=needed, most=needed)


def measure_inference(
    settings: GapSettings, asked: list[Asked], students: dict[str, Path], folder: Path, meter: EnergyMeter
) -> dict[str, Any]:
    """ "inference" of the result. Raises InputError when a student cannot be served or does not answer."""
    loads = _loads(settings)
    sampling = Sampling(max_tokens=settings.max_tokens)
    respondents = {arm: Respondent.load(students[arm], asked, sampling) for arm in ARMS}
    levels, reasons = [], []
    with ExitStack() as stack:
        contenders = []
        for arm, respondent in respondents.items():
            console.note(f"starting vLLM with the {arm} student")
            share = () if is_cpu_build() else ("--gpu-memory-utilization", str(SHARE_OF_A_GPU))
            server = stack.enter_context(served(respondent, Serving(), folder / arm, arguments=share))
            contenders.append(Contender(arm, respondent, server))
        clients = stack.enter_context(Clients(sending_processes()))
        bar = stack.enter_context(console.progress())
        turns = Turns(clients, settings.requests, WARMUP_REQUESTS, meter=meter, on_result=lambda: bar.advance(task))
        each = sum(turns.size(load) for load in loads)
        task = bar.add_task("answering in turns", total=len(asked) * settings.rounds * each * len(ARMS))
        for a in asked:
            rounds, peaks = [], []
            for _, measured in measure_in_turns(contenders, a, loads, range(settings.rounds), turns):
                rounds.append(measured)
                peaks.append(_peak(respondents["ift"].subject.dtype))
            for load, of_load in zip(loads, zip(*rounds, strict=True), strict=True):
                levels.append(_level(a, load.concurrency, of_load, respondents, median(peaks)))
                energies = [run.energy for by_arm in of_load for run in by_arm.values()]
                reasons += [energy["reason"] for energy in energies if energy and "reason" in energy]
    return {"no_energy": reasons[0] if reasons else None, "levels": levels}


def _loads(settings: GapSettings) -> list[ClosedLoop]:
    return [ClosedLoop(concurrency=concurrency) for concurrency in settings.concurrencies]


def _peak(dtype: str) -> float:
    """FLOP/s that the device could reach in the server's precision; of a CPU with the threads that vLLM has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))
    try:
        return peak_flops(this_device(), getattr(torch, dtype))[0]
    finally:
        torch.set_num_threads(threads)


def _level(
    asked: Asked, concurrency: int, rounds: Sequence[dict[str, Run]], respondents: dict[str, Respondent], peak: float
) -> dict[str, Any]:
    level: dict[str, Any] = {"task": asked.task.name, "concurrency": concurrency}
    answers: dict[str, list[Answers]] = {}
    for arm in ARMS:
        runs = [by_arm[arm] for by_arm in rounds]
        sent = [c for run in runs for c in run.completions]
        failed = [c.error for c in sent if c.error is not None]
        if failed:
            raise InputError(f"bench gap: {len(failed)} of {len(sent)} questions got no answer ({failed[0]})")
        graded = respondents[arm].grade(asked, runs)
        answers[arm] = [found for a, run in zip(graded, runs, strict=True) if (found := reckoned(a, run)) is not None]
        if len(answers[arm]) < len(runs):
            raise InputError(f"bench gap: too few requests ({len(graded[0])}) for a rate; expected more --requests")
        shape = ModelShape.from_config(respondents[arm].subject.config)
        level[arm] = _arm(shape, [a for of_run in graded for a in of_run], runs, answers[arm], peak)
    return level | _factors(level, answers) | {part: _phase(level, rounds, part) for part in ("prefill", "decode")}


def _arm(
    shape: ModelShape, graded: list[Answer], runs: list[Run], answers: list[Answers], peak: float
) -> dict[str, Any]:
    found, student = cost(answers, _ONE), Student(answers)
    # The first output token comes of reading the prompt; the others are decoded.
    prefill = fmean(shape.generation_flops(a.prompt_tokens, 1) for a in graded)
    whole = fmean(shape.generation_flops(a.prompt_tokens, len(a.token_ids)) for a in graded)
    sent = [c for run in runs for c in run.completions]
    by_server = _server(runs, "flops_per_gpu")
    seconds = [max(c.sent_s + c.e2e_s for c in r.completions) - min(c.sent_s for c in r.completions) for r in runs]
    prefill_s, decode_s = (_server(runs, f"{part}_s_mean") for part in ("prefill", "decode"))
    units = ("seconds", "joules")
    return {
        "answers": len(graded),
        "correct": sum(a.correct for a in graded),
        "unfinished": sum(not a.finished for a in graded),
        "prompt_tokens": fmean(a.prompt_tokens for a in graded),
        "output_tokens": fmean(len(a.token_ids) for a in graded),
        "thinking_tokens": fmean(a.thinking_tokens for a in graded),
        "modelled": {"prefill_flops": prefill, "decode_flops": whole - prefill},
        "measured": {
            "output_tokens_per_s": over_rounds(student.rates).as_dict(),
            "per_answer": {unit: found["per_answer"][unit] for unit in units},
            "per_correct": {unit: found["per_correct"][unit] for unit in units},
            "ttft_s": fmean(c.token_times_s[0] for run in runs for c in run.done),
            "prefill_s": prefill_s and fmean(prefill_s),
            "decode_s": decode_s and fmean(decode_s),
            "mfu": whole / found["per_answer"]["seconds"]["value"] / peak,
            "flops_by_server": by_server and sum(by_server) / len(sent),
            "mfu_by_server": by_server and sum(by_server) / sum(seconds) / peak,
        },
    }


def _server(runs: list[Run], key: str) -> list[float] | None:
    """What the server said of every run; None where it did not say, or counted nothing."""
    values = [run.server[key] for run in runs if run.server and run.server[key]]
    return values if len(values) == len(runs) else None


def _phase(level: dict[str, Any], rounds: Sequence[dict[str, Run]], part: str) -> dict[str, Any]:
    """Reasoning over IFT, of reading the prompt or of decoding an answer."""
    flops = [level[arm]["modelled"][f"{part}_flops"] for arm in ("reasoning", "ift")]
    seconds = [_server([by_arm[arm] for by_arm in rounds], f"{part}_s_mean") for arm in ("reasoning", "ift")]
    measured = ratio(*seconds) if all(seconds) else ratio([], [])
    return {"modelled": flops[0] / flops[1] if flops[1] else None, "measured": measured}


def _factors(level: dict[str, Any], answers: dict[str, list[Answers]]) -> dict[str, Any]:
    """Reasoning over IFT, per answer and per correct answer."""
    reasoning, ift = (level[arm] for arm in ("reasoning", "ift"))
    found = factors(answers["reasoning"], answers["ift"], _ONE, _ONE)
    one, other = Student(answers["reasoning"]), Student(answers["ift"])
    flops = sum(reasoning["modelled"].values()) / sum(ift["modelled"].values())
    tokens = reasoning["output_tokens"] / ift["output_tokens"]

    def taken_apart(unit: str, tokens: dict[str, Any], cost: str) -> dict[str, Any] | None:
        return found[unit] and {
            "tokens": tokens,
            "per_token": found[unit]["per_token_factor"],
            "cost": found[unit][cost],
        }

    result: dict[str, Any] = {
        "per_answer": {
            "modelled": {"tokens": tokens, "per_token": flops / tokens, "cost": flops},
            "measured": taken_apart("seconds", found["token_factor"], "cost_factor"),
            "joules": taken_apart("joules", found["token_factor"], "cost_factor"),
        },
        "per_correct": None,
    }
    if found["correct_factor"] is not None:
        correct = found["correct_factor"]["value"]
        per_correct = product([one.tokens, other.correct], [other.tokens, one.correct]).as_dict()
        result["per_correct"] = {
            "modelled": {"tokens": tokens / correct, "per_token": flops / tokens, "cost": flops / correct},
            "measured": taken_apart("seconds", per_correct, "cost_factor_per_correct"),
            "joules": taken_apart("joules", per_correct, "cost_factor_per_correct"),
        }
    return result

"""`distill bench gap`: the training half for real, the answering half against the session's vLLM server."""

import json
import random
from contextlib import contextmanager
from html.parser import HTMLParser

import numpy as np
import pytest

from distill.bench import gap_inference
from distill.bench.gap import ARMS, GapSettings
from distill.bench.gap_inference import _arm, _factors, measure_inference, prepare_questions
from distill.bench.gap_page import gap_page
from distill.bench.gap_tables import gap_groups, gap_tables
from distill.bench.gap_training import WARMUP_STEPS, _result, measure_training
from distill.bench.report import render_report
from distill.errors import InputError
from distill.evaluation.answers import Answer
from distill.evaluation.serving.cost import Answers, Energy
from distill.evaluation.serving.measure import Served
from distill.evaluation.subject import load_subject
from distill.flops import ModelShape
from distill.packing.source import read_traces
from distill.serve import ClosedLoop, Completion, EnergyMeter
from distill.serve.load.run import Run
from distill.serve.load.steady import Rate
from distill.settings import validate
from distill.traces.generate import generate
from distill.traces.settings import GenerateSettings


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gap") / "traces"
    generate(GenerateSettings(tasks={"add": 120, "max": 60}, seed=random.randrange(1000)), folder)
    return folder


class Meter(EnergyMeter):
    """Says what it is told to: joules of each window, or a reason."""

    def __init__(self, joules=None):
        super().__init__()
        self.reason = None if joules else "no counter here"
        self.joules = iter(joules or [])

    @contextmanager
    def window(self):
        with super().window() as window:
            yield window
        window.energy = {"joules": next(self.joules)} if self.reason is None else {"reason": self.reason}


def test_both_arms_train_on_the_same_examples_and_are_kept(traces, tmp_path):
    settings = GapSettings(steps=8, turn_steps=2, batch=12, threads=1)
    result, students = measure_training(settings, traces, read_traces(traces), tmp_path, Meter())
    ift, reasoning, factors = (result[key] for key in (*ARMS, "factor"))
    assert ift["steps"] == reasoning["steps"] == 8 and ift["examples"] == reasoning["examples"] == 96
    assert reasoning["tokens_per_example"] > ift["tokens_per_example"] > ift["supervised_tokens_per_example"] > 0
    modelled, measured = factors["modelled"], factors["measured"]
    assert modelled["cost"] == pytest.approx(reasoning["flops_per_example"] / ift["flops_per_example"])
    assert modelled["cost"] == pytest.approx(modelled["tokens"] * modelled["per_token"])
    # Attention grows with the square of a document, so a reasoning token costs more FLOPs, never less.
    assert modelled["per_token"] > 1
    assert measured["cost"]["value"] == pytest.approx(measured["tokens"]["value"] * measured["per_token"]["value"])
    assert result["no_energy"] == "no counter here" and factors["joules"] is None
    for arm in ARMS:
        m = result[arm]["measured"]
        assert m["seconds_per_step"] == pytest.approx(12 * m["seconds_per_example"]) and 0 < m["mfu"] < 1
        assert m["peak_memory_bytes"] > 1e8 and m["joules_per_example"] is None
        assert (students[arm] / "manifest.json").exists() and load_subject(students[arm]).dtype == "float32"


class Training:
    """A plan whose step i has i + 1 examples of so many tokens each."""

    def __init__(self, tokens):
        self.tokens, self.steps = tokens, list(range(20))

    def counts(self, steps):
        examples = sum(i + 1 for i in steps)
        tokens = self.tokens * examples
        return {"examples": examples, "tokens": tokens, "supervised_tokens": tokens // 2, "flops": 1e6 * tokens}


def test_energy_of_training_is_of_the_rounds_that_have_it(rng):
    """The last turn was too short for its window: it counts in seconds, not in joules."""
    seconds, joules = rng.uniform(0.1, 9, (2, 3)), rng.uniform(1, 99, (2, 3))
    device = rng.choice([None, 7])
    record = lambda s: {"seconds": s, "peak_device_bytes": device, "peak_rss_bytes": 5}  # noqa: E731
    rounds = [{arm: [record(seconds[i, r])] * 2 for i, arm in enumerate(ARMS)} for r in range(3)]
    energies = [{arm: {"joules": joules[i, r]} for i, arm in enumerate(ARMS)} for r in range(3)]
    energies[2]["ift"] = {"reason": "too short"}
    result = _result({"ift": Training(10), "reasoning": Training(30)}, rounds, energies, 1e9)
    examples = [sum(i + 1 for i in range(start, start + 2)) for start in range(WARMUP_STEPS, WARMUP_STEPS + 6, 2)]
    for i, arm in enumerate(ARMS):
        m = result[arm]["measured"]
        assert m["seconds_per_example"] == pytest.approx(2 * seconds[i].sum() / sum(examples))
        assert m["joules_per_example"] == pytest.approx(joules[i, :2].sum() / sum(examples[:2]))
        assert m["mfu"] == pytest.approx(1e6 * (10, 30)[i] / m["seconds_per_example"] / 1e9)
        assert m["peak_memory_bytes"] == (device or 5)
    factor = result["factor"]
    assert result["no_energy"] is None and len(factor["measured"]["cost"]["rounds"]) == 3
    assert factor["joules"]["cost"]["rounds"] == pytest.approx(joules[1, :2] / joules[0, :2])
    assert factor["joules"]["per_token"]["rounds"] == pytest.approx(joules[1, :2] / joules[0, :2] / 3)


def test_both_students_answer_the_same_questions_in_turns(
    trained_server, trained_student, traces, tmp_path, monkeypatch
):
    """One student as both arms, greedy: up to near-ties the same tokens, so factors of tokens near one."""

    @contextmanager
    def served(respondent, serving, out, arguments):
        yield Served(trained_server.endpoint, trained_server.check)

    monkeypatch.setattr(gap_inference, "served", served)
    settings = GapSettings(tasks=("max",), concurrencies=(1, 4), requests=10, rounds=2, max_tokens=64, threads=1)
    asked = prepare_questions(settings, read_traces(traces))
    assert [len(a.problems) for a in asked] == [2 * ((4 + 10 + 1) + (4 + 10 + 4))]
    students = dict.fromkeys(ARMS, trained_student)
    joules = [float(j) for j in range(1, 9)]
    result = measure_inference(settings, asked, students, tmp_path, Meter(joules))
    assert result["no_energy"] is None and [level["concurrency"] for level in result["levels"]] == [1, 4]
    for level in result["levels"]:
        assert level["task"] == "max"
        for arm in ARMS:
            found, m = level[arm], level[arm]["measured"]
            assert found["answers"] == 20 and 0 < found["correct"] <= 20 - found["unfinished"]
            assert 0 < found["thinking_tokens"] < found["output_tokens"] <= 64
            rate, cost = m["output_tokens_per_s"]["value"], m["per_answer"]["seconds"]["value"]
            assert cost == pytest.approx(found["output_tokens"] / rate)
            assert m["per_correct"]["seconds"]["value"] == pytest.approx(cost * 20 / found["correct"])
            assert 0 < m["prefill_s"] < m["ttft_s"] and m["decode_s"] > 0 and 0 < m["mfu"] < 1
            flops = sum(found["modelled"].values())
            assert found["modelled"]["prefill_flops"] == pytest.approx(flops - found["modelled"]["decode_flops"])
        assert level["prefill"]["modelled"] == pytest.approx(1) and level["decode"]["measured"]["value"] > 0
        for per in ("per_answer", "per_correct"):
            for cost in (
                level[per]["modelled"],
                *({n: f["value"] for n, f in level[per][u].items()} for u in ("measured", "joules")),
            ):
                assert cost["cost"] == pytest.approx(cost["tokens"] * cost["per_token"])
        assert level["per_answer"]["measured"]["tokens"]["value"] == pytest.approx(1.0, rel=0.3)


def answers(rng, right):
    """A round of six answers with energy."""
    tokens = rng.integers(1, 50, 6)
    rate = float(rng.uniform(10, 1000))
    energy = Energy(float(rng.uniform(1, 100)), int(tokens.sum()))
    correct = np.array([1] * right + [0] * (6 - right))
    ids = np.array([f"{rng.integers(1 << 40)}" for _ in range(6)])
    return Answers(ids, tokens, tokens, correct, np.zeros(6, bool), Rate(rate, None, None, 1.0, 9), energy)


def test_factors_are_reasoning_over_ift(rng):
    one, other = answers(rng, 4), answers(rng, 2)
    other = Answers(one.questions, *(getattr(other, n) for n in ("output_tokens", "prompt_tokens", "correct", "unfinished", "rate", "energy")))  # fmt: skip
    flops = rng.uniform(1, 9, 4)
    level = {
        "reasoning": {"output_tokens": 30.0, "modelled": dict(zip("ab", flops[:2], strict=True))},
        "ift": {"output_tokens": 5.0, "modelled": dict(zip("ab", flops[2:], strict=True))},
    }
    found = _factors(level, {"reasoning": [one], "ift": [other]})
    modelled = flops[:2].sum() / flops[2:].sum()
    tokens = one.output_tokens.sum() / other.output_tokens.sum()
    seconds, joules = other.rate.value / one.rate.value, one.energy.joules / other.energy.joules / tokens
    for per, fewer in (("per_answer", 1), ("per_correct", 2)):
        of = found[per]
        assert of["modelled"]["tokens"] == pytest.approx(6 / fewer)
        assert of["modelled"]["cost"] == pytest.approx(modelled / fewer)
        assert of["measured"]["tokens"]["value"] == of["joules"]["tokens"]["value"] == pytest.approx(tokens / fewer)
        assert of["measured"]["cost"]["value"] == pytest.approx(tokens * seconds / fewer)
        assert of["joules"]["cost"]["value"] == pytest.approx(tokens * joules / fewer)
    none = Answers(one.questions, other.output_tokens, other.prompt_tokens, np.zeros(6), other.unfinished, other.rate)
    found = _factors(level, {"reasoning": [one], "ift": [none]})
    assert found["per_correct"] is None and found["per_answer"]["joules"] is None


def test_prefill_and_decode_add_up_to_generation(tiny_student, rng):
    """And a request of the whole run counts in what the server estimates, warm-up and cool-down included."""
    shape = ModelShape.from_config(load_subject(tiny_student).config)
    sizes = rng.integers(1, 40, (5, 2))
    made = lambda p, o: Answer("p", "add", "", "", [0] * o, "", "", p, 0, o, False, True, "stop", True, 1.0)  # noqa: E731
    sent = [Completion(i, 3, [1], token_times_s=[0.5], e2e_s=1.0, sent_s=float(i)) for i in range(9)]
    server = {"flops_per_gpu": 900.0, "prefill_s_mean": 0.25, "decode_s_mean": None}
    run = Run(ClosedLoop(concurrency=2), sent, 2, 2, server, [[0]] * 9)
    found = _arm(shape, [made(int(p), int(o)) for p, o in sizes], [run, run], [answers(rng, 3)] * 2, 1e9)
    whole = np.mean([shape.generation_flops(int(p), int(o)) for p, o in sizes])
    prefill = np.mean([shape.forward_flops([int(p)], 1) for p, _ in sizes])
    assert found["modelled"] == {
        "prefill_flops": pytest.approx(prefill),
        "decode_flops": pytest.approx(whole - prefill),
    }
    m = found["measured"]
    assert (m["prefill_s"], m["decode_s"], m["flops_by_server"]) == (0.25, None, pytest.approx(100.0))
    assert m["mfu_by_server"] == pytest.approx(900 / 9 / 1e9)


class Text(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.text = ""
        self.feed(page)

    def handle_data(self, data):
        self.text += data


def a_result(rng):
    """A result with made-up numbers."""
    spread = lambda: dict(zip(("low", "value", "high"), sorted(rng.uniform(0.1, 9, 3)), strict=True))  # noqa: E731
    apart = lambda: {name: spread() for name in names}  # noqa: E731
    names = ("tokens", "per_token", "cost")
    factor = lambda: {"modelled": numbers(*names), "measured": apart(), "joules": apart()}  # noqa: E731
    numbers = lambda *names: {name: float(rng.uniform(1, 99)) for name in names}  # noqa: E731

    def trained():
        names = ("seconds_per_step", "seconds_per_example", "tokens_per_second", "supervised_tokens_per_second")
        measured = numbers(*names, "mfu", "peak_memory_bytes", "joules_per_example")
        return numbers("tokens_per_example") | {"measured": measured}

    def answered():
        measured = numbers("ttft_s", "prefill_s", "decode_s", "mfu", "mfu_by_server")
        measured |= {"output_tokens_per_s": spread()}
        measured |= {per: {"seconds": spread(), "joules": spread()} for per in ("per_answer", "per_correct")}
        counts = {"answers": 9, "correct": 3, "unfinished": 1}
        modelled = numbers("prefill_flops", "decode_flops")
        return counts | numbers("prompt_tokens", "output_tokens") | {"modelled": modelled, "measured": measured}

    phase = lambda: {"modelled": 2.0, "measured": spread()}  # noqa: E731
    level = {"task": "add", "concurrency": 4} | {arm: answered() for arm in ARMS}
    level |= {"prefill": phase(), "decode": phase(), "per_answer": factor(), "per_correct": factor()}
    return {
        "machine": {"processor": "p<", "cores": 2, "load_before": 0.1, "python": "3", "versions": {"torch": "2"}},
        "settings": GapSettings(rounds=5).model_dump(mode="json"),
        "training": {arm: trained() for arm in ARMS} | {"factor": factor(), "no_energy": None},
        "inference": {"no_energy": None, "levels": [level]},
    }


def test_the_page_shows_every_factor_beside_its_model(rng, tmp_path):
    result = a_result(rng)
    page = gap_page(result)
    text = Text(page).text
    for factor in (
        result["training"]["factor"],
        *(result["inference"]["levels"][0][p] for p in ("per_answer", "per_correct")),
    ):
        cost = factor["measured"]["cost"]
        assert (
            f"{cost['value']:.3g} [{cost['low']:.3g}, {cost['high']:.3g}] · model {factor['modelled']['cost']:.3g}"
            in text
        )
        assert f"{factor['joules']['cost']['value']:.3g}x" in text
    assert "p<" in text and "p<<" not in page and "J/correct answer" in text
    assert [len(groups) for _, groups in gap_groups(result)] == [1, 1, 1]
    (tmp_path / "gap-cpu.json").write_text(json.dumps(result))
    markdown, images = render_report(tmp_path)
    assert "`distill bench gap TRACES --rounds 5`" in markdown and "images/gap-cpu.svg" in markdown
    assert f"{result['training']['factor']['modelled']['cost']:.3g}" in images["gap-cpu.svg"]


def test_what_was_not_measured_is_said(rng, tmp_path):
    result = a_result(rng)
    level = result["inference"]["levels"][0]
    level["per_correct"] = level["per_answer"]["joules"] = result["training"]["factor"]["joules"] = None
    level["prefill"]["measured"] = {"value": None, "low": None, "high": None}
    for arm in ARMS:
        result["training"][arm]["measured"]["joules_per_example"] = None
        m = level[arm]["measured"]
        m["prefill_s"] = m["mfu_by_server"] = m["per_answer"]["joules"] = m["per_correct"]["joules"] = None
        m["per_correct"]["seconds"]["value"] = None
    for half in ("training", "inference"):
        result[half]["no_energy"] = "no counter in here"
    text = Text(gap_page(result)).text
    assert "no counter in here" in text and "J/" not in text and "MFU by vLLM" not in text
    assert "a student gave no correct answer" in text and "per correct answer" in text
    assert all(len(row) == len(columns) for _, columns, rows in gap_tables(result) for row in rows)
    (tmp_path / "gap-cpu.json").write_text(json.dumps(result))
    assert "Energy: no counter in here." in render_report(tmp_path)[0]


def test_bad_input(traces):
    with pytest.raises(InputError, match="both --ift and --reasoning"):
        validate(GapSettings, {"ift": "x"}, source="test")
    with pytest.raises(InputError, match="unknown task"):
        prepare_questions(GapSettings(tasks=("ad",)), read_traces(traces))
    with pytest.raises(InputError, match="different questions"):
        prepare_questions(GapSettings(tasks=("max",), requests=5000), read_traces(traces))

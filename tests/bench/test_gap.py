"""`distill bench gap`: the training half for real, the answering half against the session's vLLM server."""

import random
from pathlib import Path

import pytest

from distill.bench.gap import GapSettings
from distill.bench.gap_inference import _ask, _level, prepare_questions
from distill.bench.gap_training import ARMS, factor, measure_training
from distill.errors import InputError
from distill.evaluation.subject import load_subject
from distill.packing.source import read_traces
from distill.settings import validate
from distill.traces.generate import generate
from distill.traces.settings import GenerateSettings


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gap") / "traces"
    generate(GenerateSettings(tasks={"add": 120, "max": 60}, seed=random.randrange(1000)), folder)
    return folder


def test_both_arms_train_on_the_same_examples_and_are_kept(traces, tmp_path):
    settings = GapSettings(steps=8, turn_steps=2, batch=12, threads=1)
    result, students = measure_training(settings, traces, read_traces(traces), tmp_path)
    ift, reasoning, factors = (result[key] for key in (*ARMS, "factor"))
    assert ift["steps"] == reasoning["steps"] == 8 and ift["examples"] == reasoning["examples"] == 96
    assert reasoning["tokens_per_example"] > ift["tokens_per_example"] > ift["supervised_tokens_per_example"] > 0
    modelled, measured = factors["modelled"], factors["measured"]
    assert modelled["cost"] == pytest.approx(reasoning["flops_per_example"] / ift["flops_per_example"])
    assert modelled["cost"] == pytest.approx(modelled["tokens"] * modelled["per_token"])
    # Attention grows with the square of a document, so a reasoning token costs more FLOPs, never less.
    assert modelled["per_token"] > 1
    assert measured["cost"]["value"] == pytest.approx(measured["tokens"]["value"] * measured["per_token"]["value"])
    for arm in ARMS:
        m = result[arm]["measured"]
        assert m["seconds_per_step"] == pytest.approx(12 * m["seconds_per_example"]) and 0 < m["mfu"] < 1
        assert (students[arm] / "manifest.json").exists() and load_subject(students[arm]).dtype == "float32"


def test_factors_are_reasoning_over_ift():
    rng = random.Random()
    tokens = {arm: [rng.uniform(1, 9) for _ in range(3)] for arm in ARMS}
    cost = {arm: [rng.uniform(1, 9) for _ in range(3)] for arm in ARMS}
    measured = factor({"tokens": 2.0, "cost": 5.0}, tokens, cost)["measured"]
    assert measured["cost"]["rounds"] == pytest.approx(
        [r / i for r, i in zip(cost["reasoning"], cost["ift"], strict=True)]
    )


def test_answers_are_counted_and_graded(vllm_server, tiny_student, traces):
    """A student of random weights: nearly all answers are wrong, and the unfinished ones are all counted."""
    settings = GapSettings(concurrencies=(1, 4), requests=6, rounds=2, max_tokens=12)
    questions = prepare_questions(settings, read_traces(traces))
    assert len({problem.id for _, problem in questions}) == len(questions) == 2 * (2 * 6 + 4)
    assert [task.name for task, _ in questions[:4]] == ["add", "max", "add", "max"]
    subject = load_subject(Path(tiny_student))
    prompts = {
        p.id: ids
        for (_, p), ids in zip(questions, subject.chat.prompt_ids([p.prompt for _, p in questions]), strict=True)
    }
    rounds = []
    for number in range(2):
        batch = questions[number * 6 : number * 6 + 6]
        rounds.append({arm: _ask(vllm_server.endpoint, subject, prompts, batch, 4, 12) for arm in ARMS})
    level = _level(4, rounds)
    for arm in ARMS:
        total = {key: sum(r[arm][key] for r in rounds) for key in ("output_tokens", "seconds", "correct")}
        assert level[arm]["answers"] == 12 and 0 <= level[arm]["correct"] <= 12 - level[arm]["unfinished"]
        assert (
            level[arm]["output_tokens"] == pytest.approx(total["output_tokens"] / 12)
            and level[arm]["output_tokens"] <= 12
        )
        m = level[arm]["measured"]
        assert m["seconds_per_answer"] == pytest.approx(total["seconds"] / 12) and m["ttft_s"] > 0
        assert (m["seconds_per_correct"] is None) == (total["correct"] == 0)
    # The same student and questions in both arms, greedy: up to near-ties the same tokens, so a factor near one.
    assert level["per_answer"]["modelled"]["tokens"] == pytest.approx(1.0, rel=0.3)
    if not all(level[arm]["correct"] for arm in ARMS):
        assert level["per_correct"] is None


def test_bad_input(traces):
    with pytest.raises(InputError, match="both --ift and --reasoning"):
        validate(GapSettings, {"ift": "x"}, source="test")
    with pytest.raises(InputError, match="unknown task"):
        prepare_questions(GapSettings(tasks=("ad",)), read_traces(traces))

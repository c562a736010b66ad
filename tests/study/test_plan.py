"""`distill study plan`: its numbers against what a training counts and against sums by hand, and everything that it finds
wrong before anything is spent."""

import json
import math
import os
import socket
import subprocess

import numpy as np
import pytest
import yaml
from scipy import stats

from distill.errors import InputError
from distill.flops import hardware
from distill.packing.source import read_traces
from distill.process import child_environment, distill_command
from distill.settings import validate
from distill.study.cells import cells
from distill.study.plan import hub, problems, rates
from distill.study.plan.answers import Answering, Batch
from distill.study.plan.counts import Lengths, counted, expected
from distill.study.plan.memory import GIB, Device, is_divisible, while_serving, while_training
from distill.study.plan.plan import plan
from distill.study.plan.rates import Measured, read_rates
from distill.study.plan.seconds import ASSUMED_OF_ROOFLINE, START_S, Assumed
from distill.study.plan.shapes import known_models, model_shape
from distill.study.plan.table import show_plan
from distill.study.rows import ExpectedTokens
from distill.study.run import TOOK
from distill.study.settings import StudySettings
from distill.study.workplace import Workplace
from distill.training.settings import TrainSettings

MINI = {
    "title": "two students",
    "question": "what does it take?",
    "tasks": [{"task": "max", "train": 60, "test": 20}, {"task": "add", "train": 80, "test": 30}],
    "students": [{"name": "tiny", "student": "tiny", "learning_rate": 0.003, "seeds": [0, 1]}],
    "arms": [{"arm": "ift"}, {"arm": "reasoning"}, {"arm": "mixed:0.5"}],
    "training": {"row_tokens": 256, "batch": 8, "precision": "fp32"},
    "evaluation": {"max_tokens": 40},
    "serving": {"concurrencies": [1, 4], "requests": 8, "warmup_requests": 1},
    "margin_points": 2,
    "contrasts": [{"verdict_size": "tiny"}],
    "hardware": "cpu-2core",
}


def study(**values):
    return validate(StudySettings, json.loads(json.dumps(MINI)) | values, source="a test")


def big(student="Qwen/Qwen2.5-7B", *, row="h200-sxm", devices=1, **values):
    """A study of a published model whose pairs are not there, on a GPU's row."""
    expected_tokens = {"prompt": 200, "reasoning": 900, "ift": 150}
    rows = [{"name": "big", "student": student, "learning_rate": 1e-5, "seeds": [0], "devices": devices}]
    teacher = {"url": "http://127.0.0.1:9/v1", "model": "m", "usd_per_million_input": 1, "usd_per_million_output": 5}
    whole = {
        "students": rows,
        "traces": [
            {"name": "a", "tasks": {"max": 60, "add": 40}, "teacher": teacher, "expected_tokens": expected_tokens}
        ],
        "tasks": [{"task": "max", "test": 20}, {"task": "add", "test": 30}],
        "contrasts": [{"verdict_size": "big"}],
        "hardware": row,
        "training": {"row_tokens": 4096, "batch": 8},
    }
    return study(**(whole | values))


# An import that is not here.
DONE = {
    "name": "a",
    "import": {"file": "nowhere.jsonl"},
    "expected_tokens": {"prompt": 200, "reasoning": 900, "ift": 150},
    "expected_pairs": 100,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The traces of MINI, where a study has them."""
    out = tmp_path_factory.mktemp("plan") / "out"
    settings = study()
    place = Workplace(settings, out, 1)
    return settings, out, place.traces(settings.trace_rows[0])


@pytest.fixture(scope="module")
def planned(made):
    settings, out, _ = made
    return plan(settings, out)


def test_tokens_are_those_of_the_pairs(made, planned):
    """Every question once an epoch, in the mode of the arm; by the tokenizer that training makes."""
    _settings, _, traces = made
    pairs = read_traces(traces.path).pairs
    by_arm = {one["arm"]: one["training"] for one in planned["cells"]}
    assert {one["trainings"] for one in planned["cells"]} == {2}
    for arm in ("ift", "reasoning"):
        assert (by_arm[arm]["source"], by_arm[arm]["examples"]) == ("counted", len(pairs)) and len(pairs) == 140
        assert by_arm[arm]["steps"] == math.ceil(140 / 8)
    between = (by_arm["ift"]["tokens"] + by_arm["reasoning"]["tokens"]) / 2
    assert by_arm["mixed0.5"]["tokens"] == pytest.approx(between, rel=0.1)
    train = next(stage for stage in planned["stages"] if stage["stage"] == "train")
    assert train["tokens"] == 2 * sum(one["tokens"] for one in by_arm.values())
    assert train["flops"] == pytest.approx(2 * sum(one["flops"] for one in by_arm.values()))


def test_answers_are_as_long_as_the_solvers_own(made, planned):
    """On the very questions that are asked: 20 of max, whose answers are of one length, and 30 of add."""
    by_arm = {
        one["arm"]: {(b["what"], b["task"], b["concurrency"]): b for b in one["generation"]} for one in planned["cells"]
    }
    for task, questions in (("max", 20), ("add", 30)):
        ift, reasoning, mixed = (by_arm[arm]["graded", task, questions] for arm in ("ift", "reasoning", "mixed0.5"))
        assert ift["answers"] == questions and ift["output_tokens"] < reasoning["output_tokens"]
        assert mixed["output_tokens"] == pytest.approx((ift["output_tokens"] + reasoning["output_tokens"]) / 2)
        for level in (1, 4):
            assert by_arm["ift"]["load", task, level]["answers"] == 8 + 1 + level
    assert by_arm["ift"]["graded", "max", 20]["output_tokens"] == 2  # a letter and the end of the turn


def test_what_is_expected_is_what_would_be_counted(made, rng):
    """Pairs of one length: the same tokens, steps and FLOPs as a count over their documents."""
    lengths = {
        "prompt": int(rng.integers(5, 40)),
        "reasoning": int(rng.integers(60, 200)),
        "ift": int(rng.integers(2, 30)),
    }
    pairs, shape = int(rng.integers(50, 200)), model_shape("tiny")
    base = {"student": "tiny", "row_tokens": 512, "batch": int(rng.integers(1, 20))}
    of = {
        "ift": (0, pairs),
        "reasoning": (pairs, 0),
        "mixed:0.5": (pairs / 2, pairs / 2),
        "sequential:0.5": (pairs / 2, pairs / 2),
    }
    epochs = int(rng.integers(1, 4))
    for arm, (with_reasoning, without) in of.items():
        found = expected(TrainSettings(arm=arm, epochs=epochs, **base), shape, ExpectedTokens(**lengths), pairs)
        documents = [lengths["prompt"] + lengths["reasoning"]] * int(2 * epochs * with_reasoning)
        documents += [lengths["prompt"] + lengths["ift"]] * int(2 * epochs * without)
        learned = 2 * epochs * (with_reasoning * lengths["reasoning"] + without * lengths["ift"])
        assert found.examples == epochs * pairs and found.tokens == round(sum(documents) / 2)
        assert found.supervised_tokens == round(learned / 2) and found.steps == math.ceil(
            epochs * pairs / base["batch"]
        )
        assert found.flops == pytest.approx(shape.model.training_flops(documents, round(learned)) / 2)
    reasoning = expected(TrainSettings(arm="reasoning", **base), shape, ExpectedTokens(**lengths), pairs)
    for match in ("tokens", "flops"):
        matched = expected(TrainSettings(arm="ift", match=match, **base), shape, ExpectedTokens(**lengths), pairs)
        assert getattr(matched, match) == pytest.approx(getattr(reasoning, match), rel=1e-6)


def test_a_plan_that_was_trained_says_what_it_took(made):
    """One student is trained by the real command: tokens and FLOPs are those of its manifest, and it is not counted as
    still to do."""
    settings, out, _ = made
    member = cells(settings)[2].students()[0]  # a mix, seed 0, which is the one that is counted
    student = Workplace(settings, out, 1).train(member)
    name = f"train {member.student}"
    (out / TOOK).write_text(f'{{"stage": "{name}", "seconds": 12.5}}\n{{"stage": "{name}", "seconds": 0.2}}\n{{"sta')
    found = plan(settings, out)
    (row,) = found["actual"]
    assert (row["cell"], row["stage"], row["students"]) == ("tiny-mixed0.5", "train", 1)
    for name in ("examples", "tokens", "supervised_tokens", "steps", "flops"):
        assert row["planned"][name] == row["actual"][name] == student.summary[name]
    assert row["actual"]["stage_seconds"] == 12.5  # the longest: found finished later, it took no time
    assert row["actual"]["seconds"] == student.summary["measured"]["seconds"]
    assert [stage["done"] for stage in found["stages"]] == [1, 1, 0]
    counted_again = counted(
        member.train_settings(settings),
        read_traces(Workplace(settings, out, 1).traces(settings.trace_rows[0]).path),
        out / "documents",
    )
    assert counted_again.tokens == student.summary["tokens"]


def test_nothing_is_left_where_no_folder_is_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = plan(study(arms=[{"arm": "ift"}, {"arm": "reasoning"}]))
    assert list(tmp_path.iterdir()) == [] and found["out"] is None and found["errors"] == []
    assert [one["source"] for one in found["traces"]] == ["made"] and found["total"]["usd"] is None
    json.dumps(found, allow_nan=False)
    show_plan(found)
    said = capsys.readouterr()
    assert "tiny-reasoning" in said.out and "still to do" in said.out and "tokens are counted" in said.err
    assert "already tokenized" not in said.err  # what concerns who trains


def test_an_expected_study_is_priced(monkeypatch):
    """Teacher tokens and money, training and generation by hand on a GPU's row."""
    monkeypatch.setattr(problems, "check_endpoint", lambda endpoint: None)
    found = plan(big("Qwen/Qwen2.5-1.5B"), row="h100-sxm")
    assert found["hardware"] == "h100-sxm" and found["errors"] == []
    (traces,) = found["traces"]
    assert (traces["source"], traces["count"]) == ("expected", 100)
    assert (traces["input_tokens"], traces["output_tokens"]) == (2 * 100 * 200, 100 * (900 + 150))
    assert traces["usd"] == pytest.approx((40_000 * 1 + 105_000 * 5) / 1e6)
    by_arm = {one["arm"]: one for one in found["cells"]}
    assert by_arm["ift"]["training"]["tokens"] == 100 * 350 and by_arm["reasoning"]["training"]["tokens"] == 100 * 1100
    assert by_arm["ift"]["shape_from"] == "models.yaml" and by_arm["ift"]["parameters"] == 1_543_714_304
    flops = by_arm["reasoning"]["training"]["flops"]
    assert by_arm["reasoning"]["seconds"]["train"] == pytest.approx(START_S["train"] + flops / (989e12 * 0.4))
    seconds = sum(sum(one["seconds"].values()) for one in found["cells"])
    assert found["total"]["device_seconds"] == pytest.approx(seconds)
    assert found["total"]["usd"] == pytest.approx(traces["usd"] + 2.5 * seconds / 3600)
    assert all(len(one["note"] or "") == 0 for one in found["traces"])


def test_a_teacher_of_our_own_takes_devices():
    """Its time at the roofline, its price, and whether it fits."""
    expected_tokens = {"prompt": 200, "reasoning": 900, "ift": 150}
    row = {"name": "a", "tasks": {"max": 60}, "expected_tokens": expected_tokens, "gold": "answer"}
    rows = [row | {"teacher": {"vllm": "Qwen/Qwen2.5-7B-Instruct", "max_tokens": 500}}]
    found = plan(big("Qwen/Qwen2.5-1.5B", traces=rows))
    (traces,) = found["traces"]
    assert (traces["input_tokens"], traces["output_tokens"]) == (60 * 200, 60 * 500)
    assert traces["seconds"] > START_S["serve"] and traces["usd"] == pytest.approx(3.5 * traces["seconds"] / 3600)
    assert found["stages"][0]["device_seconds"] == traces["seconds"]
    rows = [row | {"teacher": {"vllm": "Qwen/Qwen3-32B"}}]
    assert "serving Qwen/Qwen3-32B needs about" in plan(big("Qwen/Qwen2.5-1.5B", traces=rows), row="l4")["errors"][0]
    for arguments in (["--tensor-parallel-size", "4"], ["--tensor-parallel-size=4"]):
        rows = [row | {"teacher": {"vllm": "Qwen/Qwen3-32B", "server": {"arguments": arguments}}}]
        assert plan(big("Qwen/Qwen2.5-0.5B", traces=rows))["errors"] == []


def test_what_is_not_known_is_said():
    settings = big(traces=[{"name": "a", "import": {"file": "pairs-that-are-not-here.jsonl"}}])
    found = plan(settings)
    (traces,) = found["traces"]
    assert traces["source"] == "unknown" and "expected_tokens" in traces["note"] and "expected_pairs" in traces["note"]
    assert all(one["training"] is None for one in found["cells"]) and found["total"]["usd"] is None


# What is wrong.


def test_a_cell_that_cannot_fit_is_an_error(monkeypatch):
    monkeypatch.setattr(problems, "check_endpoint", lambda endpoint: None)
    (error, *_) = plan(big(row="l4"))["errors"]
    assert error.startswith("big-") and "(and 2 more of big): training needs about" in error
    assert "on each of 1 l4" in error and "activation_checkpointing: full, or more `devices`" in error
    assert plan(big(devices=4))["errors"] == []
    narrow = {"row_tokens": 65536, "batch": 8}
    assert "training needs" in plan(big(devices=4, training=narrow))["errors"][0]
    student = big(devices=4).students[0].model_dump() | {"activation_checkpointing": "full"}
    again = plan(big(students=[student], training=narrow))
    assert again["errors"] == []
    lora = plan(big(row="h200-sxm", training={"row_tokens": 1024, "batch": 8, "lora_rank": 16}))
    assert lora["errors"] == []
    assert lora["cells"][0]["memory"]["training"]["total_gib"] < 60
    assert lora["cells"][0]["trainable_parameters"] < 0.01 * lora["cells"][0]["parameters"]


def test_an_endpoint_that_is_down_is_found_quickly():
    with socket.socket() as nobody:  # a port that nobody listens at
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        settings = big(comparators={"teacher": {"url": url, "model": "m"}})
        errors = plan(settings)["errors"]
    assert any(e.startswith("traces a: endpoint http://127.0.0.1:9/v1: cannot be reached") for e in errors)
    assert any(e.startswith(f"comparators.teacher: endpoint {url}: cannot be reached") for e in errors)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tasks": [{"task": "max", "train": 60, "test": 4000}]}, "max"),
        ({"tasks": [{"task": "gsm8k:no-such-file.jsonl", "train": 60, "test": 4}]}, "no-such-file.jsonl"),
        ({"students": [MINI["students"][0] | {"student": "google/gemma-3-4b-it"}]}, "reads more than text"),
    ],
)
def test_what_is_wrong_with_a_preset_is_found(values, said):
    assert any(said in error for error in plan(study(**values))["errors"])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"evaluation": {"max_tokens": 100_000}}, "tiny-ift: prompts and --max-tokens need 1000"),
        ({"serving": MINI["serving"] | {"max_tokens": 100_000}}, "tiny-ift: prompts and --max-tokens need 1000"),
        ({"arms": [*MINI["arms"], {"arm": "reasoning", "mode": "ift"}]}, "tiny-reasoning-mode_ift: "),
        (
            {"arms": [*MINI["arms"], {"arm": "mixed:0.5", "name": "both", "training": {"mode_signal": "prompt"}}]},
            "tiny-both: ",
        ),
    ],
)
def test_a_student_that_could_not_be_asked_is_found_before_it_is_trained(values, said):
    errors = plan(study(**values))["errors"]
    assert any(error.startswith(said) for error in errors), errors


def test_devices_that_do_not_divide_a_model_are_found():
    (error,) = plan(big("Qwen/Qwen2.5-0.5B", devices=4, traces=[DONE]))["errors"]
    assert error.startswith("big: Qwen/Qwen2.5-0.5B cannot be served by 4 devices") and "14 attention heads" in error
    assert plan(big("Qwen/Qwen2.5-0.5B", devices=2, traces=[DONE]))["errors"] == []
    here = model_shape("tiny").model
    assert [is_divisible(here, n) for n in (1, 2, 3, 4)] == [True, True, False, False]


def test_vllm_that_is_missing_is_wrong_only_where_the_study_will_run(monkeypatch):
    def missing():
        raise InputError("vLLM is not installed")

    monkeypatch.setattr(problems, "require_vllm", missing)
    here, elsewhere = problems.Problems(), problems.Problems()
    problems.engine(hardware("cpu-2core"), here)
    monkeypatch.setattr(problems.torch.cuda, "is_available", lambda: False)
    problems.engine(hardware("h200-sxm"), elsewhere)
    assert here.errors == ["vLLM is not installed"] and elsewhere.errors == []
    assert "vLLM is not installed" in elsewhere.notes and any("there is none here" in note for note in elsewhere.notes)


def test_the_command_ends_with_code_2_and_one_line(tmp_path):
    preset = tmp_path / "preset.yaml"
    preset.write_text(yaml.safe_dump(MINI | {"tasks": [{"task": "maxx", "train": 10, "test": 5}]}))
    command = distill_command("study", "plan", str(preset))
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(1), timeout=300)
    assert done.returncode == 2 and "did you mean 'max'" in done.stderr and "Traceback" not in done.stderr


def test_calibration_needs_a_folder_and_this_machine():
    with pytest.raises(InputError, match="--out"):
        plan(study(), measure=True)


# Memory, seconds, power.


def test_memory_is_shared_out_over_devices(rng):
    shape, settings = model_shape("Qwen/Qwen2.5-3B"), TrainSettings(student="Qwen/Qwen2.5-3B", row_tokens=2048)
    mean = ExpectedTokens(prompt=100, reasoning=900, ift=100)
    training = expected(settings, shape, mean, 1000)
    gpu = Device.of(hardware("h200-sxm"))
    one, four = (while_training(settings, shape, training, gpu, n) for n in (1, 4))
    assert one.parts["weights"] == 4 * shape.parameters and four.parts["weights"] == shape.parameters
    assert one.has == 140 * GIB and four.total < one.total and four.parts["activations"] == one.parts["activations"]
    longest = int(rng.integers(1000, 30000))
    served = while_serving(shape, gpu, 1, longest)
    assert served.parts["weights"] == 2 * shape.parameters
    assert (
        served.parts["longest_answer"] == longest * 2 * 36 * 2 * 128 * 2
    )  # keys and values, layers, heads, size, bytes
    assert not while_serving(shape, Device("cuda", 4 * GIB), 1, longest).fits


def test_generation_is_a_roofline(rng):
    """Few at a time wait for the weights, very many for the products."""
    shape, row = model_shape("meta-llama/Llama-3.1-8B"), hardware("h100-sxm")
    assumed = Assumed(row, "cuda", 989e12)
    weights = 2 * shape.parameters
    output, answers = int(rng.integers(200, 900)), int(rng.integers(10, 50))
    alone = Batch("graded", "t", answers, 1, 0.0, output, 2048)
    seconds = ASSUMED_OF_ROOFLINE * (assumed.serving("s", shape, [alone], 1) - START_S["serve"])
    kv = output / 2 * shape.kv_bytes
    assert seconds == pytest.approx(answers * output * (weights + kv) / 3350e9, rel=0.02)
    together = Batch("graded", "t", 64 * answers, 64, 0.0, output, 2048)
    many = ASSUMED_OF_ROOFLINE * (assumed.serving("s", shape, [together], 1) - START_S["serve"])
    assert many == pytest.approx(answers * output * (weights + 64 * kv) / 3350e9, rel=0.02)
    assert assumed.serving("s", shape, [alone], 4) < assumed.serving("s", shape, [alone], 1)
    assert Assumed(hardware("cpu-2core"), "cpu", 1e11).serving("s", shape, [alone], 1) is None


def test_measured_rates_are_fitted_and_used(tmp_path, rng):
    """Trainings that take a time for each step and each FLOP give these two back."""
    step, flop = rng.uniform(0.001, 0.1), rng.uniform(1e-12, 1e-10)
    found = []
    for flops_a_step in (3e8, rng.uniform(6e8, 3e9)):
        steps = int(rng.integers(20, 200))
        flops = steps * flops_a_step
        found.append({"steps": steps, "flops": flops, "seconds": step * steps + flop * flops, "start_seconds": 4.0})
    fitted = rates._fit(found)
    assert fitted["seconds_per_step"] == pytest.approx(step, rel=1e-6)
    assert fitted["seconds_per_flop"] == pytest.approx(flop, rel=1e-6)
    alone = rates._fit(found[:1])
    assert alone["seconds_per_flop"] == pytest.approx(found[0]["seconds"] / found[0]["flops"])
    levels = [
        {"concurrency": 1, "seconds_per_answer": 0.01, "seconds_per_token": 0.004},
        {"concurrency": 256, "seconds_per_answer": 0.002, "seconds_per_token": 0.0001},
    ]
    serving = {"start_seconds": 20.0, "levels": levels}
    (tmp_path / "calibration.json").write_text(json.dumps({"sizes": {"s": {"training": fitted, "serving": serving}}}))
    otherwise = Assumed(hardware("cpu-2core"), "cpu", 1e11)
    measured = read_rates(tmp_path, otherwise)
    shape = model_shape("tiny")
    training = expected(TrainSettings(student="tiny"), shape, ExpectedTokens(prompt=9, reasoning=30, ift=4), 500)
    assert measured.training("s", shape, training, 1) == pytest.approx(step * training.steps + flop * training.flops)
    assert measured.start("s", 1) == 4.0 and measured.start("other", 1) == otherwise.start("other", 1)
    assert measured.training("other", shape, training, 1) == otherwise.training("other", shape, training, 1)
    batches = [Batch("graded", "t", 100, 200, 9, 20, 40), Batch("load", "t", 10, 2, 9, 20, 40)]
    assert measured.serving("s", shape, batches, 1) == pytest.approx(20 + 100 * 0.004 + 10 * 0.09)
    assert isinstance(measured, Measured) and read_rates(tmp_path / "nowhere", otherwise) is otherwise
    (tmp_path / "calibration.json").write_text("{}")
    with pytest.raises(InputError, match="calibrate again"):
        read_rates(tmp_path, otherwise)


def test_what_can_be_shown_by_one_seed_is_the_normal_formula():
    settings = study(tasks=[{"task": "max", "train": 60, "test": 200}])
    found = plan(settings)["detectable"]
    (one,) = found
    errors = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert one["points"] == pytest.approx(100 * errors * np.sqrt(0.2 / 200)) and one["seeds"] == 2
    assert one["about"] == "these trained students" and one["verdict"]


@pytest.mark.parametrize(
    ("arm", "asked", "share"),
    [
        ("ift", {}, 0.0),
        ("reasoning", {}, 1.0),
        ("mixed:0.25", {}, 0.25),
        ("sequential:0.25", {}, 1.0),
        ("sequential:0", {}, 0.0),
        ("reasoning", {"think": "off"}, 0.0),
        ("ift", {"think": "on"}, 1.0),
    ],
)
def test_how_an_arm_is_taken_to_answer(arm, asked, share):
    lengths = Lengths({None: 10.0}, {"ift": {None: 5.0}, "reasoning": {None: 105.0}}, {None: 100.0})
    settings = TrainSettings(student="tiny", arm=arm)
    how = Answering.of_arm(settings, study().evaluate_settings(**asked), lengths)
    assert how.tokens("any", 1000) == pytest.approx(5 + 100 * share)
    assert how.tokens("any", 50) == pytest.approx(share * 50 + (1 - share) * 5)
    assert how.tokens("any", 1000, budget=20) == pytest.approx(share * 25 + (1 - share) * 5)


def test_without_the_hub_nobody_waits_for_it(monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.delenv(hub.OFFLINE, raising=False)
    before = constants.HF_HUB_OFFLINE
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    with hub.from_the_cache_at_once():
        assert constants.HF_HUB_OFFLINE is True
        with pytest.raises(InputError, match=r"config\.json cannot be read"):
            model_shape("nobody/has-this-model")
    assert constants.HF_HUB_OFFLINE is before and hub.OFFLINE not in os.environ
    assert "Qwen/Qwen2.5-7B-Instruct" in known_models()

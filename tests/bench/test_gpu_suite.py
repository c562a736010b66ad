"""The GPU suite run on a CPU with tiny shapes: everything but the CUDA calls is what runs on a GPU."""

import json
import secrets
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from distill.bench import gpu_targets, rounds
from distill.bench.gpu import bench_gpu, show_gpu
from distill.bench.gpu_correctness import correctness_pieces
from distill.bench.gpu_pieces import Context, GpuSuiteSettings, all_pieces
from distill.bench.names import PRODUCTS
from distill.bench.report import render_report
from distill.bench.rounds import Clock, DeviceLost, take_turns
from distill.errors import InputError
from distill.process import child_environment

SEED = secrets.randbits(31)
TINY = GpuSuiteSettings(
    budget_seconds=300.0,
    device="cpu",
    seed=SEED,
    rounds=(2, 2),
    seconds=0.01,
    heads=(("0.5B", 32, 300), ("7B", 48, 400)),
    tokens=(64, 48),
    ignored=(0.0, 0.5),
    teacher_entries=5,
    attention_tokens=128,
    attention_heads=((16, 4, 2),),
    uniform_lengths=(32,),
    log_normal_mean=30.0,
    models=(("0.5B", 32, 1, 2, 1, 48, 300),),
    training_tokens=(64, 96),
    exact_loss=(40, 64, 300),
    exact_large=(64, 400),
    exact_large_logits=20000,
    exact_lengths=(1, 2, 17, 33),
    exact_head_dims=(16,),
)
SMALLEST = replace(TINY, heads=TINY.heads[:1], tokens=(64,), ignored=(0.5,), uniform_lengths=(), training_tokens=(64,))


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """(result, file) of a whole run."""
    file = tmp_path_factory.mktemp("suite") / "gpu-test.json"
    return bench_gpu(TINY, file), file


def test_everything_is_measured_or_says_why_not(suite):
    result, file = suite
    assert json.loads(file.read_text()) == json.loads(json.dumps(result))
    assert list(result["pieces"]) and result["pending"] == []
    assert result["pieces"].keys() == {piece.key for piece in all_pieces(TINY)}
    entries = 0
    for key, piece in result["pieces"].items():
        measured = piece["measured"]
        assert "error" not in measured, f"{key}: {measured}"
        for part in (measured.get("contenders"), measured.get("forward"), measured.get("backward")):
            for name, entry in (part or {}).items():
                entries += 1
                if name in ("distill", "eager", "SDPA padded", "plain loss", PRODUCTS, "linear_cross_entropy"):
                    assert 0 < entry["low"] <= entry["seconds"] <= entry["high"], f"{key}, {name}: {entry}"
                else:
                    assert "seconds" in entry or entry["missing"], f"{key}, {name}: {entry}"
    assert entries > 50


def test_the_checks_pass_and_our_triton_kernels_say_that_they_need_a_gpu(suite):
    result, _ = suite
    checks = {key: piece["measured"] for key, piece in result["pieces"].items() if piece["section"] == "correctness"}
    assert result["problems"] == [], f"seed {SEED}"
    needs_gpu = {key for key in checks if any(name in key for name in ("(triton)", "(anchored)", "(rows)"))}
    assert len(needs_gpu) > 10 and all(checks[key]["missing"] and checks[key]["passed"] is None for key in needs_gpu)
    assert all(checks[key]["passed"] is True for key in checks.keys() - needs_gpu)


def test_correctness_stands_before_any_timing():
    sections = [piece.about["section"] for piece in all_pieces(GpuSuiteSettings())]
    first_timing = next(i for i, section in enumerate(sections) if section != "correctness")
    assert "correctness" not in sections[first_timing:] and first_timing > 40


def test_the_default_shapes_are_those_of_the_targets():
    """Heads of Qwen2.5 at three row counts, some with more than 2^31 logits."""
    pieces = [p.about for p in all_pieces(GpuSuiteSettings()) if p.about["section"] == "linear_cross_entropy"]
    assert {p["head"] for p in pieces} == {"0.5B", "1.5B", "3B", "7B"}
    assert {p["tokens"] for p in pieces} == {8192, 16384, 32768} and {p["ignored"] for p in pieces} == {0.0, 0.5}
    assert len(pieces) == 24 and max(p["tokens"] * p["vocabulary"] for p in pieces) > 2**31
    attention = [p.about for p in all_pieces(GpuSuiteSettings()) if p.about["section"] == "varlen_attention"]
    assert {p["lengths"] for p in attention} == {"log-normal", "2048 each", "8192 each", "32768 each"}
    assert {p["head_dim"] for p in attention} == {64, 128} and {p["tokens"] for p in attention} == {32768}
    for p in attention:  # causal: half of the square and the diagonal
        if p["lengths"] == "32768 each":
            assert p["forward_flops"] == 4 * p["heads"] * p["head_dim"] * 32768 * 32769 / 2


def test_tables_targets_and_the_report_come_from_the_file(suite, capsys):
    result, file = suite
    show_gpu(result)
    shown = capsys.readouterr().out
    assert "runs on cuda, not on cpu" in shown and "targets" in shown
    text, images = render_report(file.parent)
    assert "Kernels on a GPU: gpu-test" in text and set(images) == {"gpu-test-attention.svg"}
    assert images["gpu-test-attention.svg"].startswith("<?xml")
    for name in images:
        assert f"(images/{name})" in text
    assert render_report(file.parent) == (text, images)  # the same bytes


@pytest.mark.parametrize("problems", [[], ["correctness/linear_cross_entropy/plain, bf16: error against float64 1e-1"]])
def test_the_command_ends_by_its_problems(problems, suite, monkeypatch, capsys):
    from distill import cli

    result, file = suite
    monkeypatch.setattr("distill.bench.gpu.bench_gpu", lambda *_, **__: result | {"problems": problems})
    monkeypatch.setattr("sys.argv", ["distill", "bench", "gpu", "--out", str(file)])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert (exit.value.code or 0) == (1 if problems else 0)
    said = capsys.readouterr()
    assert all(problem in said.err.replace("\n", " ") for problem in problems) and "correctness" in said.out


def _start(settings, file):
    """The suite in a process of its own."""
    code = (
        "import json, sys; from pathlib import Path; from distill.bench.gpu import *; "
        "bench_gpu(GpuSuiteSettings(**json.loads(sys.argv[1])), Path(sys.argv[2]))"
    )
    arguments = [json.dumps(vars(settings)), str(file)]
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=child_environment(1))


def _wait_for_pieces(file, count):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if file.exists() and len(json.loads(file.read_text())["pieces"]) >= count:
            return
        time.sleep(0.02)
    raise AssertionError("nothing was measured")


def test_killed_midway_it_goes_on_and_keeps_what_it_had(tmp_path):
    file = tmp_path / "gpu.json"
    process = _start(SMALLEST, file)
    _wait_for_pieces(file, 8)
    process.kill()
    process.wait()
    before = json.loads(file.read_text())
    keys = [piece.key for piece in all_pieces(SMALLEST)]
    assert before["pending"] == [key for key in keys if key not in before["pieces"]] != []
    # Another seed on the second call: the inputs stay those of the file.
    after = bench_gpu(replace(SMALLEST, seed=SEED + 1), file)
    assert after["pending"] == [] and len(after["sessions"]) == 2 and after["settings"]["seed"] == SEED
    for key, piece in before["pieces"].items():
        assert after["pieces"][key] == piece
    assert {piece["session"] for piece in after["pieces"].values()} == {0, 1}

    changed = json.loads(file.read_text())
    changed["environment"]["versions"]["torch"] = "0.0.1"
    changed["pieces"].pop(keys[-1])
    file.write_text(json.dumps(changed))
    with pytest.raises(InputError, match=r"something else .*versions\.torch 0\.0\.1 ->") as error:
        bench_gpu(SMALLEST, file)
    assert "\n" not in str(error.value) and json.loads(file.read_text()) == changed
    with pytest.raises(InputError, match="other settings"):
        bench_gpu(replace(SMALLEST, teacher_entries=3), file)
    file.write_text("{}")
    with pytest.raises(InputError, match="not made by"):
        bench_gpu(SMALLEST, file)


def test_the_child_starts_no_piece_after_its_time():
    from distill.bench.gpu_worker import work

    messages = []
    work(SMALLEST, messages.append, done=[], crashed={}, deadline=time.monotonic() - 1.0)
    assert [list(message) for message in messages] == [["environment", "session"]]
    assert messages[0]["session"]["measured"]["matmul_flops"] > 0


def test_without_a_gpu_it_says_what_to_run_instead(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match=r"no CUDA device.*distill bench kernels") as error:
        bench_gpu(GpuSuiteSettings(), tmp_path / "gpu.json")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_it_starts_where_little_is_installed(tmp_path):
    """torch, transformers and what comes with them: no pydantic, and none of the packages that the study needs."""
    code = """
import json, sys, time
from importlib.machinery import PathFinder
absent = {"pydantic", "datasets", "vllm", "liger_kernel", "trl", "rouge_score", "peft", "accelerate", "tensorboard"}
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, *more):
        return None if name.split(".")[0] in absent else super().find_spec(name, *more)
sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
import distill.cli, distill.bench.gpu
from distill.bench.gpu_pieces import GpuSuiteSettings, all_pieces
from distill.bench.gpu_worker import work
settings = GpuSuiteSettings(**json.loads(sys.argv[1]))
wanted = {}
for piece in all_pieces(settings):
    wanted.setdefault(piece.about["section"], piece.key)
messages = []
done = [piece.key for piece in all_pieces(settings) if piece.key not in wanted.values()]
work(settings, messages.append, done=done, crashed={}, deadline=time.monotonic() + 100.0)
values = {message["done"].split("/")[0]: message["value"] for message in messages if "done" in message}
print(json.dumps([values, sorted(absent & sys.modules.keys())]))
"""
    run = [sys.executable, "-c", code, json.dumps(vars(SMALLEST))]
    done = subprocess.run(run, capture_output=True, text=True, env=child_environment(1), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    values, present = json.loads(done.stdout.splitlines()[-1])
    assert present == [] and len(values) == 6
    assert not any("error" in value for value in values.values()), values
    assert values["correctness"]["passed"] is True
    for section in ("linear_cross_entropy", "topk_divergence"):
        assert values[section]["contenders"]["distill"]["seconds"] > 0
    assert values["training_step"]["contenders"]["distill"]["seconds"] > 0


# --- rules of turns ---------------------------------------------------------------------------------------------------


def test_turns_are_taken_in_rounds_and_a_failure_stops_nobody_else():
    calls = []

    def contender(name, fail_at=None):
        def call():
            calls.append(name)
            if fail_at is not None and calls.count(name) >= fail_at:
                raise ValueError(f"{name} broke\nsecond line")

        return call

    contenders = {
        "a": contender("a"),
        "late": contender("late", 5),
        "never": contender("never", 1),
        "b": contender("b"),
    }
    heard = []
    found = take_turns(contenders, Clock(torch.device("cpu")), rounds=(4, 4), seconds=0.0, announce=heard.append)
    assert heard == ["a", "late", "never", "b"]
    assert found["never"] == {"error": "ValueError: never broke"}
    assert found["late"] == {"error": "ValueError: late broke"}
    assert len(found["a"]["rounds"]) == len(found["b"]["rounds"]) == 4
    timed = [name for name in calls[-12:] if name in "ab"]
    assert timed[-8:] == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_out_of_memory_is_called_so_and_a_lost_device_ends_the_process(monkeypatch):
    assert rounds.reason(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")) == "out of memory"
    clock = Clock(torch.device("cpu"))

    def recover():
        raise DeviceLost("illegal memory access")

    monkeypatch.setattr(clock, "recover", recover)
    with pytest.raises(DeviceLost):
        take_turns({"bad": lambda: 1 / 0}, clock, rounds=(1, 1), seconds=0.0)


def test_a_wrong_kernel_fails_its_check(monkeypatch):
    import distill.kernels

    right = distill.kernels.linear_cross_entropy

    def wrong(*args, **kwargs):
        loss, stats = right(*args, **kwargs)
        return loss * 1.2, stats

    monkeypatch.setattr(distill.kernels, "linear_cross_entropy", wrong, raising=False)
    pieces = {piece.key: piece for piece in correctness_pieces(TINY)}
    context = Context(TINY, Clock(torch.device("cpu")))
    for key in ("plain, bf16", "mean, bf16", "everything, fp32", "more than 2^31 logits, bf16, sampled"):
        assert pieces[f"correctness/linear_cross_entropy/{key}"].run(context)["passed"] is False, key


def test_a_backend_is_forced_and_the_choice_is_back_afterwards():
    from distill.bench.loss_peers import only_backend
    from distill.kernels.logits_backends import choose_backend

    chosen = choose_backend("cpu", torch.bfloat16, 64)
    with only_backend("torch"):
        assert choose_backend("cuda", torch.bfloat16, 64) == "torch"
    assert choose_backend("cpu", torch.bfloat16, 64) == chosen


def test_a_kernel_that_raises_fails_its_check(monkeypatch):
    import distill.kernels

    def broken(*_, **__):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(distill.kernels, "linear_cross_entropy", broken, raising=False)
    piece = correctness_pieces(TINY)[0]
    found = piece.run(Context(TINY, Clock(torch.device("cpu"))))
    assert found == {"passed": False, "error": "RuntimeError: no kernel image"}


def _contender(seconds, peak=None):
    return {"seconds": seconds, "low": seconds, "high": seconds, "rounds": [seconds, seconds], "peak_bytes": peak}


def test_targets_are_the_worst_of_all_shapes():
    gib = 1 << 30
    pieces = {}
    for tokens, ours, half in ((8192, 1.05, 0.5), (16384, 1.2, 0.6)):
        for ignored, factor in ((0.0, 1.0), (0.5, half)):
            contenders = {
                PRODUCTS: _contender(0.01 * factor),
                "distill": _contender(0.01 * ours * factor, peak=4 * gib),
                "Liger": _contender(0.02 * factor),
                "Cut Cross-Entropy": {"missing": "cut-cross-entropy is not installed"},
            }
            pieces[f"{tokens} {ignored}"] = {
                "section": "linear_cross_entropy",
                "head": "7B",
                "tokens": tokens,
                "ignored": ignored,
                "gradient_bytes": gib,
                "accumulator_bytes": 2 * gib,
                "measured": {"contenders": contenders},
            }
    for tokens, seconds in ((16384, 1.0), (32768, 4.0)):
        contenders = {"distill": _contender(seconds), "distill, Liger layers": _contender(seconds / 2)}
        contenders["plain loss"] = _contender(seconds / 8)
        about = {"section": "training_step", "model": "1.5B", "tokens": tokens, "flops": 9e14}
        pieces[f"step {tokens}"] = about | {"measured": {"contenders": contenders, "peak_flops": 1e15}}
    rows = {row[0]: row[1:] for row in gpu_targets.gpu_targets({"pieces": pieces})}
    mfu = rows["MFU of a training step, 1.5B at 32768 tokens, best of ours"]
    assert mfu == ["at least 50%", "45.0%", "missed"]
    assert rows["linear cross-entropy over its three products, 7B, worst"][1:] == ["1.2x (2 of 2 shapes)", "missed"]
    assert rows["linear cross-entropy over its three products, 0.5B, worst"][-1] == "not measured"
    assert rows["linear cross-entropy over Liger, worst of all shapes"][1:] == ["0.6x (4 of 4 shapes)", "met"]
    assert rows["linear cross-entropy over Cut Cross-Entropy, worst of all shapes"][-1] == "not measured"
    extra = rows["linear cross-entropy, GiB beyond inputs, gradients and fp32 dW, most"]
    assert extra == ["at most 1.5", "1 (4 of 4 shapes)", "met"]
    half = rows["linear cross-entropy with half the rows ignored over all rows, worst"]
    assert half[1:] == ["0.6x (2 of 2 shapes)", "missed"]


def test_other_sources_are_another_environment(tmp_path, monkeypatch):
    from distill.bench import gpu_environment

    monkeypatch.setattr(gpu_environment, "_tree", lambda: tmp_path)
    (tmp_path / "kernels").mkdir()
    found = []
    for text in ("a = 1\n", "a = 2\n", "a = 1\n"):
        (tmp_path / "kernels" / "fast.py").write_text(text)
        (tmp_path / "unrelated.py").write_text(str(len(found)))
        found.append(gpu_environment.environment(torch.device("cpu")))
    assert found[0] == found[2] != found[1] and found[0]["sources"] != found[1]["sources"]
    assert found[0]["versions"]["torch"] == torch.__version__
    assert gpu_environment.session(torch.device("cpu"), "abc123")["commit"] == "abc123"
    assert gpu_environment.session(torch.device("cpu"), None)["commit"] is None  # no git there
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "gpu_tables.py").write_text("shown = 'otherwise'\n")
    assert gpu_environment.environment(torch.device("cpu")) == found[0]


def test_the_hash_of_the_sources_holds_every_file_that_measures():
    from distill.bench import gpu_environment as environment

    tree = environment._tree()
    hashed = {file.relative_to(tree).as_posix() for pattern in environment._SOURCES for file in tree.glob(pattern)}
    assert all(list(tree.glob(pattern)) for pattern in environment._SOURCES), "a pattern that finds nothing"
    for name in ("gpu_timing", "gpu_training", "gpu_correctness", "gpu_tuning", "gpu_pieces", "cases", "rounds"):
        assert f"bench/{name}.py" in hashed
    for kind in ("loss", "divergence", "attention"):
        assert f"bench/{kind}_peers.py" in hashed

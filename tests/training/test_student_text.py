"""What a person is told of a training: a few lines in place of all its numbers, which the JSON keeps."""

import json

import pytest

from distill import artifact, cli
from distill.training.settings import RunOptions, TrainSettings
from distill.training.student_text import show_estimate, show_student
from distill.training.train import train


@pytest.fixture
def distill(monkeypatch, capsys):
    """distill(*arguments): standard output of a command that ends well."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["distill", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    return run


def test_a_training_is_told_in_a_dozen_lines_and_json_has_the_rest(traces, tmp_path, distill, capsys, rng):
    share = [0.25, 0.5, 0.75][rng.integers(3)]
    settings = TrainSettings(
        student="tiny", arm=f"mixed:{share}", batch=16, row_tokens=512, validation=0.2, tokens=3000
    )
    out = tmp_path / "student"
    made = train(settings, traces, RunOptions(out=out, threads=1, tensorboard=False))
    found = made.summary
    capsys.readouterr()
    flags = ("--arm", settings.arm, "--batch", 16, "--row-tokens", 512, "--validation", 0.2, "--tokens", 3000)
    command = ("train", "--traces", traces, "--student", "tiny", "--threads", 1, "--out", out, *flags)
    said = distill(*command)
    assert len(said.splitlines()) <= 13 and str(out) in said and str(traces) in said
    for mode in ("ift", "reasoning"):
        shares = found["shares"][mode]
        told = ", ".join(f"{100 * shares[name]:.1f} % of {name}" for name in ("examples", "tokens", "loss"))
        assert f"  {mode}: {told}\n" in said
    assert f"{found['tokens']:,} tokens ({found['supervised_tokens']:,} supervised)" in said
    assert (
        f"loss: {found['final_loss']:.4f} at the last step; validation {found['validation']['kept']['loss']:.4f}"
        in said
    )
    assert f"next: distill evaluate {out} --tasks" in said
    told = json.loads(distill(*command, "--json"))
    assert told == json.loads(json.dumps(found)) | {"path": str(out), "key": made.key}
    said = distill("train", "--traces", traces, "--student", "tiny", "--dry-run", *flags)
    assert said.startswith("not trained: tiny") and len(said.splitlines()) <= 13 and "repeated up to" in said


def test_what_was_left_out_and_what_was_chosen_is_said(capsys, tmp_path, rng):
    """Every part that a training may have, hostile names too."""
    kept, dropped = (int(n) for n in rng.integers(1, 1000, 2))
    summary = {
        "student": "a\x1b[31m",
        "arm": "ift",
        "parameters": 1000,
        "trainable_parameters": 10,
        "pairs": kept,
        "examples": kept,
        "tokens": 5000,
        "supervised_tokens": 3000,
        "steps": 3,
        "rows": 4,
        "row_fill": None,
        "matched": None,
        "dropped_pairs": dropped,
        "unverified": {"pairs": kept + 7, "kept": kept},
        "shares": {"ift": {"examples": 1.0, "tokens": 1.0, "loss": 1.0}, "reasoning": {"examples": 0.0}},
        "validation": None,
        "final_loss": 2.5,
        "learning_rate": 1e-4,
    }
    grid = [{"learning_rate": 1e-4, "loss": 2.0, "diverged": False}, {"learning_rate": 1.0, "diverged": True}]
    measured = {"seconds": 7300.0, "tokens_per_second": 10.0, "mfu": 0.4, "peak_device_bytes": 2**31}
    measured |= {"peak_rss_bytes": 2**30, "device": "GPU", "ranks": 4, "dtype": "bfloat16"}
    found = summary | {"grid": {"candidates": grid}, "measured": measured}
    show_student(artifact.Artifact(tmp_path, "student", "k", {}, found, {}), tmp_path / "t")
    said = capsys.readouterr().out
    assert "\x1b" not in said and "10 of 1,000 parameters" in said and "  reasoning:" not in said
    assert f"left out: {dropped:,} pairs too long" in said and f"7 of {kept + 7:,} pairs not verified" in said
    assert "chosen by validation loss: 2.0000 at 0.0001, diverged at 1" in said
    assert "2.0 h" in said and "4 x GPU" in said and "2.00 GiB of each GPU, 1.00 GiB" in said
    measured = {"device": "GPU", "dtype": "bfloat16", "seconds": 150.0, "assumed_mfu": 0.4, "peak_flops": 1e15}
    measured |= {"peak_flops_source": "a table", "program_gib": 0.0, "total_gib": 3.0, "device_gib": 140.0}
    costs = {"flops": {"training": 3e15}, "memory_gib": {"weights": 2.0, "head": 1.0}, "measured": measured}
    show_estimate(summary | {"trainings": 2, "ranks": 1} | costs, tmp_path)
    said = capsys.readouterr().out
    assert "about 2 min on GPU" in said and "3.00 of 140.0 GiB; the most: weights 2.00, head 1.00" in said

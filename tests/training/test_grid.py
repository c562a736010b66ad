"""A learning rate chosen on validation: the lowest loss wins, a killed grid goes on, its whole cost is said."""

import gc
import json
import math
import weakref
from types import SimpleNamespace

import pytest
import torch

from distill.artifact import Artifact
from distill.errors import InputError
from distill.packing.source import read_traces
from distill.settings import validate
from distill.training import grid
from distill.training import train as train_module
from distill.training.log import Diverged
from distill.training.ranks import Ranks
from distill.training.settings import RunOptions, TrainSettings
from distill.training.train import train

SMALL = dict(student="tiny", arm="reasoning", row_tokens=256, batch=96, precision="fp32", validation=0.2, seed=5)


def options(out):
    return RunOptions(out=out, threads=1, tensorboard=False)


def read(path):
    return json.loads(path.read_text())


def test_the_lowest_validation_loss_is_the_student(traces, tmp_path):
    """Killed in the second candidate, it goes on there; the result is the single training's to the byte."""
    rates = [1e-5, 5e-3, 1e30]
    settings = TrainSettings(**SMALL, learning_rate=rates)
    assert killed(settings, traces, tmp_path / "out", after=1) == [1e-5]
    assert not (tmp_path / "out" / "manifest.json").exists()
    made = train(settings, traces, options(tmp_path / "out"))
    alone = train(settings.candidates[1], traces, options(tmp_path / "alone"))
    assert made.key != alone.key
    for name in ("model.safetensors", "training_log.jsonl", "validation_log.jsonl", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    metrics, single = read(made.path / "metrics.json"), read(alone.path / "metrics.json")
    assert metrics["learning_rate"] == 5e-3
    low, best, wild = metrics["grid"]["candidates"]
    assert [entry["learning_rate"] for entry in (low, best, wild)] == rates
    assert best["loss"] == single["validation"]["kept"]["loss"] < low["loss"]
    assert best["flops"] == single["flops"] + single["validation"]["times"] * single["validation"]["flops"]
    assert wild["diverged"] and wild["loss"] is None and "loss nan" in wild["reason"]
    assert 0 < wild["flops"] < best["flops"] == low["flops"]
    assert metrics["grid"]["flops"] == low["flops"] + best["flops"] + wild["flops"]
    assert all(entry["measured"]["seconds"] > 0 for entry in (low, best, wild))
    made.verify()
    assert not (made.path / "candidates").exists()
    assert train(settings, traces, options(tmp_path / "out")).key == made.key


def killed(settings, traces, out, *, after):
    """Run a grid that is killed when so many candidates have ended; the rates of those."""
    done, real = [], train_module._train

    def counting(s, *others):
        artifact = real(s, *others)
        done.append(s.learning_rate)
        if len(done) == after:
            raise KeyboardInterrupt
        return artifact

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_module, "_train", counting)
        real(settings, read_traces(traces), options(out), Ranks())
    return done


def fake(losses):
    """A training that ends at once with the validation loss of its rate, or diverges; and the rates it was asked for."""
    asked = []

    def train_one(settings, run):
        rate = settings.learning_rate
        asked.append(rate)
        run.out.mkdir(parents=True, exist_ok=True)
        (run.out / "training_log.jsonl").write_text('{"flops": 2.0}\n')
        if math.isnan(losses[rate]):
            raise Diverged("step 2: loss nan")
        kept = {"step": 4, "loss": losses[rate]}
        summary = {
            "flops": 10.0,
            "validation": {"kept": kept, "times": 2, "flops": 3.0},
            "measured": {"seconds": 1.0},
        }
        return Artifact(run.out, "student", f"{rate}", {}, summary, {})

    return train_one, asked


def choose(folder, losses, train_one):
    settings = TrainSettings(**SMALL, learning_rate=list(losses))
    return grid.train_grid(SimpleNamespace(path=folder), settings, options(folder), Ranks(), train_one)


def test_a_tie_takes_the_smaller_rate(tmp_path, rng):
    low, high = sorted(rng.uniform(1e-6, 1e-2, 2))
    losses = {high: 1.5, low: 1.5, 2 * high: 1.75}
    train_one, asked = fake(losses)
    chosen, summary = choose(tmp_path, losses, train_one)
    assert asked == sorted(losses)
    assert summary["learning_rate"] == low and chosen.key == f"{low}"
    assert summary["grid"]["flops"] == 3 * 16.0 and summary["grid"]["measured"]["seconds"] == 3.0


def test_one_candidate_is_out_of_memory_before_the_next_begins(tmp_path):
    """FSDP's parameters and modules hold each other."""
    train_one, _ = fake({1e-4: 2.0, 1e-3: 3.0})
    gone = []

    def train_in_circles(settings, run):
        assert all(weights() is None for weights in gone)
        weights = torch.nn.Linear(2, 2)
        weights.hook = lambda: weights
        gone.append(weakref.ref(weights))
        return train_one(settings, run)

    gc.disable()
    try:
        choose(tmp_path, {1e-4: 2.0, 1e-3: 3.0}, train_in_circles)
    finally:
        gc.enable()
    assert len(gone) == 2


def test_what_diverged_is_not_run_again(tmp_path):
    losses = {1e-4: 2.0, 1e-3: float("nan")}
    train_one, asked = fake(losses)
    _, summary = choose(tmp_path, losses, train_one)
    _, again = choose(tmp_path, losses, train_one)
    assert asked == [1e-4, 1e-3, 1e-4]
    assert summary == again and summary["learning_rate"] == 1e-4 and summary["grid"]["flops"] == 18.0


def test_all_diverged(tmp_path):
    losses = {1e-4: float("nan"), 1e-3: float("nan")}
    with pytest.raises(InputError, match=r"every learning rate diverged \(0.0001, 0.001\)"):
        choose(tmp_path, losses, fake(losses)[0])


@pytest.mark.parametrize(
    "given, error",
    [
        (dict(learning_rate=[1e-4, 3e-4]), "needs a share of pairs in validation"),
        (dict(learning_rate=[1e-4, 1e-4], validation=0.1), "differ from each other"),
        (dict(learning_rate="1e-4,0.0001", validation=0.1), "differ from each other"),
        (dict(learning_rate=[], validation=0.1), "expected a number above 0"),
        (dict(learning_rate="1e-4,", validation=0.1), "expected a number above 0"),
        (dict(learning_rate=[1e-4, -1.0], validation=0.1), "expected a number above 0"),
        (dict(learning_rate=0), "expected a number above 0"),
        (dict(learning_rate="inf"), "expected a number above 0"),
        (
            dict(
                learning_rate=[1e-4, 3e-4], validation=0.1, arm="phases", phases=[{"reasoning": 1, "learning_rate": 1}]
            ),
            "a phase with its own",
        ),
    ],
)
def test_bad_rates_are_refused_in_one_line(given, error):
    with pytest.raises(InputError, match=error) as refused:
        validate(TrainSettings, {"student": "tiny"} | given, source="command line")
    assert "\n" not in str(refused.value) and "learning_rate" in str(refused.value)


def test_how_rates_are_given():
    for given in ("3e-4,1e-4", [3e-4, 1e-4], (3e-4, "1e-4")):
        settings = TrainSettings(**SMALL, learning_rate=given)
        assert [s.learning_rate for s in settings.candidates] == [1e-4, 3e-4]
    for given in ("3e-4", [3e-4], 3e-4):
        settings = TrainSettings(**SMALL, learning_rate=given)
        assert settings.learning_rate == 3e-4 and settings.candidates == (settings,)

"""Arms held equal: how long each is trained, what is printed of it, and that a training follows it."""

import json

import numpy as np
import pytest

from distill.errors import InputError
from distill.packing.source import read_traces
from distill.settings import validate
from distill.training.describe import describe
from distill.training.dry_run import dry_run
from distill.training.prepare import make_ready
from distill.training.settings import RunOptions, TrainSettings
from distill.training.train import train

BASE = dict(student="tiny", row_tokens=96, batch=20, seed=3, precision="fp32", epochs=2)
CURRICULUM = [{"reasoning": 0, "epochs": 1}, {"reasoning": 0.5, "epochs": 1}]


def settings(**changes):
    return TrainSettings(**(BASE | changes))


@pytest.mark.parametrize("match", ["steps", "tokens", "flops"])
def test_every_arm_is_trained_as_long_as_reasoning_and_says_so(traces, match):
    trace_set = read_traces(traces)
    reference = describe(settings(), make_ready(settings(), trace_set, weights=False))
    assert reference["matched"] is None
    arms = [{"arm": arm} for arm in ("ift", "mixed:0.3", "sequential:0.3")]
    for arm in [*arms, {"phases": CURRICULUM, "epochs": 1}, {"arm": "ift", "batch": 400, "batch_unit": "tokens"}]:
        wanted = settings(match=match, **arm)
        if "batch" in arm:
            same = settings(**(arm | {"arm": "reasoning"}))
            amount = describe(same, make_ready(same, trace_set, weights=False))[match]
        else:
            amount = reference[match]
        ready = make_ready(wanted, trace_set, weights=False)
        counts = describe(wanted, ready)
        assert counts["matched"]["on"] == match and "reasoning" in counts["matched"]["to"]
        assert counts["matched"]["wanted"] == pytest.approx(amount, rel=1e-9)
        assert counts["matched"]["reached"] == counts[match] >= amount * (1 - 1e-8)
        last = [r for row in ready.steps[-1].rows for r in row]
        lengths, supervised = ready.rendered.lengths, ready.rendered.supervised
        costs = {
            "steps": 1,
            "tokens": int(lengths[last].sum()),
            "flops": ready.origin.shape.training_flops(lengths[last], int(supervised[last].sum())),
        }
        assert counts[match] - costs[match] < amount
        json.dumps(counts)


def test_the_pairs_held_out_are_of_neither_total(traces):
    wanted = settings(arm="ift", match="tokens", validation=0.3)
    ready = make_ready(wanted, read_traces(traces), weights=False)
    trained = np.unique([r // 2 for step in ready.steps for row in step.rows for r in row])
    assert len(trained) == ready.rendered.n_pairs - ready.validation.pairs
    assert ready.until.amount == 2 * ready.rendered.lengths[2 * trained + 1].sum()


def test_matched_on_samples_or_given_tokens_it_is_the_training_it_was(traces, tmp_path):
    """The tokens of another training, given or matched: the same steps and the same weights."""
    options = lambda name: RunOptions(out=tmp_path / name, threads=1, tensorboard=False)  # noqa: E731
    reference = dry_run(settings(epochs=1), traces, options("none"))
    assert reference["matched"] is None
    found = {}
    for name, how in {"given": {"tokens": reference["tokens"]}, "matched": {"match": "tokens"}}.items():
        made = train(settings(arm="ift", epochs=1, **how), traces, options(name))
        assert made.summary["matched"]["wanted"] == reference["tokens"] <= made.summary["tokens"]
        assert ("given" in made.summary["matched"]["to"]) == (name == "given")
        found[name] = (made.key, (tmp_path / name / "model.safetensors").read_bytes())
    assert found["given"][0] != found["matched"][0] and found["given"][1] == found["matched"][1]
    said = dry_run(settings(arm="ift", epochs=1, match="tokens"), traces, options("none"))
    assert (said["matched"], said["steps"]) == (made.summary["matched"], made.summary["steps"])


def test_ranks_name_a_student_only_where_they_order_its_rows():
    tokens = settings(batch=192, batch_unit="tokens")
    assert [tokens.for_ranks(n).balance_ranks for n in (1, 8)] == [1, 8]
    assert tokens.model_copy(update={"balance_ranks": 4}).for_ranks(8).balance_ranks == 4
    for other in (settings(), settings(balance_ranks=4), tokens.model_copy(update={"packed": False})):
        assert [other.for_ranks(n).balance_ranks for n in (1, 8)] == [None, None]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"match": "tokens", "tokens": 5}, "match tokens and tokens=5 both say when training ends"),
        ({"match": "token"}, "field match: Input should be 'samples', 'steps', 'tokens' or 'flops'"),
        ({"balance_ranks": 0}, "field balance_ranks"),
        ({"loss_weight": "mode"}, "field loss_weight: Input should be 'token', 'example' or 'answer'"),
        ({"z_loss": -1e-4}, "field z_loss"),
        ({"z_loss": float("inf")}, "field z_loss"),
        ({"adam_betas": (0.9, 1.0)}, r"field adam_betas\.1: Input should be less than 1"),
    ],
)
def test_settings_that_cannot_be(changes, said):
    with pytest.raises(InputError, match=said) as refused:
        validate(TrainSettings, BASE | changes, source="a file")
    assert "\n" not in str(refused.value)

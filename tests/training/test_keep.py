"""`train --keep verified`: pairs with a wrong answer in either mode are left out of every arm, and that is said."""

import dataclasses
import json

import pytest

from distill.errors import InputError
from distill.packing.source import read_traces, verified_only
from distill.traces.derive import deriving
from distill.training.dry_run import dry_run
from distill.training.prepare import make_ready
from distill.training.settings import RunOptions, TrainSettings
from distill.training.train import recipe, train

SMALL = dict(student="tiny", row_tokens=256, batch=16, precision="fp32", learning_rate=1e-3)


def relabelled(source, out, label):
    """The trace set at `source` with `label(index)` = (reasoning, ift) as its labels."""

    def change(index, pair):
        one, other = label(index)
        return dataclasses.replace(
            pair,
            reasoning=dataclasses.replace(pair.reasoning, verified=one),
            ift=dataclasses.replace(pair.ift, verified=other),
        )

    with deriving(source, out, {"step": "label"}) as new:
        new.commit(change, {})
    return out


@pytest.fixture
def labelled(traces, tmp_path, rng):
    """(folder, labels): some pairs are right in both modes, some in one, some have no label in one."""
    values = [tuple(rng.choice([True, True, True, False, None], 2)) for _ in read_traces(traces).pairs]
    values = [tuple(None if v is None else bool(v) for v in both) for both in values]
    return relabelled(traces, tmp_path / "labelled", values.__getitem__), values


def test_pairs_that_are_right_in_both_modes_are_kept(labelled, capsys):
    folder, labels = labelled
    whole = read_traces(folder)
    kept, left_out = verified_only(whole)
    assert kept.pairs == [pair for pair, both in zip(whole.pairs, labels, strict=True) if both == (True, True)]
    assert (kept.key, kept.path) == (whole.key, whole.path)
    wrong = sum(False in both for both in labels)
    size = {p.problem.id: len(p.reasoning.reasoning + p.reasoning.answer + p.ift.answer) for p in whole.pairs}
    everything, rest = sum(size.values()), sum(size[pair.problem.id] for pair in kept.pairs)
    assert left_out == {
        "pairs": len(labels),
        "kept": len(kept.pairs),
        "wrong": wrong,
        "without_label": len(labels) - len(kept.pairs) - wrong,
        "characters": everything,
        "dropped_characters": everything - rest,
    }
    said = capsys.readouterr().err
    assert f"{len(kept.pairs)} of {len(labels)} pairs are verified" in said and f"{everything - rest:,}" in said


def test_tokens_of_the_teacher_are_the_budget_where_they_are_known(labelled, rng):
    folder, labels = labelled
    whole = read_traces(folder)
    counts = rng.integers(1, 100, (len(labels), 3)).tolist()
    counted = [
        dataclasses.replace(
            pair,
            reasoning=dataclasses.replace(pair.reasoning, reasoning_tokens=a, answer_tokens=b),
            ift=dataclasses.replace(pair.ift, reasoning_tokens=0, answer_tokens=c),
        )
        for pair, (a, b, c) in zip(whole.pairs, counts, strict=True)
    ]
    _, left_out = verified_only(dataclasses.replace(whole, pairs=counted))
    dropped = sum(sum(n) for n, both in zip(counts, labels, strict=True) if both != (True, True))
    assert left_out["tokens"] == sum(map(sum, counts)) and left_out["dropped_tokens"] == dropped


@pytest.mark.parametrize("arm", ["ift", "reasoning", "mixed:0.5", "sequential:0.5"])
def test_every_arm_has_the_same_questions(labelled, arm):
    folder, labels = labelled
    trace_set = read_traces(folder)
    ready = make_ready(TrainSettings(**SMALL, arm=arm, keep="verified"), trace_set, weights=False)
    kept = [pair.problem.id for pair, both in zip(trace_set.pairs, labels, strict=True) if both == (True, True)]
    assert ready.rendered.pair_ids == kept
    shown = {ready.rendered.pair_ids[r // 2] for step in ready.steps for row in step.rows for r in row}
    assert shown == set(kept) and ready.unverified["kept"] == len(kept)
    everything = make_ready(TrainSettings(**SMALL, arm=arm), trace_set, weights=False)
    assert everything.rendered.pair_ids == [pair.problem.id for pair in trace_set.pairs]
    assert everything.unverified is None


def test_without_labels_it_is_refused(traces, tmp_path):
    settings, options = TrainSettings(**SMALL, keep="verified"), RunOptions(out=tmp_path / "s", threads=1)
    for name, label, message in [
        ("none", (None, None), "no answer has a label, which --keep verified needs; run `distill traces verify` first"),
        ("wrong", (True, False), "no pair has two answers that are verified"),
    ]:
        folder = relabelled(traces, tmp_path / name, lambda _, label=label: label)
        with pytest.raises(InputError, match=message):
            train(settings, folder, options)
        assert not options.out.exists()


def test_it_is_in_the_key_only_when_it_is_not_all():
    plain, verified = TrainSettings(**SMALL), TrainSettings(**SMALL, keep="verified")
    assert recipe(TrainSettings(**SMALL, keep="all"), "t") == recipe(plain, "t")
    assert "keep" not in recipe(plain, "t")["settings"]
    assert recipe(verified, "t")["settings"] == recipe(plain, "t")["settings"] | {"keep": "verified"}


def test_trained_and_counted(labelled, tmp_path):
    folder, labels = labelled
    settings, options = TrainSettings(**SMALL, keep="verified"), RunOptions(out=tmp_path / "s", threads=1)
    kept = labels.count((True, True))
    assert dry_run(settings, folder, options)["unverified"]["kept"] == kept
    made = train(settings, folder, options)
    assert made.summary["pairs"] == kept == made.summary["unverified"]["kept"]
    assert json.loads((tmp_path / "s" / "metrics.json").read_text())["examples"] == kept
    assert "verified" in (tmp_path / "s" / "README.md").read_text()

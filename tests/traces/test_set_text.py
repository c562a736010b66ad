"""What a person is told of a trace set that was made: every count in it, in few lines."""

import json
from dataclasses import replace

import pytest

from distill.artifact import workspace
from distill.tasks.problem import Problem
from distill.traces.set_text import show_set
from distill.traces.store import KIND, Rejected, write_pairs
from distill.traces.trace import Pair, Trace
from distill.traces.verify import VerifySettings, verify


@pytest.fixture
def made(tmp_path, rng):
    """A set in which `right` of `n` reasoning answers are 5, as the gold answer; and `lost` rows gave no pair."""
    n, lost = int(rng.integers(3, 30)), int(rng.integers(1, 9))
    right = int(rng.integers(1, n))
    rows = [
        Pair(
            Problem("own", f"question {i}", "5", "open"),
            Trace("reasoning", "2 and 3", "5" if i < right else "6", "stop", "m", verified=None),
            Trace("ift", "", "5", "stop", "m"),
            i,
            0,
        )
        for i in range(n)
    ]
    rows += [Rejected("held_out", None, place=n + i) for i in range(lost)]
    with workspace(tmp_path / "t\x1b[31m", KIND, {"x": 1}) as space:
        bill = {
            "reasoning": {"answers": n, "output_tokens": 1234, "cost_usd": 1.5},
            "ift": {"answers": 0, "cost_usd": 0.0},
        }
        artifact = space.commit(write_pairs(space.path, rows) | {"bill": bill})
    return artifact, n, right, lost


def test_it_says_what_was_made(made, capsys):
    artifact, n, _, lost = made
    show_set(artifact)
    out = capsys.readouterr().out
    assert f"{n} pairs of {n + lost} rows" in out and "\x1b" not in out
    assert f"set aside: {lost} held_out (a question of the validation or test split)" in out
    assert f"reasoning: {n} answers, 1,234 output tokens, $1.50" in out
    assert "ift" not in out and "right" not in out  # nobody was asked, nothing is judged


def test_it_says_who_is_right(made, tmp_path, capsys):
    artifact, n, right, _ = made
    labelled = verify(artifact.path, tmp_path / "v", VerifySettings(checker="number"))
    show_set(labelled)
    out = capsys.readouterr().out
    assert f"right, reasoning: {right} of {n} (" in out and f"right, ift: {n} of {n} (100.0 %)" in out
    assert f"right in both modes: {right} of {n} (" in out and "cannot read" not in out


def test_a_checker_that_does_not_fit_is_seen(made, tmp_path, capsys):
    """An option letter is not to be found in 5: nobody can be right, and that is said."""
    artifact, n, _, _ = made
    labelled = verify(artifact.path, tmp_path / "v", VerifySettings(checker="choice"))
    assert labelled.summary["verification"]["unreadable_gold"] == 2 * n
    show_set(labelled)
    assert f"{2 * n} answers called wrong because the checker cannot read the gold answer" in capsys.readouterr().out


def test_it_reads_sets_of_older_versions(made, capsys):
    """A field that came later may be missing."""
    artifact, n, right, _ = made
    found = {"against": "gold", "judged": {"reasoning": n, "ift": n}, "verified": {"reasoning": right, "ift": n}}
    found |= {"pairs_verified": right, "by_checker": {"number": 2 * n}, "failures": {}}
    found |= {"orders_disagree": {"answers": 0, "examples": []}}
    show_set(replace(artifact, summary=artifact.summary | {"verification": json.loads(json.dumps(found))}))
    assert f"right, reasoning: {right} of {n}" in capsys.readouterr().out

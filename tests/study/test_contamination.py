"""What of the questions asked stands in the pairs: planted copies are counted, and what all questions of a task share is not."""

import json
from pathlib import Path

import pytest

from distill.artifact import Artifact, workspace
from distill.evaluation.questions import ask
from distill.settings import validate
from distill.study.contamination import contamination
from distill.study.page.threats import checks
from distill.study.settings import StudySettings
from distill.tasks.problem import Problem
from distill.traces.store import KIND, write_pairs
from distill.traces.trace import Pair, Trace

ASKED = 12
FRAME = "Read the record of a customer below with care, and then answer with the number of the plan that fits best:"


@pytest.fixture
def tail(rng):
    """tail(n): n words that nothing else has."""
    return lambda n: " ".join(f"w{i}" for i in rng.integers(0, 10**9, n))


def study(folder: Path, prompts: list[str]) -> StudySettings:
    rows = "".join(json.dumps({"q": prompt, "a": "1"}) + "\n" for prompt in prompts)
    (folder / "own.jsonl").write_text(rows)
    own = {"path": str(folder / "own.jsonl"), "prompt": "q", "answer": "a", "checker": "number"}
    preset = {
        "title": "made up",
        "question": "what is said?",
        "tasks": [{"task": "max", "train": 40, "test": ASKED}, {"task": "own", "data": own, "test": ASKED}],
        "students": [{"name": "tiny", "student": "tiny", "learning_rate": 0.003, "seeds": [0]}],
        "arms": [{"arm": "ift"}, {"arm": "reasoning"}],
        "margin_points": 2,
        "contrasts": [{"verdict_size": "tiny"}],
        "hardware": "cpu-2core",
    }
    return validate(StudySettings, preset, source="preset")


def pairs_of(folder: Path, prompts: list[str]) -> Artifact:
    traces = Trace("reasoning", "so it is", "1", "stop", "t"), Trace("ift", "", "1", "stop", "t")
    pairs = [Pair(Problem("own", prompt, "1", "open"), *traces, place, 0) for place, prompt in enumerate(prompts)]
    with workspace(folder, KIND, {"rows": len(pairs)}) as space:
        return space.commit(write_pairs(space.path, pairs))


def said(results: list[dict], **preset: object) -> tuple[str, bool]:
    (found,) = (
        check
        for check in checks({"tasks": [{"name": "own"}], "cells": [], "preset": preset, "contamination": results})
        if check.title == "Contamination"
    )
    return found.text, found.concern


def test_planted_copies_are_counted_and_a_threat(tmp_path, tail, undocumented):
    settings = study(tmp_path, [f"{FRAME} {tail(22)}" for _ in range(200)])
    asked = {a.task.name: [p.prompt for p in a.problems] for a in ask(settings.evaluate_settings().questions)}
    framed, own = len(FRAME.split()), asked["own"]
    cut = lambda text, *where: " ".join(text.split()[slice(*where)])  # noqa: E731
    clean = [f"{FRAME} {tail(22)}" for _ in range(30)]
    planted = [
        own[0].upper().replace(" ", "\n"),
        f"{cut(own[1], None, -1)} {tail(1)}",
        f"{cut(own[2], None, framed + 15)} {tail(15)}",
        f"{tail(30)} {cut(own[3], framed, framed + 13)}",
        f"{tail(30)} {cut(own[4], framed, framed + 12)}",  # twelve words in a row are none
        asked["max"][0],
    ]
    made = pairs_of(tmp_path / "traces", clean + planted + planted)
    of_max, of_own = contamination(settings, {"all": made})
    same = {"traces": "all", "pairs": 42, "questions": ASKED}
    assert of_max == same | {"task": "max", "too_short": ASKED, "exact": 1, "near": 0, "half": 0, "ngram": 0}
    assert of_own == same | {"task": "own", "too_short": 0, "exact": 1, "near": 1, "half": 1, "ngram": 1}
    assert not undocumented({"contamination": [of_max, of_own]})
    text, concern = said([of_max, of_own])
    assert concern and "Of 24 questions asked, 2 stand word for word among the 42 pairs of all, 1 nearly so" in text
    assert "the most are 25.0\u00a0% (own in all)" in text
    assert said([of_own | {"exact": 0, "near": 0, "half": 0}])[1] is False  # a run that is shared is shown, and no more

    # What was made of the questions alone is clean, though all begin alike.
    found = contamination(settings, {"all": pairs_of(tmp_path / "clean", clean)})
    assert [sum(one[kind] for kind in ("exact", "near", "half", "ngram")) for one in found] == [0, 0]
    assert not said(found)[1]


def test_a_set_that_cannot_be_read_is_said_not_to_be_compared(tmp_path, tail, capsys):
    settings = study(tmp_path, [f"{FRAME} {tail(22)}" for _ in range(200)])
    made = pairs_of(tmp_path / "traces", [tail(9)])
    (made.path / "pairs.parquet").unlink()
    assert contamination(settings, {"mine": made}) == []
    assert "traces mine: not compared with the questions asked" in capsys.readouterr().err
    text, concern = said([], traces=[{"name": "mine", "folder": "x"}])
    assert concern and "The pairs of mine were not compared" in text

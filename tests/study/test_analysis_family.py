"""One family of all that a study declares: the correction, and that a study of nothing finds nothing too often."""

from itertools import chain, combinations
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from transformers import Qwen2Config

from distill.artifact import Artifact
from distill.evaluation.answers import Answer
from distill.evaluation.questions import ask
from distill.evaluation.statistics.significance import holm
from distill.flops import ModelShape
from distill.settings import validate
from distill.study.analysis.family import correct, weighted_holm
from distill.study.cells import cells
from distill.study.outcomes import MemberOutcome
from distill.study.results import build_results
from distill.study.settings import StudySettings


def closed(p: np.ndarray, weight: np.ndarray, i: int) -> float:
    """By the closed test: the largest weighted Bonferroni p-value of all sets of hypotheses that hold the i-th."""
    others = [j for j in range(len(p)) if j != i]
    sets = chain.from_iterable(combinations(others, n) for n in range(len(p)))
    return max(min(1.0, *(p[j] / weight[j] * weight[[i, *some]].sum() for j in (i, *some))) for some in sets)


def test_weighted_holm_is_the_closed_test_of_weighted_bonferroni(rng):
    for n in (1, 2, 5, 7):
        p, weight = rng.random(n) ** 3, rng.uniform(0.1, 2, n)
        assert weighted_holm(p, weight) == pytest.approx([closed(p, weight, i) for i in range(n)])
        assert weighted_holm(p, np.full(n, 0.3)) == pytest.approx(holm(p))
    assert weighted_holm([], []) == []


def test_what_decides_is_not_drowned_by_what_stands_beside_it(rng):
    p = float(rng.uniform(0.001, 0.01))
    beside = [{"p_value": 1.0, "primary": False} for _ in range(30)]
    deciding = [{"p_value": p, "primary": True}, {"p_value": 1.0, "primary": True}]
    interactions = [{"p_value": 1.0, "task": "a", "metric": m} for m in ("accuracy", "rouge_l")]
    correct([*beside, *deciding], interactions, {"a": "rouge_l"})
    assert deciding[0]["p_holm"] == pytest.approx(2 * 3 * p)  # half of all, shared with a verdict and an interaction
    alone = [{"p_value": p, "primary": True}]
    correct(alone, [], {"a": "rouge_l"})
    assert alone[0]["p_holm"] == pytest.approx(p)


TASKS, SIZES, QUESTIONS = ("add", "max"), ("tiny", "small"), 80
SHAPE = ModelShape.from_config(
    Qwen2Config(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=32)
)


def nothing(seeds: list[int]) -> StudySettings:
    """A study with three contrasts in two sizes on two tasks, and an interaction."""
    contrasts = [("reasoning", "ift"), ("mixed0.5", "ift"), ("mixed0.5", "reasoning")]
    values = {
        "title": "nothing to be found",
        "question": "is it?",
        "tasks": [{"task": task, "train": 10, "test": QUESTIONS} for task in TASKS],
        "students": [{"name": n, "student": "tiny", "learning_rate": 0.003, "seeds": seeds} for n in SIZES],
        "arms": [{"arm": arm} for arm in ("ift", "reasoning", "mixed:0.5")],
        "margin_points": 1e-9,  # any gain would do
        "contrasts": [{"treatment": t, "control": c} for t, c in contrasts],
        "interactions": [{"students": list(SIZES)}],
        "hardware": "cpu-2core",
    }
    values["contrasts"][0]["verdict_size"] = "tiny"
    return validate(StudySettings, values, source="preset")


def equal_students(settings: StudySettings, asked: list, rng: np.random.Generator) -> dict[str, MemberOutcome]:
    """Every arm is as likely right on a question as any other, whose questions differ; of three seeds some are luckier."""
    hardness = {a.task.name: rng.normal(rng.uniform(-1, 1.5), 1.5, len(a.problems)) for a in asked}
    luck = rng.uniform(0, 0.4) if len(settings.students[0].seeds) > 1 else 0.0
    outcomes = {}
    for member in [member for cell in cells(settings) for member in cell.students()]:
        answers, lucky = {}, rng.normal(0, luck)
        for a in asked:
            right = rng.random(len(a.problems)) < 1 / (1 + np.exp(-hardness[a.task.name] - lucky))
            of = {"task": a.task.name, "prompt": "", "token_ids": [1], "thinking": "", "answer": "", "gold": ""}
            of |= {"prompt_tokens": 5, "thinking_tokens": 0, "answer_tokens": 1, "thought": False, "finished": True}
            of |= {"finish_reason": "stop", "seconds": 0.1}
            answers[a.task.name] = [
                Answer(problem_id=p.id, correct=bool(r), **of) for p, r in zip(a.problems, right, strict=True)
            ]
        summary = {"unfinished_rate": 0.0, "think_rate": 0.0, "accuracy_finished": 0.5, "flops_per_answer": 1.0}
        summary["tokens_per_answer"] = dict.fromkeys(("prompt", "thinking", "answer", "total"), 1.0)
        names = ("flops", "parameters", "tokens", "supervised_tokens", "examples", "steps")
        timed = ("seconds", "tokens_per_second", "supervised_tokens_per_second", "mfu", "peak_rss_bytes", "threads")
        student = dict.fromkeys(names, 1.0) | {"measured": dict.fromkeys(timed, 1.0)}
        made = [
            Artifact(SimpleNamespace(parts=("a", "b")), kind, "", {}, of, {})
            for kind, of in (
                ("student", student),
                ("evaluation", {a.task.name: summary for a in asked}),
                ("profile", {}),
            )
        ]
        outcome = MemberOutcome(*made, shape=SHAPE)
        outcome.graded.__dict__["answers"] = answers
        outcome.__dict__["load"] = {"tasks": {}, "threads": 1}
        outcomes[member.id] = outcome
    return outcomes


@pytest.mark.long
@pytest.mark.parametrize(("seeds", "studies"), [([0], 400), ([0, 1, 2], 400)])
def test_a_study_of_equal_students_claims_anything_at_most_one_time_in_twenty(monkeypatch, rng, seeds, studies):
    """Any verdict, any contrast, any interaction."""
    monkeypatch.setattr("distill.study.analysis.analyse.frontiers", lambda *_: ([], []))  # nothing of it is a claim
    monkeypatch.setattr("distill.study.results.minimum_detectable_difference", lambda *_, **__: 0.0)
    settings = nothing(seeds)
    asked = ask(settings.evaluate_settings().questions)
    monkeypatch.setattr("distill.study.results.ask", lambda *_: asked)
    pays = significant = 0
    for _ in range(studies):
        results = build_results(settings, equal_students(settings, asked, rng), {}, command="")
        declared = [*results["contrasts"], *results["analysis"]["interactions"]]
        assert len(results["verdicts"]) == 2 and len(declared) == 3 * 2 * 2 + 2
        pays += any(c.get("verdict") == "pays" for c in declared)
        significant += any(c["p_holm"] <= 0.05 for c in declared)
    print(f"{len(seeds)} seeds: any 'pays' {pays / studies:.1%}, any p_holm under 0.05 {significant / studies:.1%}")
    for claimed in (pays, significant):
        assert stats.binomtest(claimed, studies, 0.05, alternative="greater").pvalue > 1e-4, (pays, significant)

"""lm-eval's own tasks on our server: a task file and its rows written here, and the same grades as ours."""

import json

import numpy as np
import pytest

from distill.errors import InputError
from distill.evaluation.answer_file import read_answers
from distill.evaluation.evaluate import evaluate
from distill.evaluation.server import Serving
from distill.evaluation.settings import EvaluateSettings
from distill.evaluation.via_lm_eval import LmEvalSettings, evaluate_via_lm_eval

pytest.importorskip("lm_eval")


def test_an_lm_eval_task_gives_the_grades_that_we_give(
    trained_server, trained_student, tmp_path, monkeypatch, rng, capfd
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    ours = evaluate(
        EvaluateSettings(questions=[{"task": "max", "count": 12, "seed": int(rng.integers(1000))}], max_tokens=48),
        trained_student,
        tmp_path / "ours",
        Serving(lambda: trained_server.endpoint),
    )
    answers = read_answers(ours.path / "answers.parquet")
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"q": a.prompt, "a": a.gold, "id": a.problem_id}) + "\n" for a in answers))
    (folder / "largest.yaml").write_text(
        f"task: largest_of_four\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {rows}}}}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
        "generation_kwargs: {until: ['<|end|>'], max_gen_toks: 48, temperature: 0.0}\n"
        "metric_list:\n  - {metric: exact_match, aggregation: mean, higher_is_better: true}\n"
        "  - {metric: bleu, aggregation: bleu, higher_is_better: true}\n"
    )
    (folder / "letters.yaml").write_text(
        f"task: letter_of_four\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {rows}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
        "doc_to_choice: [A, B, C, D]\nmetric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
    )
    capfd.readouterr()
    wanted = LmEvalSettings(tasks={"largest_of_four": None, "letter_of_four": 5}, folder=folder)
    made = evaluate_via_lm_eval(wanted, trained_student, tmp_path / "e", Serving(lambda: trained_server.endpoint))
    said = capfd.readouterr()
    assert said.out == "" and "%|" not in said.err and "git" not in said.err  # nothing but notes of ours
    found = made.summary["largest_of_four"]
    assert found["questions"]["effective"] == 12
    assert made.summary["letter_of_four"]["questions"]["effective"] == 5
    assert 0 <= made.summary["letter_of_four"]["metrics"]["acc,none"] <= 1
    samples = [json.loads(line) for line in (made.path / "samples.jsonl").read_text().splitlines()]
    samples = [sample for sample in samples if sample["task"] == "largest_of_four"]
    assert [s["target"] for s in samples] == [a.gold for a in answers]
    same = [s["filtered_resps"] == [a.answer if a.finished else ""] for s, a in zip(samples, answers, strict=True)]
    assert sum(same) >= 11  # up to a near tie
    graded = sum(s["filtered_resps"] == [s["target"]] for s in samples) / 12
    assert found["metrics"]["exact_match,none"] == pytest.approx(graded)
    assert found["metrics"]["exact_match_stderr,none"] == pytest.approx(np.sqrt(graded * (1 - graded) / 11))
    assert found["metrics"]["bleu_stderr,none"] >= 0  # drawn again, not in closed form
    with pytest.raises(InputError, match=r"lm-eval: .*no_such_task"):
        evaluate_via_lm_eval(
            LmEvalSettings(tasks={"no_such_task": 3}, folder=folder),
            trained_student,
            tmp_path / "none",
            Serving(lambda: trained_server.endpoint),
        )


def test_without_lm_eval_there_is_one_line(tiny_student, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'distill-stack\[lm-eval\]'"):
        evaluate_via_lm_eval(LmEvalSettings(tasks={"x": 1}), tiny_student, tmp_path / "e")
    assert not (tmp_path / "e").exists()

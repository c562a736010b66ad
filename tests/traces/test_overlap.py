"""Shared runs of 13 words against a plain search for them, and what names an evaluation set."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from distill.errors import InputError
from distill.tasks import get_task
from distill.traces.hygiene.evaluation_sets import EvaluationSet, evaluation_sets
from distill.traces.hygiene.overlap import NGRAM, EvaluationIndex
from distill.traces.hygiene.words import normal_form, word_hashes, words

DATA = Path(__file__).parents[3] / "shared" / "data"


def plain_matches(text: list[str], questions: list[list[str]]) -> dict[int, dict]:
    """By looking at every pair of places."""
    found = {}
    runs = [tuple(text[i : i + NGRAM]) for i in range(len(text) - NGRAM + 1)]
    for number, question in enumerate(questions):
        theirs = [tuple(question[i : i + NGRAM]) for i in range(len(question) - NGRAM + 1)]
        here = [i for i, run in enumerate(runs) if run in theirs]
        there = [i for i, run in enumerate(theirs) if run in runs]
        if here:
            covered = {i + j for i in here for j in range(NGRAM)}, {i + j for i in there for j in range(NGRAM)}
            longest = max(
                next(
                    k
                    for k in range(len(text) + 1)
                    if text[i : i + k + 1] != question[j : j + k + 1] or i + k == len(text)
                )
                for i in here
                for j in there
            )
            found[number] = {
                "runs": len({runs[i] for i in here}),
                "share": len(covered[0]) / len(text),
                "evaluation_share": len(covered[1]) / len(question),
                "longest": longest,
            }
    return found


def index_of(questions: list[list[str]]) -> EvaluationIndex:
    return EvaluationIndex([EvaluationSet("e", "e", tuple((str(i), " ".join(q)) for i, q in enumerate(questions)))])


def test_matches_are_those_of_a_plain_search(rng):
    for _ in range(20):
        source = [f"w{i}" for i in rng.integers(0, 3, 400)]  # few words: runs come again in one text
        words_of = lambda low, high: [f"v{i}" for i in rng.integers(0, 10**6, rng.integers(low, high))]  # noqa: E731
        questions = []
        for _ in range(12):
            start, size = int(rng.integers(0, 350)), int(rng.integers(5, 40))
            questions.append(words_of(0, 20) + source[start : start + size] + words_of(1, 20))
        start = int(rng.integers(0, 300))
        text = words_of(0, 10) + source[start : start + 60] + words_of(0, 10) + questions[0]
        found = {match.question: match for match in index_of(questions).matches(word_hashes(text))}
        reference = plain_matches(text, questions)
        assert found.keys() == reference.keys()
        for number, match in found.items():
            expected = reference[number]
            assert len(match.runs) == expected["runs"]
            assert match.share == pytest.approx(expected["share"])
            assert match.evaluation_share == pytest.approx(expected["evaluation_share"])
            (start, end), (other_start, other_end) = match.span, match.evaluation_span
            assert text[start:end] == questions[number][other_start:other_end]
            assert end - start == expected["longest"]


def test_twelve_shared_words_are_none_and_thirteen_are_one(rng):
    text = [f"w{i}" for i in rng.integers(0, 10**6, 40)]
    for size in (12, 13):
        index = index_of([["x", *text[10 : 10 + size], "y"]])
        matches = index.matches(word_hashes(text))
        assert [len(match.runs) for match in matches] == ([1] if size == 13 else [])
    assert index.matches(word_hashes(text[:12])) == [] and index.matches(word_hashes([])) == []
    assert EvaluationIndex([]).matches(word_hashes(text)) == []


def test_a_phrase_of_all_questions_is_found_in_few_of_them():
    """Boilerplate is looked up in 64 questions, not in thousands for each of thousands."""
    phrase = [f"w{i}" for i in range(20)]
    index = index_of([[*phrase, f"x{i}"] for i in range(1000)])
    assert len(index.matches(word_hashes(phrase))) == 64


def test_the_same_question_in_another_form():
    index = index_of([["What", "is", "2", "+", "3?"], ["???"]])
    text = "WHAT  is 2 +\n3"
    assert index.same(normal_form(text, words(text))) == [0]
    assert index.same(normal_form("???", [])) == [1] and index.same(normal_form("!!!", [])) == []


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_names_of_evaluation_sets(tmp_path):
    (tmp_path / "g").mkdir()
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}.\n#### {i}"} for i in range(40)]
    write(tmp_path / "g" / "train.jsonl", rows[:30])
    write(tmp_path / "g" / "test.jsonl", rows[30:])
    (folder,) = evaluation_sets([f"gsm8k:{tmp_path}/g"])
    assert [text for _, text in folder.questions] == [row["question"] for row in rows[30:]]
    (single,) = evaluation_sets([f"gsm8k:{write(tmp_path / 'all.jsonl', rows * 1)}"])
    task = get_task("gsm8k", tmp_path / "all.jsonl")
    assert {i for i, _ in single.questions} == {p.id for p in task.problems("test", None, 0)}
    (made,) = evaluation_sets(["add=25"])
    assert [text for _, text in made.questions] == [p.prompt for p in get_task("add").problems("test", 25, 0)]
    (plain,) = evaluation_sets([str(tmp_path / "all.jsonl")])
    assert plain.name == "all.jsonl:question" and len(plain.questions) == 40
    pq.write_table(pa.table({"text": ["one", "two"], "prompt": ["three", "four"]}), tmp_path / "q.parquet")
    by_field, by_default = evaluation_sets([f"{tmp_path}/q.parquet:text", f"{tmp_path}/q.parquet"])
    assert [text for _, text in by_field.questions] == ["one", "two"]
    assert [text for _, text in by_default.questions] == ["three", "four"]
    preset = {"tasks": [{"task": "add", "train": 5, "test": 7}, {"task": "max", "train": 5, "test": 3}], "data_seed": 4}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(preset))
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "results.json").write_text(json.dumps({"preset": preset}))
    for spec in (tmp_path / "study.yaml", tmp_path / "study"):
        sets = evaluation_sets([str(spec)])
        assert [len(one.questions) for one in sets] == [7, 3]
        assert [text for _, text in sets[0].questions] == [p.prompt for p in get_task("add").problems("test", 7, 4)]
    # The name and the hash do not depend on where the file lies.
    (tmp_path / "elsewhere").mkdir()
    (moved,) = evaluation_sets([str(write(tmp_path / "elsewhere" / "all.jsonl", rows))])
    assert (moved.name, moved.sha256) == (plain.name, plain.sha256) and plain.sha256 != single.sha256


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gsm8k", "needs a file"),
        ("gsm8k:{0}/none", "cannot be read"),
        ("{0}/none.jsonl", "no such file"),
        ("{0}/empty.jsonl", "empty"),
        ("{0}/bad.jsonl", "bad.jsonl:2: not valid JSON"),
        ("{0}/other.jsonl", "none of the fields prompt, question, problem .found 'text'.; name the question's as"),
        ("{0}/other.jsonl:missing", "'missing' is missing"),
        ("{0}/study.yaml", "expected a study with a list of tasks"),
        ("add=0", "count of problems: found 0"),
    ],
)
def test_evaluation_sets_that_cannot_be_used(tmp_path, spec, message):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{\n')
    write(tmp_path / "other.jsonl", [{"text": "a"}])
    (tmp_path / "study.yaml").write_text("title: a\n")
    with pytest.raises(InputError, match=message) as error:
        evaluation_sets([spec.format(tmp_path)])
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not DATA.is_dir(), reason="no real data here")
def test_real_questions():
    """GSM8K's test set shares 13 words with four of its training questions; one pattern, a phrase or two, no copy."""
    index = EvaluationIndex(evaluation_sets([f"gsm8k:{DATA}/gsm8k"]))
    assert len(index.texts) == 1319
    texts = [json.loads(line)["question"] for line in (DATA / "gsm8k" / "train.jsonl").open(encoding="utf-8")]
    hits = [match for text in texts for match in index.matches(word_hashes(words(text)))]
    assert not any(index.same(normal_form(text, words(text))) for text in texts)
    assert sorted(round(match.coverage, 2) for match in hits) == [0.37, 0.45, 0.76, 0.76]

"""GSM8K and AQuA files: small ones written here, and the real ones where they are."""

import json
from pathlib import Path

import pytest

from distill.errors import InputError
from distill.tasks import get_task
from distill.tasks.task import split_of

DATA = Path(__file__).parents[3] / "shared" / "data"
SPLITS = ("train", "validation", "test")


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def gsm8k_row(i: int, answer: str | None = None) -> dict:
    return {"question": f"What is {i} + 1?", "answer": answer or f"{i} + 1 = <<{i}+1={i + 1}>>{i + 1}.\n#### {i + 1:,}"}


def aqua_row(i: int, **changes) -> dict:
    return {
        "question": f"What is {i} + 1?",
        "options": [f"A){i}", f"B){i + 1}", f"C) {i + 2}"],
        "rationale": f"{i} + 1 = {i + 1}\nAnswer: B",
        "correct": "B",
    } | changes


def everything(task) -> dict[str, list]:
    found = {}
    for split in SPLITS:
        with pytest.raises(InputError) as error:
            task.problems(split, 10**6, 0)
        found[split] = task.problems(split, int(str(error.value).rsplit(" ", 1)[1]), 0)
    return found


def test_gsm8k_single_file(tmp_path):
    path = write_jsonl(tmp_path / "questions.jsonl", [gsm8k_row(i) for i in range(2000)])
    task = get_task(f"gsm8k:{path}")
    problems = everything(task)
    assert sum(map(len, problems.values())) == task.distinct_prompts == 2000
    for split in SPLITS:
        assert all(split_of(p.prompt) == split for p in problems[split])
    problem = next(p for split in SPLITS for p in problems[split] if p.prompt == "What is 1998 + 1?")
    assert task.solve(problem) == ("1998 + 1 = 1999.", "1,999")
    for right in ("1999", "1,999", "$1,999.00", "The answer is 1999 dollars.", r"\boxed{1999}", "#### 1999"):
        assert task.is_correct(problem, right)
    for wrong in ("", "1998", "2000", "-1999", "1.999", "19990", "1998 + 1", "1999 or \\boxed{5}", "1,999 is 2000"):
        assert not task.is_correct(problem, wrong)
    assert task.problems("train", 50, 3) == get_task("gsm8k", path).problems("train", 50, 3)
    assert task.problems("train", 50, 3) != task.problems("train", 50, 4)


def test_gsm8k_folder_keeps_its_test_set(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [gsm8k_row(i) for i in range(1000)])
    write_jsonl(tmp_path / "test.jsonl", [gsm8k_row(i) for i in range(990, 1100)])
    task = get_task("gsm8k", tmp_path)
    prompts = {split: {p.prompt for p in found} for split, found in everything(task).items()}
    assert prompts["test"] == {f"What is {i} + 1?" for i in range(990, 1100)}
    assert len(prompts["train"]) + len(prompts["validation"]) == 990  # what is also in the test set is test only
    assert not prompts["train"] & prompts["validation"]
    assert 40 < len(prompts["validation"]) < 200


def test_revision_follows_the_content(tmp_path):
    one = get_task("gsm8k", write_jsonl(tmp_path / "a.jsonl", [gsm8k_row(1)]))
    same = get_task("gsm8k", write_jsonl(tmp_path / "b.jsonl", [gsm8k_row(1)]))
    other = get_task("gsm8k", write_jsonl(tmp_path / "c.jsonl", [gsm8k_row(2)]))
    assert one.revision == same.revision != other.revision


def test_aqua(tmp_path):
    path = write_jsonl(tmp_path / "dev.json", [aqua_row(i) for i in range(300)])
    task = get_task(f"aqua:{path}")
    problem = next(p for found in everything(task).values() for p in found if p.prompt.startswith("What is 7 + 1?"))
    assert problem.prompt == "What is 7 + 1?\nA) 7\nB) 8\nC) 9"
    assert task.solve(problem) == ("7 + 1 = 8\nAnswer: B", "B")
    for right in ("B", "(B)", "B.", "B) 8", "the answer is B", r"\boxed{B}"):
        assert task.is_correct(problem, right)
    for wrong in ("", "A", "8", "A or B", "C) 8", "The answer is A"):
        assert not task.is_correct(problem, wrong)
    assert get_task("aqua", tmp_path).distinct_prompts == 300


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("gsm8k", "{not json", r":2: not valid JSON"),
        ("gsm8k", "[1, 2]", r":2: expected a JSON object, found list"),
        ("gsm8k", "[" * 100_000, r":2: not valid JSON"),
        ("gsm8k", "1" * 5000, r":2: not valid JSON"),
        ("gsm8k", '{"question": "\\ud800", "answer": "1 #### 1"}', r":2: field 'question': not valid Unicode"),
        ("gsm8k", {"question": "What?"}, r":2: field 'answer' is missing"),
        ("gsm8k", {"question": 3, "answer": "#### 1"}, r":2: field 'question': expected text, found int"),
        ("gsm8k", gsm8k_row(1, "no mark"), r":2: field 'answer': expected worked steps"),
        ("gsm8k", gsm8k_row(1, "steps #### many"), r":2: field 'answer': expected worked steps"),
        ("gsm8k", gsm8k_row(1, "#### 1"), r":2: field 'answer': no worked steps"),
        ("aqua", aqua_row(1, options="A)1"), r":2: field 'options': expected a list"),
        ("aqua", aqua_row(1, options=["A)1", "C)2"]), r":2: field 'options': expected option 2 to begin with 'B\)'"),
        ("aqua", aqua_row(1, options=["A)1", None]), r":2: field 'options\[1\]': expected text"),
        ("aqua", aqua_row(1, correct="D"), r":2: field 'correct': expected one of ABC, found 'D'"),
        ("aqua", aqua_row(1, rationale=" "), r":2: field 'rationale' is empty"),
    ],
)
def test_bad_rows_are_named(tmp_path, name, bad, message):
    good = gsm8k_row(0) if name == "gsm8k" else aqua_row(0)
    path = write_jsonl(tmp_path / "bad.jsonl", [good, bad])
    with pytest.raises(InputError, match=message) as error:
        get_task(name, path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: cannot be read"):
        get_task(f"gsm8k:{tmp_path}/none.jsonl")
    with pytest.raises(InputError, match=r"test\.jsonl: no such file; expected a folder"):
        get_task(f"gsm8k:{tmp_path}")
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(gsm8k_row(0)).encode() + b'\n{"question": "caf\xe9"}\n')
    with pytest.raises(InputError, match=r"latin\.jsonl:2: not UTF-8"):
        get_task(f"gsm8k:{tmp_path}/latin.jsonl")


@pytest.mark.skipif(not DATA.is_dir(), reason="the real files are not here")
def test_the_real_files():
    gsm8k = get_task("gsm8k", DATA / "gsm8k")
    problems = everything(gsm8k)
    assert sum(map(len, problems.values())) == 7473 + 1319 and len(problems["test"]) == 1319
    aqua = get_task("aqua", DATA / "aqua" / "dev.json")
    assert aqua.distinct_prompts == 254
    for task in (gsm8k, aqua):
        for problem in [p for found in everything(task).values() for p in found]:
            reasoning, answer = task.solve(problem)
            assert task.is_correct(problem, answer) and "<<" not in reasoning
            wrong = "C" if answer != "C" else "D"
            assert not task.is_correct(problem, wrong if task is aqua else f"{answer}1")

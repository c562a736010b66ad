"""Questions of one's own: fields, splits, bad rows and grading, the same from every kind of source."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.errors import InputError
from distill.evaluation.gradable import check_gradable
from distill.settings import validate
from distill.tasks import get_task
from distill.tasks.check_pool import check_all
from distill.tasks.checkers import QUICK, check
from distill.tasks.questions import BadRow, OwnTask, QuestionFile
from distill.tasks.task import split_of
from distill.traces.asked import open_tasks
from distill.traces.settings import GenerateSettings


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def question_file(path: Path, **fields) -> QuestionFile:
    return validate(QuestionFile, {"path": path, **fields}, source="test")


def prompts(task: OwnTask) -> list[str]:
    return [problem.prompt for problem in task.problems("all", None, 0)]


def test_every_kind_of_source_gives_the_same_task(tmp_path, rng):
    datasets = pytest.importorskip("datasets")
    rows = [
        {"question": f"what is {i}?", "extra": {"answer": int(i), "note": "n"}, "other": "x"}
        for i in rng.choice(10**6, size=3000, replace=False).tolist()
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "rows.txt").write_bytes((tmp_path / "rows.jsonl").read_bytes())
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=700)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.bin")  # known by what it begins with
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(str(tmp_path / "dict"))
    tasks = [
        get_task("mine", question_file(tmp_path / name, prompt="question", answer="extra.answer", checker="number"))
        for name in ("rows.jsonl", "rows.txt", "rows.parquet", "rows.bin", "saved", "dict")
    ]
    assert prompts(tasks[0]) == [row["question"] for row in rows]
    for task in tasks:
        assert task.problems("all", None, 0) == tasks[0].problems("all", None, 0)
        assert (task.revision, task.rows, task.bad_rows) == (tasks[0].revision, 3000, [])
        assert list(task.places().values()) == list(range(3000))
    problem = tasks[0].problems("all", None, 0)[7]
    assert (problem.task, problem.gold, problem.answer_format) == ("mine", str(rows[7]["extra"]["answer"]), "open")


def test_splits(tmp_path):
    task = OwnTask("mine", question_file(write_jsonl(tmp_path / "q.jsonl", [{"prompt": f"{i}?"} for i in range(500)])))
    parts = {split: task.problems(split, None, 0) for split in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == len(task.problems("all", None, 5)) == task.distinct_prompts == 500
    for split, problems in parts.items():
        assert all(split_of(problem.prompt) == split for problem in problems)
        drawn = task.problems(split, len(problems), 3)
        assert drawn[:20] == task.problems(split, 20, 3) != task.problems(split, 20, 4)
        assert sorted(p.id for p in drawn) == sorted(p.id for p in problems)
    for split, count, message in (("tests", 1, "unknown split"), ("all", 501, "only 500"), ("train", 0, "at least 1")):
        with pytest.raises(InputError, match=message):
            task.problems(split, count, 0)


def test_bad_rows_end_it_or_are_kept(tmp_path):
    rows = [{"prompt": "a"}, "{", {"prompt": " a "}, {"q": "b"}, {"prompt": "c"}, {"prompt": "a"}]
    path = write_jsonl(tmp_path / "q.jsonl", rows)
    with pytest.raises(InputError, match=r"q\.jsonl:2: not valid JSON"):
        OwnTask("mine", question_file(path))
    task = OwnTask("mine", question_file(path, skip_bad=True))
    assert prompts(task) == ["a", "c"] and list(task.places().values()) == [0, 4] and task.rows == 6
    assert [(row.place, row.source, row.reason) for row in task.bad_rows] == [
        (1, "q.jsonl:2", "malformed"),
        (2, "q.jsonl:3", "repeated"),
        (3, "q.jsonl:4", "malformed"),
        (5, "q.jsonl:6", "repeated"),
    ]
    assert task.bad_rows[3] == BadRow(5, "q.jsonl:6", "repeated", "the same question as row 1")
    assert task.bad_rows[2].detail == "field 'prompt' is missing (found 'q')"
    repeated = write_jsonl(tmp_path / "again.jsonl", [{"prompt": "a"}] * 3)  # which is no error
    assert [row.reason for row in OwnTask("mine", question_file(repeated)).bad_rows] == ["repeated"] * 2
    for name, lines in (("none", ["{", "[]"]), ("empty", [])):
        path = write_jsonl(tmp_path / f"{name}.jsonl", lines)
        with pytest.raises(
            InputError, match=rf"{name}\.jsonl: no question in it \((none\.jsonl:1: not|the file is em)"
        ):
            OwnTask("mine", question_file(path, skip_bad=True))


USER, SYSTEM, REPLY = ({"role": role, "content": role[0]} for role in ("user", "system", "assistant"))


@pytest.mark.parametrize(
    ("prompt", "system", "expected"),
    [
        ("  two lines\nof text\n", "refuse", "two lines\nof text"),
        ([USER], "refuse", "u"),
        ([{"from": "human", "value": "u"}], "refuse", "u"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "refuse", "ab"),
        ([SYSTEM, USER], "join", "s\n\nu"),
        ([SYSTEM, USER], "drop", "u"),
        ([SYSTEM, USER], "refuse", "a system message"),
        ([USER, REPLY], "join", "expected one question by the user, found user, assistant"),
        ([USER, REPLY, USER], "join", "expected one question by the user, found user, assistant, user"),
        ([USER, SYSTEM], "join", "expected one question by the user, found user, system"),
        ([SYSTEM], "join", "expected one question by the user, found none"),
        ([], "join", "expected a list of messages, found an empty list"),
        ([USER, "x"], "join", r"field 'prompt\[1\]': expected a message, found str"),
        ([{"role": "tool", "content": "x"}], "join", r"field 'prompt\[0\]\.role': expected user, assistant or system"),
        ([{"role": "user", "content": [{"type": "image"}]}], "join", "found parts that are not text"),
        ([{"role": "user", "content": None}], "join", r"field 'prompt\[0\]\.content': expected text, found NoneType"),
        ({"text": "x"}, "join", "field 'prompt': expected text, found dict"),
    ],
)
def test_prompts(tmp_path, prompt, system, expected):
    path = write_jsonl(tmp_path / "q.jsonl", [{"prompt": prompt}])
    try:
        assert prompts(OwnTask("mine", question_file(path, system=system))) == [expected]
    except InputError as error:
        assert re.search(rf"q\.jsonl:1: .*{expected}", str(error)), error


@pytest.mark.parametrize(
    ("gold", "expected"),
    [
        (" 4 ", "4"),
        (4, "4"),
        (4.0, "4"),
        (0.1, "0.1"),
        (-(10**400), f"-1{'0' * 400}"),
        (1e300, "1e+300"),
        (True, None),
        (None, None),
        ("", None),
        (["4"], None),
        (float("nan"), None),
        (float("inf"), None),
        ("\ud800", None),
    ],
)
def test_gold_answers(tmp_path, gold, expected):
    path = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "a", "gold": gold}])
    if expected is None:
        with pytest.raises(InputError, match=r"q\.jsonl:1: field 'gold'"):
            OwnTask("mine", question_file(path, answer="gold"))
    else:
        (problem,) = OwnTask("mine", question_file(path, answer="gold")).problems("all", None, 0)
        assert problem.gold == expected


def test_a_key_may_have_a_dot_in_its_name(tmp_path):
    rows = [{"a.b": "whole", "a": {"b": "part"}}, {"a": {"b": "part"}}]
    path = write_jsonl(tmp_path / "q.jsonl", rows)
    assert prompts(OwnTask("mine", question_file(path, prompt="a.b"))) == ["whole", "part"]
    pq.write_table(pa.table({"a.b": ["whole"], "a": [{"b": "part"}]}), tmp_path / "q.parquet")
    assert prompts(OwnTask("mine", question_file(tmp_path / "q.parquet", prompt="a.b"))) == ["whole"]
    with pytest.raises(InputError, match=r"q\.parquet: column 'c.b' is missing \(found a.b, a\)"):
        OwnTask("mine", question_file(tmp_path / "q.parquet", prompt="c.b"))


GOLD = {"exact": "Paris", "normalised": "the Seine", "number": "1,080", "choice": "B", "labels": "a, b"}
GOLD |= {"near_number": "200", "squad": '["the Seine", "Seine river"]'}
WRONG = {"exact": "Rome", "normalised": "Tiber", "number": "1081", "choice": "C", "labels": "a, c"}
WRONG |= {"near_number": "180", "squad": "Tiber"}


@pytest.mark.parametrize("checker", QUICK)
def test_checkers_grade(tmp_path, checker):
    path = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "a", "gold": GOLD[checker]}])
    task = OwnTask("mine", question_file(path, answer="gold", checker=checker))
    (problem,) = task.problems("all", None, 0)
    right = "seine" if checker == "squad" else GOLD[checker]
    assert task.is_correct(problem, right) and not task.is_correct(problem, WRONG[checker])
    answers = [right, "9**9**9"]
    verdicts = [check(task.checker, problem.gold, answer) for answer in answers]
    assert task.metrics["accuracy"].score([problem] * 2, answers, verdicts) == 0.5
    ungraded = OwnTask("mine", question_file(path, answer="gold"))
    assert ungraded.is_correct is None and ungraded.metrics == {} and ungraded.revision != task.revision


def test_a_gold_answer_that_nothing_can_equal_is_a_bad_row(tmp_path):
    path = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "a", "gold": "4"}, {"prompt": "b", "gold": "four"}])
    with pytest.raises(InputError, match=r"q\.jsonl:2: field 'gold': checker number calls it no answer \(no number"):
        OwnTask("mine", question_file(path, answer="gold", checker="number"))


def test_settings_that_make_no_sense(tmp_path):
    path = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "a"}])
    for fields, message in (
        ({"checker": "exacd", "answer": "gold"}, "unknown checker of questions 'exacd': did you mean 'exact'"),
        ({"checker": "ifeval", "answer": "gold"}, "unknown checker of questions 'ifeval'"),
        ({"checker": "exact"}, "checker exact needs the field of the gold answer"),
        ({"promt": "x"}, "field promt: no such field; did you mean prompt"),
        ({"answer_format": "essay"}, "field answer_format"),
        ({"system": "keep"}, "field system"),
    ):
        with pytest.raises(InputError, match=message):
            question_file(path, **fields)
    for name, message in (
        ("add", "the name is taken"),
        ("gsm8k", "taken"),
        ("a:b", "expected a name of"),
        ("", "name"),
    ):
        with pytest.raises(InputError, match=message):
            get_task(name, question_file(path))
    task = get_task("mine", question_file(path))
    with pytest.raises(InputError, match="task mine: has no worked solutions"):
        task.solve(task.problems("all", 1, 0)[0])


def test_formulas_are_checked_in_processes_of_their_own(tmp_path, rng):
    a, b = (int(n) for n in rng.integers(2, 90, 2))
    path = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "a", "gold": rf"\frac{{{a}}}{{{b}}} + x"}])
    task = OwnTask("mine", question_file(path, answer="gold", checker="math"))
    check_gradable(task)
    (problem,) = task.problems("all", None, 0)
    answers = [rf"It is $x + \frac{{{2 * a}}}{{{2 * b}}}$.", rf"\boxed{{x + {a}/{b + 1}}}", "9**9**9**9"]
    found = {}
    check_all(task.checker, ((problem.gold, answer) for answer in answers), found.__setitem__, processes=1)
    assert [found[i].correct for i in range(3)] == [True, False, False]
    assert task.metrics.keys() == {"accuracy"} and task.is_correct is None
    settings = GenerateSettings(
        tasks={"mine": None}, data={"mine": {"path": path, "answer": "gold", "checker": "math"}}
    )
    with pytest.raises(InputError, match="task mine: checker math needs processes of its own; leave it out, and run"):
        open_tasks(settings)


def test_the_revision_is_of_what_was_read(tmp_path):
    rows = [{"prompt": f"{i}?", "gold": i, "more": i} for i in range(20)]
    base = OwnTask("mine", question_file(write_jsonl(tmp_path / "a.jsonl", rows), answer="gold"))

    def revision(rows, **fields):
        file = question_file(write_jsonl(tmp_path / "b.jsonl", rows), **{"answer": "gold", **fields})
        return OwnTask("mine", file).revision

    assert base.revision == revision([row | {"more": "other"} for row in rows])  # a field that is not read
    others = [
        revision(rows[:-1]),
        revision([*rows, {"prompt": "new", "gold": 1}]),
        revision(rows[::-1]),
        revision([rows[0] | {"gold": 7}, *rows[1:]]),
        revision([*rows, rows[0]]),
        revision([*rows, "{"], skip_bad=True),
        revision(rows, checker="number"),
        revision(rows, answer_format="extraction"),
    ]
    assert len({base.revision, *others}) == 1 + len(others)


def test_only_the_columns_that_are_asked_for_are_read(tmp_path, rng):
    other = [rng.bytes(2000).hex() for _ in range(200)]
    table = pa.table({"prompt": [f"{i}?" for i in range(200)], "other": other, "gold": list(range(200))})
    path = tmp_path / "q.parquet"
    pq.write_table(table, path, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    at = pq.read_metadata(path).row_group(0).column(1).data_page_offset
    content[at : at + 30] = bytes(255 - byte for byte in content[at : at + 30])  # the header of its first page
    path.write_bytes(content)
    assert len(prompts(OwnTask("mine", question_file(path, answer="gold")))) == 200
    with pytest.raises(InputError, match=r"q\.parquet: cannot be read after row 0"):
        OwnTask("mine", question_file(path, prompt="other"))


def unreachable():
    raise ConnectionError("out of reach")


def test_hub_ids(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name, config):
        asked.append((name, config))
        parts = {"train": [{"prompt": "t"}], "test": [{"prompt": "e"}]}
        return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in parts.items()})

    monkeypatch.setattr(datasets, "load_dataset", load)
    for name, prompt in (("a/b", "t"), ("a/b:main", "t"), ("a/b:main:test", "e"), ("a/b::test", "e")):
        assert prompts(OwnTask("mine", question_file(name))) == [prompt]
    assert asked == [("a/b", None), ("a/b", "main"), ("a/b", "main"), ("a/b", None)]
    with pytest.raises(InputError, match="a/b::dev: expected a split named 'dev', found train, test"):
        OwnTask("mine", question_file("a/b::dev"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: unreachable())
    with pytest.raises(InputError, match=r"aime25.* \(out of reach\); --data aime=PATH takes rows that you have$"):
        get_task("aime")
    with pytest.raises(InputError, match=r"main.* \(out of reach\); --data gsm8k\.yaml=PATH takes"):
        get_task("gsm8k.yaml")
    with pytest.raises(InputError, match=r"a/b.* \(out of reach\)$"):
        get_task("aime", Path("a/b"))
    for name in ("a/b:c:d:e", "a", "a/b.jsonl", "a/b/c:train"):
        with pytest.raises(InputError, match="no such file"):
            OwnTask("mine", question_file(name))
    assert len(asked) == 5


def test_a_folder_without_data(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="no data in this folder; expected JSON lines, Parquet"):
        OwnTask("mine", question_file(tmp_path))


def test_a_folder_as_on_the_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine" / "data").mkdir(parents=True)
    for split, part, count in (("train", 0, 3), ("train", 1, 2), ("test", 0, 4)):
        table = pa.table({"prompt": [f"{split} {part} {i}" for i in range(count)]})
        pq.write_table(
            table, tmp_path / "mine" / "data" / f"{split}-{part:05d}-of-{2 if split == 'train' else 1:05d}.parquet"
        )
    task = OwnTask("mine", question_file(tmp_path / "mine"))
    assert prompts(task) == [f"train 0 {i}" for i in range(3)] + [f"train 1 {i}" for i in range(2)]


def test_a_file_given_as_a_task_and_more_questions_than_there_are(tmp_path):
    path = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "q"}])
    with pytest.raises(InputError, match=r"a file of questions of your own; expected --data .*q\.jsonl"):
        get_task(str(path))
    task = OwnTask("mine", question_file(path))
    with pytest.raises(InputError, match="task mine: 9 problems asked for, but there are only 1"):
        task.problems("all", 9, 0)

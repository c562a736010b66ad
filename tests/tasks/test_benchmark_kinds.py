"""A benchmark of each kind, written as docs/benchmarks-howto.md shows it: read, shown, and graded."""

import json
import re
from pathlib import Path

import pytest
import yaml

from distill.errors import InputError
from distill.tasks import get_task

KINDS = {
    "choice": {
        "file": {
            "fields": {"question": "q", "choices": "opts", "right": "key"},
            "options": "choices",
            "prompt": "{question}\n\n{options}\n",
            "gold": {"field": "right", "read": "letter"},
            "format": "choice",
            "checker": "choice",
        },
        "rows": [{"q": "Which bird cannot fly?", "opts": ["hen", "emu", "owl"], "key": "B"}],
        "prompt": "Which bird cannot fly?\n\nA) hen\nB) emu\nC) owl",
        "gold": "B",
        "right": ["The answer is (B).", "\\boxed{b}"],
        "wrong": ["C", "<think>B</think> A"],
    },
    "number": {
        "file": {
            "fields": {"shape": "shape", "area": "area"},
            "prompt": "What is the area of {shape}?",
            "gold": {"field": "area"},
            "format": "open",
            "checker": "number",
        },
        "rows": [{"shape": "a square of side 3.5", "area": 12.25}, {"shape": "a square of side 3", "area": 9.0}],
        "prompt": "What is the area of a square of side 3.5?",
        "gold": "12.25",
        "right": ["\\boxed{12.250}", "It is 12.25."],
        "wrong": ["\\boxed{12}", "-12.25"],
    },
    "several golds": {
        "file": {
            "fields": {"text": "text", "ask": "ask", "accepted": "ok"},
            "prompt": "{text} {ask}",
            "gold": {"field": "accepted", "read": "any_of"},
            "format": "open",
            "checker": "squad",
            "metrics": ["accuracy", "squad_f1"],
        },
        "rows": [{"text": "Ada met Bo.", "ask": "Who met Bo?", "ok": ["Ada", "Ada did"]}],
        "prompt": "Ada met Bo. Who met Bo?",
        "gold": '["Ada", "Ada did"]',
        "right": ["\\boxed{the Ada}", "ada did"],
        "wrong": ["Bo", "Ada and Bo"],
    },
    "labels": {
        "file": {
            "fields": {"text": "t", "topics": "l"},
            "prompt": "Topics of: {text}",
            "gold": {"field": "topics", "read": "labels"},
            "format": "labels",
            "checker": "labels",
            "metrics": ["accuracy", "macro_f1"],
        },
        "rows": [
            {"t": "Goals in the rain", "l": "sport, weather"},
            {"t": "Wind", "l": ["weather"]},
            {"t": "Hm", "l": []},
        ],
        "prompt": "Topics of: Goals in the rain",
        "gold": '["sport", "weather"]',
        "right": ["\\boxed{weather, sport}", '["sport", "weather"]'],
        "wrong": ["\\boxed{weather}", "\\boxed{sport, weather, news}"],
    },
    "extraction": {
        "file": {
            "fields": {"text": "doc.text", "total": "total"},
            "prompt": "{text}\n\nWhat is the total?",
            "gold": {"field": "total"},
            "format": "extraction",
            "checker": "normalised",
            "metrics": ["accuracy", "rouge_l"],
            "max_tokens": 256,
        },
        "rows": [{"doc": {"text": "In all 7 USD."}, "total": "7 USD"}],
        "prompt": "In all 7 USD.\n\nWhat is the total?",
        "gold": "7 USD",
        "right": ["\\boxed{7 usd}", "7 USD."],
        "wrong": ["\\boxed{7}", "70 USD"],
    },
    "judged": {
        "file": {
            "fields": {"question": "q", "answer": "a"},
            "prompt": "{question}",
            "gold": {"field": "answer"},
            "format": "open",
            "checker": "judge",
            "metrics": ["accuracy", "rouge_l"],
        },
        "rows": [{"q": "Why does ice float?", "a": "It is less dense than water."}],
        "prompt": "Why does ice float?",
        "gold": "It is less dense than water.",
        "right": [],
        "wrong": [],
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_benchmark_of_each_kind(tmp_path, monkeypatch, kind):
    case = KINDS[kind]
    monkeypatch.chdir(tmp_path)
    head = {"name": "mine", "title": "Mine", "group": "own"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(head | case["file"], sort_keys=False))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in case["rows"]))
    task = get_task("mine.yaml:rows.jsonl")
    problems = task.problems("test", None, 0)
    assert (
        len(problems) == len(case["rows"]) and problems[0].prompt == case["prompt"] and problems[0].gold == case["gold"]
    )
    assert list(task.metrics) == list(case["file"].get("metrics", ["accuracy"]))
    for answer in case["right"]:
        assert task.is_correct(problems[0], answer), answer
    for answer in case["wrong"]:
        assert not task.is_correct(problems[0], answer), answer
    if kind == "judged":
        with pytest.raises(InputError, match="task mine: checker judge"):
            task.is_correct(problems[0], "It floats.")


def test_the_table_of_the_howto_says_so():
    text = (Path(__file__).parents[2] / "docs" / "benchmarks-howto.md").read_text(encoding="utf-8")
    rows = text.split("| kind | in the file | in a row |\n")[1].split("\n\n")[0].splitlines()[1:]
    kinds = [kind for kind in KINDS if kind != "choice"]
    for kind, row in zip(kinds, rows, strict=True):
        _, _, lines, field, _ = row.split("|")
        for line in re.findall("`([a-z_]+: [^`]+)`", lines):
            ((name, value),) = yaml.safe_load(line).items()
            assert KINDS[kind]["file"][name] == value, (kind, line)
        shown = json.loads("{" + field.strip().strip("`") + "}")
        assert shown.keys() == {KINDS[kind]["file"]["gold"]["field"]}

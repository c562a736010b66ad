"""Taking outputs apart, keeping them, and grading them: what is not finished is wrong, reasoning is never the answer."""

import pytest

from distill.errors import InputError
from distill.evaluation.answer_file import read_answers, write_answers
from distill.evaluation.answers import take_apart
from distill.evaluation.generate import Journal, Output
from distill.evaluation.grading import grade, summarise
from distill.evaluation.questions import Asked, Prompts
from distill.evaluation.requests import requests
from distill.evaluation.responses import read_output
from distill.evaluation.settings import EvaluateSettings
from distill.flops import ModelShape
from distill.packing.chat import COMPACT, ChatFormat, ThinkFormat
from distill.packing.tokenizer import train_tokenizer
from distill.tasks import get_task

SHAPE = ModelShape(layers=2, hidden=64, heads=2, kv_heads=2, head_dim=32, intermediate=172, vocab=304)


@pytest.fixture(scope="module")
def chat():
    """Its think tags are one token each."""
    return ChatFormat(train_tokenizer(["max A3 B9 C5 D1 7:7"] * 3, 300), COMPACT, source="here")


@pytest.fixture(scope="module")
def spelled():
    """Its think tags are spelled with several tokens."""
    tokenizer = train_tokenizer(["max A3 B9 C5 D1 7:7"] * 3, 300)
    return ChatFormat(
        tokenizer,
        ThinkFormat(opening="[T]", closing="[/T]", after_opening="", before_closing="", after_closing=""),
        source="here",
    )


def ids(chat, text):
    return chat.tokenizer(text, add_special_tokens=False)["input_ids"]


CASES = [
    # generated, thinking, answer, thought, closed
    ("<think>a b</think> 17<|end|>", "a b", "17", True, True),
    ("17<|end|>", "", "17", False, True),
    ("<think>a b 17<|end|>", "a b 17<|end|>", "", True, False),
    ("<think>a 17", "a 17", "", True, False),
    ("<think>a</think>b<think>c</think>d<|end|>", "ac", "b\nd", True, True),
    ("7<think>a</think>2<|end|>", "a", "7\n2", True, True),  # not 72
    ("<think>a</think>17</think>", "a", "17", True, True),
    ("17</think>", "17", "", True, True),
    ("</think>17<|end|>", "", "17", True, True),
    ("<think>a</think>1</think>7<|end|>", "a", "1\n7", True, True),
    ("<think>a</think>b<think>c", "ac", "b", True, False),
    ("a</think>17<|end|>", "a", "17", True, True),
    ("<think></think><|end|>", "", "", True, True),
    ("<|end|>", "", "", False, True),
    ("", "", "", False, True),
]


@pytest.mark.parametrize(("text", "thinking", "answer", "thought", "closed"), CASES)
def test_parts_of_an_output(chat, text, thinking, answer, thought, closed):
    generated = ids(chat, text)
    parts = take_apart(chat, generated)
    assert (parts.thinking, parts.answer, parts.thought, parts.closed) == (thinking, answer, thought, closed)
    assert parts.thinking_tokens + parts.answer_tokens == len(generated)


@pytest.mark.parametrize(
    ("text", "thinking", "answer", "thought", "closed"),
    [
        ("[T]a b[/T]17<|end|>", "a b", "17", True, True),
        ("17<|end|>", "", "17", False, True),
        ("[T]a 17", "[T]a 17".removeprefix("[T]"), "", True, False),
        ("a[/T]17<|end|>", "a", "17", True, True),
        ("[T]a[/T]1 [T]maybe 42<|end|>", "a[/T]1 [T]maybe 42<|end|>", "", True, False),
    ],
)
def test_parts_where_the_tags_are_several_tokens(spelled, text, thinking, answer, thought, closed):
    assert spelled.think_close_id is None
    generated = ids(spelled, text)
    parts = take_apart(spelled, generated)
    assert (parts.thinking, parts.answer, parts.thought, parts.closed) == (thinking, answer, thought, closed)
    assert parts.thinking_tokens + parts.answer_tokens == len(generated)


class Subject:
    """What reading an output needs of a subject."""

    def __init__(self, chat):
        self.chat, self.tokenizer = chat, chat.tokenizer

    def require_chat(self):
        return self.chat


def graded(chat, task, problems, prompts, outputs):
    settings = EvaluateSettings(questions=[{"task": task.name, "count": len(problems)}])
    wanted = requests(settings, [Asked(task, problems)], Prompts(prompts))
    answers = [read_output(Subject(chat), Prompts(prompts), r, outputs[r.problem.id]) for r in wanted]
    return grade([Asked(task, problems)], answers)


def test_unfinished_is_wrong_and_reasoning_is_never_graded(chat, tmp_path):
    task = get_task("max")
    problems = task.problems("test", 8, 1)
    gold = [p.gold for p in problems]
    wrong = ["ABCD".replace(letter, "")[0] for letter in gold]
    outputs = [
        (f"<think>x</think>{gold[0]}<|end|>", "stop", True, True),
        (f"{gold[1]}<|end|>", "stop", True, True),
        (f"<think>x</think>{wrong[2]}<|end|>", "stop", True, False),
        (f"<think>x</think>{gold[3]}", "length", False, False),  # right, and cut off
        (f"<think>{gold[4]}", "length", False, False),
        (f"<think>{gold[5]}<|end|>", "stop", False, False),  # ended its turn inside the block
        (f"<think>{gold[6]}</think>{wrong[6]}<|end|>", "stop", True, False),
        (f"<think>{gold[7]}</think><|end|>", "stop", True, False),
    ]
    rows = {p.id: Output(ids(chat, text), why, 0.25) for p, (text, why, _, _) in zip(problems, outputs, strict=True)}
    prompts = {p.id: ids(chat, p.prompt) for p in problems}
    asked = [Asked(task, problems)]
    answers = graded(chat, task, problems, prompts, rows)
    assert [(a.finished, a.correct) for a in answers] == [(done, right) for _, _, done, right in outputs]
    write_answers(tmp_path / "answers.parquet", answers)
    assert read_answers(tmp_path / "answers.parquet") == answers

    summary = summarise(asked, answers, SHAPE)["max"]
    assert (summary["n_questions"], summary["n_correct"]) == (8, 2)
    assert summary["metrics"]["accuracy"] == pytest.approx(2 / 8)
    assert summary["unfinished_rate"] == pytest.approx(3 / 8)
    assert summary["accuracy_finished"] == pytest.approx(2 / 5)
    assert summary["think_rate"] == pytest.approx(7 / 8)
    tokens = [len(ids(chat, text)) for text, *_ in outputs]
    assert summary["tokens_per_answer"]["total"] == pytest.approx(sum(tokens) / 8)
    for kind, places in {"right": [0, 1], "wrong": [2, 3, 4, 5, 6, 7], "wrong_finished": [2, 6, 7]}.items():
        means = {
            part: sum(getattr(answers[i], f"{part}_tokens") for i in places) / len(places)
            for part in ("thinking", "answer")
        }
        total = sum(tokens[i] for i in places) / len(places)
        wanted = {"n_answers": len(places), **means, "total": total}
        assert summary["tokens_by_grade"][kind] == pytest.approx(wanted)
    flops = sum(SHAPE.generation_flops(len(prompts[p.id]), n) for p, n in zip(problems, tokens, strict=True))
    assert summary["flops_per_answer"] == pytest.approx(flops / 8)
    assert summary["flops_per_correct"] == pytest.approx(flops / 2)


def test_nothing_right_and_nothing_finished(chat):
    task = get_task("max")
    problems = task.problems("test", 2, 1)
    answers = graded(
        chat,
        task,
        problems,
        {p.id: [1, 2] for p in problems},
        {p.id: Output(ids(chat, "<think>x"), "length", 1.0) for p in problems},
    )
    summary = summarise([Asked(task, problems)], answers, SHAPE)["max"]
    assert summary["accuracy_finished"] is None and summary["flops_per_correct"] is None
    assert summary["unfinished_rate"] == 1.0 and summary["metrics"]["accuracy"] == 0.0
    none = {"n_answers": 0, "thinking": None, "answer": None, "total": None}
    assert summary["tokens_by_grade"]["right"] == summary["tokens_by_grade"]["wrong_finished"] == none
    assert summary["audit"] is None and summary["grading"]["not_audited"] == "no answer is finished"


def test_a_journal_survives_being_torn_anywhere(tmp_path, rng):
    """Whatever prefix of the file a kill leaves, every whole line is kept verbatim and the rest can be added again."""
    path = tmp_path / "outputs.journal.jsonl"
    outputs = {
        f"add/{i}": Output(rng.integers(0, 500, int(rng.integers(0, 30))).tolist(), "stop", float(rng.random()))
        for i in range(12)
    }
    with Journal(path) as journal:
        for question, output in outputs.items():
            journal.add(question, output)
    whole = path.read_bytes()
    for cut in {0, 1, len(whole), *rng.integers(0, len(whole), 40).tolist()}:
        path.write_bytes(whole[:cut])
        complete = whole[:cut].count(b"\n")
        with Journal(path) as journal:
            assert journal.outputs == dict(list(outputs.items())[:complete])
            for question in list(outputs)[complete:]:
                journal.add(question, outputs[question])
        assert path.read_bytes() == whole


def test_token_ids_are_held_once(tmp_path, rng):
    """What a journal gives back has one object for each id, however often it stands in the file."""
    ids = rng.integers(1000, 150_000, 40).tolist()
    path = tmp_path / "outputs.journal.jsonl"
    with Journal(path) as journal:
        for i in range(3):
            journal.add(f"add/{i}", Output([int(str(n)) for n in ids], "stop", 0.5))
    with Journal(path) as again:
        for of in (journal, again):
            assert [o.token_ids for o in of.outputs.values()] == [ids] * 3
            assert len({id(n) for o in of.outputs.values() for n in o.token_ids}) == len(set(ids))


def test_a_damaged_line_in_a_journal_is_named(tmp_path, rng):
    """What stands after it was paid for: it is not cut off."""
    path = tmp_path / "outputs.journal.jsonl"
    with Journal(path) as journal:
        for i in range(6):
            journal.add(f"add/{i}", Output([i], "stop", 0.5))
    lines, place = path.read_bytes().splitlines(keepends=True), int(rng.integers(0, 6))
    for bad, message in ((b"{]\n", rf":{place + 1}: damaged"), (b'{"key":"add/9","value":[]}\n', "damaged at 'add/9'")):
        damaged = b"".join([*lines[:place], bad, *lines[place:]])
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=message):
            Journal(path)
        assert path.read_bytes() == damaged

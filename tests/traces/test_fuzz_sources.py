"""Sources that are broken in every way: one clear line, or every row accounted for; never a traceback or a hang.

Of every kind of source so many inputs are drawn that MALFORMED of them are malformed: a row that is set aside for what is
in it, or a file that is refused. The others say that what is in order passes. With `long` there are many times as many.
"""

import bz2
import gzip
import io
import json
import os
import re
import signal
import zipfile
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.errors import InputError
from distill.tasks import get_task
from distill.tasks.questions import OwnTask, QuestionFile
from distill.traces import generate as generate_module
from distill.traces.faults import FAULTS, fault_of
from distill.traces.generate import generate
from distill.traces.layouts.import_traces import import_file
from distill.traces.pairing import Answer
from distill.traces.settings import GenerateSettings
from distill.traces.store import read_pairs, read_rejected
from distill.traces.trace import Trace

ANY = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=30)
MALFORMED, MALFORMED_LONG = 64, 800  # of each of eight kinds of source: more than 500 in all
ROUNDS = 5  # as many examples as it would take, were one in five malformed
SET_ASIDE = {"unpaired", "repeated"}  # for what other rows are: no fault of the input
NOT_A_FAULT = re.compile(r"no pair in it \(.*(to this question|mode and sample|is empty)\)$")  # the same of all rows


def campaign(least, one):
    """Draw inputs until `least` were malformed, as `one(data)` says of each that it was."""
    found = 0

    @ANY
    @given(data=st.data())
    def draw(data):
        nonlocal found
        found += one(data)

    for _ in range(ROUNDS * least // ANY.max_examples + 1):
        if found < least:
            draw()
    assert found >= least, f"{found} malformed inputs"


def in_a_folder(one):
    """The last argument is a folder of its own, which is gone afterwards."""

    @wraps(one)
    def wrapped(*arguments):
        with TemporaryDirectory() as folder:
            return one(*arguments, Path(folder))

    return wrapped


@contextmanager
def seconds(limit: int):
    def out_of_time(*_):
        raise TimeoutError(f"not done after {limit} s")

    before = signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def one_line(error: InputError, *names: str) -> str:
    text = str(error)
    assert "\n" not in text and len(text) < 1000 and any(name in text for name in names), text
    text.encode(errors="surrogateescape")
    return text


# Rows: those of a layout, in which a field is missing or holds anything.

THINK = st.sampled_from(
    [
        "<think>two and two</think>4",
        "two and two</think>4",
        "<think>two",
        "<think></think>4",
        "<think>a</think>",
        "<think>a</think><think>b</think>c",
        "a <think>b</think> c",
        "</think>",
        "4",
        " ",
        "<think>\x00\x07\u202e<script>alert(1)</script></think>9**9**9",
        "<think>x</think>" + "4" * 100_000,
    ]
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**4000)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["\ud800", "a\udfffb", "\x00", "﻿", "\u2028", "NaN", "user", "assistant", "reasoning", "ift"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PROMPT = st.sampled_from([*["2+2?", "3+3?"] * 6, "\x00", "e\u0301", " ", "a\nb"])  # often the same, so that halves meet


def mostly(strategy):
    return st.sampled_from([*[strategy] * 24, JSON]).flatmap(lambda kind: kind)


def rows_of(**fields):
    """Rows with these fields, now and then without one of them."""
    without = st.sampled_from([*[None] * 20, *fields])
    return st.builds(
        lambda row, gone: {name: value for name, value in row.items() if name != gone},
        st.fixed_dictionaries(fields),
        without,
    )


def maybe(value):
    return st.none() | st.none() | value


def message(role, content, role_key="role", content_key="content"):
    own = (
        {"reasoning_content": maybe(st.just("thought")), "thinking": maybe(maybe(JSON))} if role == "assistant" else {}
    )
    return rows_of(**{role_key: mostly(st.just(role)), content_key: mostly(content)}, **own)


def conversation(question, answer, *keys):
    turns = message(question, PROMPT, *keys), message(answer, THINK, *keys)
    system = message("system", PROMPT, *keys)
    usual = st.tuples(*turns) | st.tuples(*turns) | st.tuples(system, *turns)
    return mostly(st.one_of(*[usual.map(list)] * 4, st.lists(system | turns[0] | turns[1], max_size=4)))


IFT = st.sampled_from(["4", "four", "5", "<think>x</think>4"])
SAID = {
    "mode": mostly(st.sampled_from(["reasoning", "ift"])),
    "sample": maybe(JSON | st.integers(0, 2)),
    "gold": maybe(mostly(st.just(4))),
}
ONE_MESSAGE = st.lists(message("assistant", THINK), min_size=1, max_size=1)
ROWS = {
    "pairs": rows_of(prompt=mostly(PROMPT), reasoning=mostly(THINK), ift=mostly(IFT), gold=maybe(JSON)),
    "gsm8k": rows_of(question=mostly(PROMPT), answer=mostly(st.sampled_from(["2 is 4\n#### 4", "#### 4", "a #### b"]))),
    "aqua": rows_of(
        question=mostly(PROMPT),
        options=mostly(st.sampled_from([["A)3", "B)4"], ["A)3", "B)4"], ["A)3"], ["A)3", "C)4"], ["A)3", None]])),
        rationale=mostly(PROMPT),
        correct=mostly(st.sampled_from("ABC")),
    ),
    "prompt-completion": rows_of(
        prompt=mostly(PROMPT | st.lists(message("user", PROMPT), min_size=1, max_size=1)),
        completion=mostly(st.one_of(THINK, IFT, ONE_MESSAGE)),
        **SAID,
    ),
    "messages": rows_of(messages=conversation("user", "assistant"), **SAID),
    "sharegpt": rows_of(conversations=conversation("human", "gpt", "from", "value"), system=maybe(maybe(JSON)), **SAID),
}
GOOD = {
    "pairs": [{"prompt": "good", "reasoning": "<think>a</think>b", "ift": "b"}],
    "gsm8k": [{"question": "good", "answer": "a\n#### 1"}],
    "aqua": [{"question": "good", "options": ["A)3", "B)4"], "rationale": "a", "correct": "B"}],
    "prompt-completion": [
        {"prompt": "good", "completion": "<think>a</think>b", "mode": "reasoning"},
        {"prompt": "good", "completion": "b", "mode": "ift"},
    ],
}
for name, field, keys in (("messages", "messages", "role content"), ("sharegpt", "conversations", "from value")):
    (role, content), (user, gpt) = keys.split(), ("user", "assistant") if name == "messages" else ("human", "gpt")
    GOOD[name] = [
        {field: [{role: user, content: "good"}, {role: gpt, content: text}], "mode": mode}
        for mode, text in (("reasoning", "<think>a</think>b"), ("ift", "b"))
    ]
WHOLE = ("pairs", "gsm8k", "aqua")


def as_line(row) -> bytes:
    return json.dumps(row).encode()


BROKEN_LINES = st.one_of(
    st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b"")),
    st.sampled_from(
        [
            b"[" * 10_000,
            b'{"prompt": ' * 10_000,
            b'{"prompt":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
            b'{"prompt": ' + b"9" * 5000 + b"}",
            b'{"prompt": NaN, "ift": -Infinity}',
            b'{"prompt": 1e999}',
            b'{"prompt": "a", "prompt": "b", "reasoning": "<think>a</think>b", "ift": "c"}',
            b'{"messages": [{"role": "user", "role": "assistant", "content": "x"}]}',
            b'{"prompt": "\\ud800", "reasoning": "<think>\\udc00</think>x", "ift": "\\ud83d"}',
            b'{"prompt": "raw \x00 nul"}',
            b"\xef\xbb\xbf{}",
            b"{}",
            b"null",
            b"\x00",
            b"\x1f\x8b",
            b"PAR1",
            b"\xff\xfe{\x00}\x00",
            b'{"\\ud800": 1}',
            b'{"prompt": {"prompt": "x"}, "prompt.prompt": 3}',
            b"   \t ",
        ]
    ),
)


def lines_of(layout: str):
    whole = ROWS[layout].map(as_line)
    cut = st.tuples(whole, st.integers(0, 200)).map(lambda pair: pair[0][: pair[1]])
    kind = st.sampled_from([*[whole] * 7, cut, BROKEN_LINES, BROKEN_LINES]).flatmap(lambda kind: kind)
    return st.sampled_from([0, 1, 2, 5, 8, 8]).flatmap(lambda n: st.lists(kind, min_size=n, max_size=n))


@st.composite
def json_files(draw, layout: str) -> bytes:
    lines = draw(lines_of(layout))
    if draw(st.sampled_from([True, True, True, False])):
        at = draw(st.integers(0, len(lines)))
        lines[at:at] = map(as_line, GOOD[layout])
    data = draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n"])).join(lines) + draw(st.sampled_from([b"", b"\n"]))
    change = draw(st.sampled_from([*["none"] * 14, "gzip", "bzip2", "zip", "bom", "utf-16", "cut"]))
    if change == "zip":
        with zipfile.ZipFile(packed := io.BytesIO(), "w") as file:
            file.writestr("a.jsonl", data)
        return packed.getvalue()
    return {
        "none": lambda: data,
        "gzip": lambda: gzip.compress(data, mtime=0),
        "bzip2": lambda: bz2.compress(data),
        "bom": lambda: b"\xef\xbb\xbf" + data,
        "utf-16": lambda: data.decode(errors="replace").encode("utf-16"),
        "cut": lambda: data[: draw(st.integers(0, len(data)))],
    }[change]()


SUFFIXES = st.sampled_from([*[".jsonl"] * 9, ".json", "", ".parquet", ".gz", ".txt"])


def count_lines(data: bytes) -> int:
    return sum(bool(line.strip()) for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"))


def imported_rows(folder: Path) -> int:
    """How many rows a trace set of rows with one answer each accounts for."""
    rejected = read_rejected(folder)
    assert all(row.reason in FAULTS and row.detail and row.source for row in rejected)
    return 2 * len(read_pairs(folder)) + sum(2 if row.reasoning and row.ift else 1 for row in rejected)


def check_import(path: Path, layout: str, rows: int | None, **how) -> bool:
    """Returns whether the input was malformed."""
    out = path.parent / "out"
    malformed = False
    for skip_bad in (True, False):
        try:
            with seconds(60):
                made = import_file(path, layout, out / str(skip_bad), skip_bad=skip_bad, splits="all", **how)
        except InputError as error:
            text = one_line(error, path.name, "ift.jsonl", "column")
            if skip_bad and rows is not None:
                assert "no pair in it" in text or re.search("packed by|as Parquet", text), text
            assert not (out / str(skip_bad) / "manifest.json").exists()
            malformed = malformed or (skip_bad and not NOT_A_FAULT.search(text))
            continue
        counts = made.summary
        malformed = malformed or bool(set(counts["rejected"]) - SET_ASIDE)
        assert counts["rows"] == counts["pairs"] + sum(counts["rejected"].values()) >= counts["questions"]
        if skip_bad or not set(counts["rejected"]) - SET_ASIDE:
            one_each = layout in WHOLE or how.get("ift_from") == "stripped"
            accounted = counts["rows"] if one_each else imported_rows(out / str(skip_bad))
            assert accounted == counts["rows_read"]
            assert rows is None or counts["rows_read"] == rows
        else:
            pytest.fail(f"bad rows passed: {counts}")
    return malformed


@pytest.mark.parametrize("layout", ROWS)
def test_json_lines_of_any_kind(layout):
    campaign(MALFORMED, partial(any_json_lines, layout))


@pytest.mark.long
@pytest.mark.parametrize("layout", ROWS)
def test_json_lines_of_any_kind_long(layout):
    campaign(MALFORMED_LONG, partial(any_json_lines, layout))


@in_a_folder
def any_json_lines(layout, data, folder):
    content = data.draw(json_files(layout))
    path = folder / f"rows{data.draw(SUFFIXES)}"
    path.write_bytes(content)
    rows = count_lines(content)
    how = {"system": data.draw(st.sampled_from(["refuse", "join", "drop"]))}
    if layout not in WHOLE:
        other = data.draw(st.sampled_from([None, "stripped", "file"]))
        if other == "file":
            more = data.draw(json_files(layout))
            (folder / "ift.jsonl").write_bytes(more)
            rows += count_lines(more)
            how["ift_from"] = folder / "ift.jsonl"
        elif other:
            how["ift_from"] = other
    malformed = check_import(path, layout, rows, **how)
    if layout == "pairs":
        check_questions(path, count_lines(content))
    return malformed


def check_questions(path: Path, rows: int | None, **fields) -> OwnTask | None:
    try:
        with seconds(60):
            task = get_task("mine", QuestionFile(path=path, skip_bad=True, system="join", **fields))
    except InputError as error:
        one_line(error, path.name)
        return None
    problems = task.problems("all", None, 0)
    assert task.rows == len(problems) + len(task.bad_rows)
    assert rows is None or task.rows == rows
    places = sorted([*task.places().values(), *(row.place for row in task.bad_rows)])
    assert places == list(range(task.rows))
    assert all(row.detail and row.reason in FAULTS for row in task.bad_rows)
    for problem in problems:
        problem.prompt.encode()
        problem.gold.encode()
    return task


class AnyTeacher:
    """Answers everything, with whatever is drawn for it."""

    identity, prices, vocabulary = {"name": "any"}, {}, None

    def __init__(self, texts):
        self.texts = texts

    def render(self, question):
        return {"prompt": question.problem.prompt, "mode": question.mode, "sample": question.sample}

    async def answer(self, questions, on_answer):
        for i, question in enumerate(questions):
            text = self.texts[i % len(self.texts)]
            trace = Trace(question.mode, "because" if question.mode == "reasoning" else "", text, "stop", "any")
            on_answer(question, Answer(trace, fault_of(trace), output_tokens=1))

    def cost_usd(self, answer):
        return None


QUESTION_ROWS = rows_of(
    prompt=mostly(PROMPT | st.lists(message("user", PROMPT), min_size=1, max_size=2)),
    answer=mostly(st.sampled_from(["4", 4, 4.5, "9**9**9"])),
).map(as_line)


@in_a_folder
def any_questions(monkeypatch, data, folder):
    lines = data.draw(st.lists(QUESTION_ROWS | BROKEN_LINES, max_size=8))
    if data.draw(st.booleans()):
        lines.append(as_line({"prompt": "good", "answer": "4"}))
    path = folder / "q.jsonl"
    path.write_bytes(b"\n".join(lines))
    more = data.draw(st.sampled_from([{}, {"answer": "answer"}, {"answer": "answer", "checker": "number"}]))
    task = check_questions(path, count_lines(path.read_bytes()), **more)
    malformed = task is None or any(row.reason == "malformed" for row in task.bad_rows)
    texts = data.draw(st.lists(st.sampled_from(["4", "", "<think>", "9**9**9", "\x00", "x" * 10_000]), min_size=1))
    file = QuestionFile(path=path, skip_bad=True, system="join", **more)
    with monkeypatch.context() as patch:
        patch.setattr(generate_module, "open_teacher", lambda *_: AnyTeacher(texts))
        samples = data.draw(st.integers(1, 2))
        asked = GenerateSettings(data={"mine": file}, samples=samples)
        try:
            with seconds(60):
                made = generate(asked, folder / "out")
        except InputError as error:
            text = one_line(error, "q.jsonl", "out")
            assert task is None or "gave a pair" in text
            return malformed
    questions, bad_rows = len(task.problems("all", None, 0)), len(task.bad_rows)
    assert (made.summary["questions"], made.summary["rows"]) == (questions, samples * questions + bad_rows)
    assert made.summary["rows"] == made.summary["pairs"] + sum(made.summary["rejected"].values())
    return malformed


def test_questions_of_any_kind_are_generated_from(monkeypatch):
    campaign(MALFORMED, partial(any_questions, monkeypatch))


@pytest.mark.long
def test_questions_of_any_kind_are_generated_from_long(monkeypatch):
    campaign(MALFORMED_LONG, partial(any_questions, monkeypatch))


# Parquet: columns of any type, and damage.

TEXT = st.sampled_from(
    [
        lambda n: pa.array([f"q{i}" for i in range(n)]),
        lambda n: pa.array([f"<think>a{i}</think>b" for i in range(n)], pa.large_string()),
    ]
)
ODD = st.sampled_from(
    [
        lambda n: pa.array([f"q{i}" for i in range(n)], pa.large_string()).dictionary_encode(),
        lambda n: pa.array([None] * n, pa.string()),
        lambda n: pa.array([None] * n),
        lambda n: pa.array(range(n)),
        lambda n: pa.array([b"\xff\xfe"] * n),
        lambda n: pa.array([[f"q{i}"] for i in range(n)]),
        lambda n: pa.array([{"role": "user", "content": f"q{i}"} for i in range(n)]),
        lambda n: pa.array([[{"role": "user", "content": f"q{i}"}] for i in range(n)]),
        lambda n: pa.array([{"a": {"b": [{"c": i}]}} for i in range(n)]),
        lambda n: pa.array([2**62] * n, pa.timestamp("us")),
        lambda n: pa.array([2**62] * n, pa.timestamp("us", tz="No/Where")),
        lambda n: pa.array([2**62] * n, pa.time64("ns")),
        lambda n: pa.array([[("k", i), ("k", i)] for i in range(n)], pa.map_(pa.string(), pa.int64())),
        lambda n: pa.array([float("nan")] * n),
        lambda n: pa.array([i % 2 == 0 for i in range(n)]),
        lambda n: pa.StringArray.from_buffers(  # says that it is UTF-8, and is not
            n, pa.array(range(n + 1), pa.int32()).buffers()[1], pa.py_buffer(b"a\xff" * n)
        ),
    ]
)


@in_a_folder
def any_parquet(data, folder):
    path, malformed = folder / "rows.parquet", True
    n = data.draw(st.sampled_from([0, 1, 3, 1500]))
    names = ["prompt", "reasoning", "ift", "gold"]
    for _ in range(data.draw(st.sampled_from([0, 0, 0, 1, 2]))):  # one too few, twice or too many
        names[data.draw(st.integers(0, 3))] = data.draw(st.sampled_from(["prompt", "reasoning", "x"]))
    names = names[: data.draw(st.sampled_from([4, 4, 4, 3, 0]))]
    columns = [data.draw(st.one_of(*[TEXT] * 5, ODD))(n) for _ in names]
    options = {"compression": data.draw(st.sampled_from(["zstd", "snappy", "none"]))}
    if data.draw(st.booleans()):
        options |= {"row_group_size": 7, "use_dictionary": False}
    try:
        pq.write_table(pa.table(columns, names=names), path, **options)
    except (pa.ArrowException, ValueError):
        return False  # what cannot be written cannot be read
    rows = n if names else 0
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.sampled_from([0, 0, 1, 1, 3]))):
        rows = None  # whatever it then says
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    if data.draw(st.integers(0, 4)) == 0:
        rows, content = None, content[: data.draw(st.integers(0, len(content)))]
    path.write_bytes(content)
    try:
        with seconds(60):
            made = import_file(path, "pairs", folder / "out", skip_bad=True)
        assert made.summary["rows_read"] == made.summary["pairs"] + sum(made.summary["rejected"].values())
        assert rows is None or made.summary["rows_read"] == rows
        malformed = bool(set(made.summary["rejected"]) - SET_ASIDE)
    except InputError as error:
        one_line(error, "rows.parquet")
    check_questions(path, rows)
    check_questions(path, rows, answer="gold")
    return malformed


def test_parquet_of_any_kind():
    campaign(MALFORMED, any_parquet)


@pytest.mark.long
def test_parquet_of_any_kind_long():
    campaign(MALFORMED_LONG, any_parquet)


# Places that are no files of rows.


def test_places_that_are_no_files_of_rows(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_bytes(b"\xef\xbb\xbf \r\n\n")
    (tmp_path / "dangling.jsonl").symlink_to(tmp_path / "nothing")
    (tmp_path / "empty.parquet").touch()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "state.json").write_text("[")
    names = [
        "pipe.jsonl",
        "loop.jsonl",
        "folder.jsonl",
        "empty.jsonl",
        "blank.jsonl",
        "dangling.jsonl",
        "empty.parquet",
    ]
    names += ["state", "none.jsonl", "x" * 300, "x/" * 3000, "a\0b", "new\nline", "no\udc80utf8"]
    if os.geteuid():
        (tmp_path / "secret.jsonl").touch(mode=0)
        names.append("secret.jsonl")
    for name in names:
        path = tmp_path / name
        for call in (
            lambda path=path: OwnTask("mine", QuestionFile(path=path, skip_bad=True)),
            lambda path=path: import_file(path, "pairs", tmp_path / "out", skip_bad=True),
            lambda path=path: import_file(path, "messages", tmp_path / "out", ift_from="stripped"),
            lambda path=path: get_task(f"gsm8k:{path}").problems("train", 1, 0),
        ):
            with seconds(20), pytest.raises(InputError) as error:
                call()
            one_line(error.value, str(tmp_path), "only 0")
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").glob("manifest.json"))


def test_a_file_without_line_ends_is_not_read_into_memory(tmp_path):
    with open(tmp_path / "zeros.jsonl", "wb") as file:
        file.truncate(1 << 30)
    with seconds(60), pytest.raises(InputError, match=r"zeros\.jsonl:1: a line of more than 64 MiB"):
        OwnTask("mine", QuestionFile(path=tmp_path / "zeros.jsonl", skip_bad=True))


def test_a_damaged_folder_of_datasets(tmp_path, rng):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"q{i}", "reasoning": f"<think>{i}</think>{i}", "ift": f"{i}"} for i in range(2000)]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    whole = arrow.read_bytes()
    for _ in range(30):
        content = bytearray(whole)
        if rng.random() < 0.3:
            content = content[: rng.integers(0, len(content))]
        else:
            for at in rng.integers(0, len(content), size=int(rng.integers(1, 20))):
                content[at] ^= 1 << int(rng.integers(0, 8))
        arrow.write_bytes(content)
        check_questions(tmp_path / "saved", None)

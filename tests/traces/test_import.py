"""Imports: every row of a file becomes a pair, a labelled rejection or one clear error."""

import json
import random
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from distill.cli import app
from distill.errors import InputError
from distill.tasks import get_task, rows
from distill.tasks.task import split_of
from distill.traces.layouts.import_traces import import_file
from distill.traces.store import read_pairs, read_rejected

DATA = Path(__file__).parents[3] / "shared" / "data"


def row(i: int, **changes) -> dict:
    return {"prompt": f"q{i}", "reasoning": f"<think>\nsince {i}\n</think>\n\na{i}", "ift": f"a{i}"} | changes


def write_jsonl(path: Path, rows: list) -> Path:
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def summary_of(pairs, rejected, rows_read, questions=None):
    """Of an import; without samples every row that could be read is a question of its own."""
    rows = pairs + sum(rejected.values())
    questions = rows - rejected.get("malformed", 0) if questions is None else questions
    return {"questions": questions, "rows": rows, "pairs": pairs, "rejected": rejected, "rows_read": rows_read}


def test_published_layout(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [row(i) for i in range(5)] + [row(5, gold="g")])
    made = import_file(path, "pairs", tmp_path / "t", teacher="someone")
    assert made.summary == summary_of(6, {}, rows_read=6)
    pairs = read_pairs(tmp_path / "t")
    for i, pair in enumerate(pairs):
        assert pair.problem.prompt == f"q{i}" and pair.problem.gold == ("g" if i == 5 else "")
        assert (pair.reasoning.reasoning, pair.reasoning.answer, pair.ift.answer) == (f"since {i}", f"a{i}", f"a{i}")
        assert (pair.ift.teacher, pair.ift.verified, pair.ift.cost_usd) == ("someone", None, None)


def test_parquet_and_jsonl_give_the_same_pairs(tmp_path):
    rows = [row(i) for i in range(3000)]
    import_file(write_jsonl(tmp_path / "p.jsonl", rows), "pairs", tmp_path / "a")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    import_file(tmp_path / "p.parquet", "pairs", tmp_path / "b")
    assert (tmp_path / "a" / "pairs.parquet").read_bytes() == (tmp_path / "b" / "pairs.parquet").read_bytes()


BAD = [
    (b"{", "malformed", r":2: not valid JSON"),
    (b'"text"', "malformed", r":2: expected a JSON object"),
    (b"\xff\xfe", "malformed", r":2: not UTF-8"),
    ({"prompt": "q", "ift": "a"}, "malformed", r":2: field 'reasoning' is missing"),
    (row(1, ift=None), "malformed", r":2: field 'ift': expected text, found NoneType"),
    (row(1, prompt=[{"role": "user"}]), "malformed", r":2: field 'prompt\[0\].content': expected text, found NoneType"),
    (row(1, prompt={"text": "q"}), "malformed", r":2: field 'prompt': expected text, found dict"),
    (row(1, ift=" "), "malformed", r":2: field 'ift' is empty"),
    (row(1, ift="\ud800"), "malformed", r":2: field 'ift': not valid Unicode"),
    (row(1, reasoning="<think>since"), "unclosed_think", r":2: field 'reasoning': the think tag is never closed"),
    (row(1, reasoning="<think>since</think>"), "no_answer", r":2: field 'reasoning': no answer"),
    (row(1, reasoning="just this"), "no_reasoning", r":2: field 'reasoning': no reasoning"),
    (row(1, reasoning="a <think>b</think> c"), "stray_tag", r":2: field 'reasoning': a think tag where none"),
    (row(1, ift="<think>b</think> c"), "reasoning_in_ift", r":2: field 'ift': reasoning in the answer"),
]


@pytest.mark.parametrize(("bad", "reason", "message"), BAD)
def test_a_bad_row_ends_the_import_or_is_set_aside(tmp_path, bad, reason, message):
    path = write_jsonl(tmp_path / "p.jsonl", [row(0), bad, row(2)])
    with pytest.raises(InputError, match=message) as error:
        import_file(path, "pairs", tmp_path / "t")
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "t").exists()
    made = import_file(path, "pairs", tmp_path / "t", skip_bad=True)
    assert made.summary == summary_of(2, {reason: 1}, rows_read=3)
    (rejected,) = read_rejected(tmp_path / "t")
    assert (rejected.reason, rejected.source) == (reason, "p.jsonl:2") and rejected.detail


def test_worked_solutions(tmp_path):
    gsm8k = [{"question": f"{i}?", "answer": f"It is <<{i}={i}>>{i}.\n#### {i}"} for i in range(20)]
    import_file(write_jsonl(tmp_path / "g.jsonl", gsm8k), "gsm8k", tmp_path / "g", splits="all")
    for i, pair in enumerate(read_pairs(tmp_path / "g")):
        assert (pair.reasoning.reasoning, pair.reasoning.answer, pair.ift.answer) == (f"It is {i}.", f"{i}", f"{i}")
        assert pair.reasoning.verified and pair.ift.verified and pair.problem.task == "gsm8k"
    aqua = [{"question": "1+1?", "options": ["A)1", "B)2"], "rationale": "It is 2.", "correct": "B"}]
    import_file(write_jsonl(tmp_path / "a.json", aqua), "aqua", tmp_path / "a", splits="all")
    (pair,) = read_pairs(tmp_path / "a")
    assert (pair.problem.prompt, pair.reasoning.reasoning, pair.ift.answer) == ("1+1?\nA) 1\nB) 2", "It is 2.", "B")


@pytest.mark.parametrize("layout", ["gsm8k", "aqua"])
def test_what_is_asked_of_the_same_file_is_not_trained_on(tmp_path, layout):
    start = random.randrange(10**6)
    rows = [
        {"question": f"What is {i}?", "answer": f"It is {i}.\n#### {i}"}
        if layout == "gsm8k"
        else {"question": f"What is {i}?", "options": [f"A){i}", "B)0"], "rationale": f"It is {i}.", "correct": "A"}
        for i in range(start, start + 300)
    ]
    path = write_jsonl(tmp_path / "questions.jsonl", rows)
    made = import_file(path, layout, tmp_path / "t")  # held-out rows end no import: they are no faults
    pairs, rejected = read_pairs(tmp_path / "t"), read_rejected(tmp_path / "t")
    held_out = {split: get_task(layout, path).problems(split, 5, 0) for split in ("validation", "test")}
    trained_on = {pair.problem.id for pair in pairs}
    assert not any(problem.id in trained_on for problems in held_out.values() for problem in problems)
    assert {split_of(pair.problem.prompt) for pair in pairs} == {"train"}
    assert made.summary == summary_of(len(pairs), {"held_out": len(rejected)}, rows_read=300)
    assert {split_of(row.problem.prompt) for row in rejected} == {"validation", "test"}
    assert all(row.reason == "held_out" and row.source.startswith("questions.jsonl:") for row in rejected)
    everything = import_file(path, layout, tmp_path / "all", splits="all")
    assert everything.summary == summary_of(300, {}, rows_read=300) and everything.key != made.key


def test_splits_of_pairs_are_taken_only_when_asked_for(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [row(i) for i in range(200)])
    assert import_file(path, "pairs", tmp_path / "all").summary["pairs"] == 200
    trained = sum(split_of(f"q{i}") == "train" for i in range(200))
    made = import_file(path, "pairs", tmp_path / "train", splits="train")
    assert made.summary == summary_of(trained, {"held_out": 200 - trained}, rows_read=200)
    with pytest.raises(InputError, match="unknown splits 'trian': did you mean 'train'"):
        import_file(path, "pairs", tmp_path / "t", splits="trian")


def test_a_mistyped_path_is_not_asked_of_the_hub(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(rows, "_data_set", lambda name, *_: asked.append(name))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in (
        "nowhere/pairz.jsonl",
        "nowhere/p.parquet",
        "data/pairz",
        "data/pairz.jsnol",
        "a/b/c",
        "../a",
        "pairz",
    ):
        with pytest.raises(InputError, match="no such file"):
            rows.open_source(Path(name))
    assert not asked
    for name in ("owner/pairs", "Some-Lab/pairs-v1.5", "lab/GSM8k_0.5b"):
        rows.open_source(Path(name))
    assert asked == ["owner/pairs", "Some-Lab/pairs-v1.5", "lab/GSM8k_0.5b"]


def test_unusable_files(tmp_path):
    good = write_jsonl(tmp_path / "p.jsonl", [row(0)])
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "p.parquet").write_bytes(b"PAR1 not really PAR1")
    for path, layout, message in (
        (good, "pair", "unknown layout 'pair': did you mean 'pairs'"),
        (tmp_path / "none.jsonl", "pairs", r"none\.jsonl: no such file"),
        (tmp_path / "empty.jsonl", "pairs", r"empty\.jsonl: no pair in it \(the file is empty\)"),
        (tmp_path / "p.parquet", "pairs", r"p\.parquet: cannot be read as Parquet"),
        (write_jsonl(tmp_path / "bad.jsonl", [b"{"]), "pairs", r"bad\.jsonl:1: not valid JSON"),
    ):
        for skip_bad in (False, True):
            if skip_bad and path.name == "bad.jsonl":
                message = r"bad\.jsonl: no pair in it \(bad\.jsonl:1: not valid JSON"
            with pytest.raises(InputError, match=message):
                import_file(path, layout, tmp_path / "t", skip_bad=skip_bad)
            assert not (tmp_path / "t").exists()


def test_the_same_file_elsewhere_gives_the_same_bytes(tmp_path):
    rows = [row(0), row(1, ift=""), row(2)]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        path = write_jsonl(tmp_path / name / "p.jsonl", rows)
        import_file(path, "pairs", tmp_path / name / "t", skip_bad=True)
    for name in ("pairs.parquet", "rejected.parquet", "manifest.json"):
        assert (tmp_path / "a" / "t" / name).read_bytes() == (tmp_path / "b" / "t" / name).read_bytes()


LINE = (
    st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b" "))
    | st.builds(
        lambda fields: json.dumps(fields).encode(),
        st.dictionaries(
            st.sampled_from(["prompt", "reasoning", "ift", "gold", "other"]),
            st.sampled_from(["<think>a</think>b", "a", "", "<think>", "</think>", "\ud800", None, 3, [], {}]),
        ),
    )
    | st.just(json.dumps(row(1)).encode())
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINE, max_size=8))
def test_every_line_is_accounted_for(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / "p.jsonl"
    path.write_bytes(b"\n".join([json.dumps(row(0)).encode(), *lines]))
    rows = 1 + sum(bool(line.strip()) for line in lines)
    made = import_file(path, "pairs", folder / "t", skip_bad=True)
    assert made.summary["rows"] == made.summary["rows_read"] == rows
    assert len(read_pairs(folder / "t")) + len(read_rejected(folder / "t")) == rows
    try:
        import_file(path, "pairs", folder / "strict")
        assert not made.summary["rejected"]
    except InputError as error:
        assert made.summary["rejected"] and str(path) in str(error)


@pytest.mark.skipif(not DATA.is_dir(), reason="the real files are not here")
def test_the_real_files(tmp_path):
    for layout, file, count in (("gsm8k", "test.jsonl", 1319), ("aqua", "dev.json", 254)):
        made = import_file(DATA / layout / file, layout, tmp_path / layout[0], splits="all")
        assert made.summary == summary_of(count, {}, rows_read=count)
    assert all(t.verified for p in read_pairs(tmp_path / "g") for t in (p.reasoning, p.ift))


def test_a_folder_saved_by_datasets_gives_the_same_pairs_as_the_file(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"{i}+1?", "reasoning": f"<think>{i} and 1</think>{i + 1}", "ift": str(i + 1)} for i in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    for name in ("rows.jsonl", "saved"):
        import_file(tmp_path / name, "pairs", tmp_path / f"out-{name}")
    assert read_pairs(tmp_path / "out-rows.jsonl") == read_pairs(tmp_path / "out-saved")
    with pytest.raises(InputError, match="no such file"):
        import_file(tmp_path / "nowhere", "pairs", tmp_path / "out")


# Layouts with one answer a row. The files are written here, by the layouts' own words, and give what they were made of.


def tagged(reasoning: str, answer: str) -> str:
    return f"<think>\n{reasoning}\n</think>\n\n{answer}" if reasoning else answer


def said(layout: str, style: str, prompt: str, reasoning: str, answer: str) -> dict:
    text = tagged(reasoning, answer)
    if layout == "sharegpt":
        return {"conversations": [{"from": "human", "value": prompt}, {"from": "gpt", "value": text}]}
    if style == "text":
        return {"prompt": prompt, "completion": text}
    message = {"role": "assistant", "content": text}
    if style != "tags" and reasoning:
        message |= {"content": answer, style: reasoning}
    asked = {"role": "user", "content": prompt}
    if layout == "messages":
        return {"messages": [asked, message]}
    return {"prompt": [asked], "completion": [message]}


STYLES = [
    ("prompt-completion", "text"),
    ("prompt-completion", "tags"),
    ("prompt-completion", "reasoning_content"),
    ("messages", "tags"),
    ("messages", "reasoning_content"),
    ("messages", "reasoning"),
    ("messages", "thinking"),
    ("sharegpt", "tags"),
]


def drawn_pairs(rng, count: int) -> list[tuple[str, str, str, str, int]]:
    """(prompt, reasoning, its answer, ift answer, sample), samples of one question one after the other."""
    pairs = []
    for number in rng.choice(10**6, size=count, replace=False).tolist():
        for sample in range(int(rng.integers(1, 4))):
            pairs.append((f"what is\n{number}?", f"it is {number}, {sample}", f"a{number}", f"i{sample}", sample))
    return pairs


def written(path: Path, rows: list) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    return write_jsonl(path, rows)


def contents(folder: Path) -> list[tuple[str, str, str, str, int]]:
    return [
        (p.problem.prompt, p.reasoning.reasoning, p.reasoning.answer, p.ift.answer, p.sample)
        for p in read_pairs(folder)
    ]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(("layout", "style"), STYLES)
def test_one_answer_a_row(tmp_path, rng, layout, style, suffix):
    pairs = drawn_pairs(rng, 40)
    long = [said(layout, style, p, r, a) for p, r, a, _, _ in pairs]
    short = [said(layout, style, p, "", i) for p, _, _, i, _ in pairs]

    # two files; the second in another order of questions
    order = sorted(range(len(pairs)), key=lambda i: (pairs[i][0], pairs[i][4]))
    written(tmp_path / f"long.{suffix}", long)
    written(tmp_path / f"short.{suffix}", [short[i] for i in order])
    long_file, short_file = (tmp_path / f"{name}.{suffix}" for name in ("long", "short"))
    made = import_file(long_file, layout, tmp_path / "two", ift_from=short_file, teacher="t")
    assert made.summary == summary_of(len(pairs), {}, rows_read=2 * len(pairs), questions=40)
    assert contents(tmp_path / "two") == pairs
    two = read_pairs(tmp_path / "two")
    assert {trace.teacher for pair in two for trace in (pair.reasoning, pair.ift)} == {"t"}
    places = [pair.place for pair in two]
    assert places == sorted(places) and len(set(places)) == 40  # samples of a question have one place

    # one file: rows say which they are, in any order
    modes = [
        row | {"mode": mode, "sample": pairs[i][4]}
        for mode, rows in (("reasoning", long), ("ift", short))
        for i, row in enumerate(rows)
    ]
    rng.shuffle(modes)
    written(tmp_path / f"both.{suffix}", modes)
    made = import_file(tmp_path / f"both.{suffix}", layout, tmp_path / "one")
    places = {pair.place for pair in read_pairs(tmp_path / "one")}
    assert made.summary == summary_of(len(pairs), {}, rows_read=2 * len(pairs), questions=len(places))
    assert sorted(contents(tmp_path / "one")) == sorted(pairs)

    # one file, the reasoning taken away
    made = import_file(long_file, layout, tmp_path / "stripped", ift_from="stripped", teacher="t")
    assert (
        made.summary["pairs"] == made.summary["rows_read"] == len(pairs) and made.summary["ift"] == "reasoning removed"
    )
    for pair, (prompt, reasoning, answer, _, _) in zip(read_pairs(tmp_path / "stripped"), pairs, strict=True):
        assert (pair.problem.prompt, pair.reasoning.reasoning, pair.reasoning.answer) == (prompt, reasoning, answer)
        assert (pair.ift.reasoning, pair.ift.answer) == ("", answer)
        assert (pair.reasoning.teacher, pair.ift.teacher) == ("t", "t, reasoning removed")

    with pytest.raises(InputError, match=r"one answer a row, and no field 'mode'.*--ift-from"):
        import_file(long_file, layout, tmp_path / "neither")


def test_halves_without_their_other_half_are_set_aside(tmp_path):
    def half(name, answer, mode=None, **more):
        reasoning = "since" if mode != "ift" else ""
        return said("messages", "tags", name, reasoning, answer) | ({"mode": mode} if mode else {}) | more

    rows = [half("a", "1", "ift"), half("b", "2", "reasoning"), half("a", "3", "reasoning"), half("c", "4", "ift")]
    rows += [half("a", "5", "ift", sample=0), half("d", "6", "ift"), half("e", "7", "reasoning", sample=1)]
    made = import_file(write_jsonl(tmp_path / "one.jsonl", rows), "messages", tmp_path / "one")
    assert made.summary == summary_of(1, {"repeated": 1, "unpaired": 4}, rows_read=7, questions=6)
    assert contents(tmp_path / "one") == [("a", "since", "3", "1", 0)]
    rejected = read_rejected(tmp_path / "one")
    assert [(row.source, row.reason, row.mode, row.place) for row in rejected] == [
        ("one.jsonl:2", "unpaired", "reasoning", 1),
        ("one.jsonl:4", "unpaired", "ift", 3),
        ("one.jsonl:5", "repeated", "ift", 4),
        ("one.jsonl:6", "unpaired", "ift", 5),
        ("one.jsonl:7", "unpaired", "reasoning", 6),
    ]
    assert rejected[0].detail == "no ift answer to this question" and rejected[0].reasoning.answer == "2"

    write_jsonl(tmp_path / "long.jsonl", [half("a", "1"), half("b", "2"), half("c", "3")])
    short = [half("c", "4", "ift"), half("x", "5", "ift"), half("a", "6", "ift"), b"{", half("c", "7", "ift", sample=0)]
    path = write_jsonl(tmp_path / "short.jsonl", short)
    with pytest.raises(InputError, match=r"short\.jsonl:4: not valid JSON"):
        import_file(tmp_path / "long.jsonl", "messages", tmp_path / "two", ift_from=path)
    made = import_file(tmp_path / "long.jsonl", "messages", tmp_path / "two", ift_from=path, skip_bad=True)
    counts = {"malformed": 1, "repeated": 1, "unpaired": 2}
    assert made.summary == summary_of(2, counts, rows_read=8)
    assert contents(tmp_path / "two") == [("a", "since", "1", "6", 0), ("c", "since", "3", "4", 0)]
    assert [(row.source, row.reason, row.place) for row in read_rejected(tmp_path / "two")] == [
        ("long.jsonl:2", "unpaired", 1),
        ("short.jsonl:2", "unpaired", 4),
        ("short.jsonl:4", "malformed", 6),
        ("short.jsonl:5", "repeated", 7),
    ]
    with pytest.raises(InputError, match=r"long\.jsonl:1: field 'mode': expected reasoning, found ift"):
        write_jsonl(tmp_path / "long.jsonl", [half("a", "1", "ift")])
        import_file(tmp_path / "long.jsonl", "messages", tmp_path / "three", ift_from="stripped")


ASKED, SYSTEM = {"role": "user", "content": "q"}, {"role": "system", "content": "be brief"}
REPLY = {"role": "assistant", "content": "<think>r</think>a"}
CONVERSATIONS = [
    ([ASKED, REPLY], None, "q"),
    ([SYSTEM, ASKED, REPLY], None, "a system message before the question; --system join"),
    ([ASKED, REPLY, ASKED, REPLY], None, "expected one question by the user, found user, assistant, user"),
    ([ASKED], None, "expected the assistant's answer at the end"),
    ([REPLY], None, "expected one question by the user, found none"),
    ([ASKED, REPLY | {"content": None}], None, "expected text, found NoneType"),
    ([ASKED, REPLY | {"content": "<think>r"}], None, "reasoning answer: the think tag is never closed"),
    ([ASKED, REPLY | {"content": " "}], None, "reasoning answer: no reasoning"),
    ([ASKED, REPLY | {"content": " ", "reasoning_content": "r"}], None, "reasoning answer: no answer"),
    ([ASKED, REPLY | {"reasoning_content": "r"}], None, "reasoning answer: a think tag where none belongs"),
    ([ASKED, REPLY | {"content": "a", "reasoning": 3}], None, r"field 'messages\[1\]\.reasoning': expected text"),
    ([ASKED, REPLY], "think first", "a system message"),  # beside the conversation
]


@pytest.mark.parametrize(("messages", "beside", "expected"), CONVERSATIONS)
def test_conversations(tmp_path, messages, beside, expected):
    row = {"messages": messages} | ({"system": beside} if beside else {})
    path = write_jsonl(tmp_path / "m.jsonl", [row])
    if expected == "q":
        import_file(path, "messages", tmp_path / "t", ift_from="stripped")
        assert contents(tmp_path / "t") == [("q", "r", "a", "a", 0)]
        return
    with pytest.raises(InputError, match=rf"m\.jsonl:1: .*{expected}"):
        import_file(path, "messages", tmp_path / "t", ift_from="stripped")
    if "system" in expected:
        for system, prompt in (("drop", "q"), ("join", f"{beside or 'be brief'}\n\nq")):
            import_file(path, "messages", tmp_path / system, ift_from="stripped", system=system)
            assert contents(tmp_path / system) == [(prompt, "r", "a", "a", 0)]


def test_fields_by_other_names(tmp_path):
    rows = [
        {"q": {"text": f"q{i}"}, "cot": f"since {i}", "final": f"a{i}", "direct": f"d{i}", "label": i} for i in range(9)
    ]
    fields = {"prompt": "q.text", "reasoning": "cot", "answer": "final", "ift": "direct", "gold": "label"}
    for name in ("p.jsonl", "p.parquet"):
        import_file(written(tmp_path / name, rows), "pairs", tmp_path / f"{name}.t", fields=fields)
        assert contents(tmp_path / f"{name}.t") == [(f"q{i}", f"since {i}", f"a{i}", f"d{i}", 0) for i in range(9)]
        assert [pair.problem.gold for pair in read_pairs(tmp_path / f"{name}.t")] == [str(i) for i in range(9)]
        del fields["ift"]
        import_file(tmp_path / name, "pairs", tmp_path / f"{name}.s", fields=fields, ift_from="stripped")
        assert contents(tmp_path / f"{name}.s")[3] == ("q3", "since 3", "a3", "a3", 0)
        fields["ift"] = "direct"
        message = "column 'none' is missing" if name == "p.parquet" else ":1: field 'none' is missing"
        with pytest.raises(InputError, match=message):
            import_file(tmp_path / name, "pairs", tmp_path / "t", fields=fields | {"gold": "none"})
    for layout, fields, message in (
        ("pairs", {"promt": "q"}, "unknown field of layout pairs 'promt': did you mean 'prompt'"),
        ("gsm8k", {"prompt": "q"}, "layout gsm8k: its fields have fixed names; --prompt"),
        ("messages", {"ift": "q"}, "unknown field of layout messages 'ift'"),
    ):
        with pytest.raises(InputError, match=message):
            import_file(tmp_path / "p.jsonl", layout, tmp_path / "t", fields=fields)
    with pytest.raises(InputError, match="--ift-from: rows of layout aqua have both answers"):
        import_file(tmp_path / "p.jsonl", "aqua", tmp_path / "t", ift_from="stripped")
    with pytest.raises(InputError, match="unknown system 'keep'"):
        import_file(tmp_path / "p.jsonl", "pairs", tmp_path / "t", system="keep")


def test_what_the_key_depends_on(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [row(i) | {"other": f"x{i}"} for i in range(5)])
    more = write_jsonl(tmp_path / "i.jsonl", [{"prompt": f"q{i}", "ift": "d"} for i in range(5)])
    hows = [{}, {"teacher": "t"}, {"system": "join"}, {"fields": {"gold": "other"}}, {"skip_bad": True}]
    hows += [{"splits": "train"}, {"ift_from": "stripped"}, {"ift_from": more}, {"fields": {"ift": "other"}}]
    keys = [import_file(path, "pairs", tmp_path / str(i), **how).key for i, how in enumerate(hows)]
    assert len(set(keys)) == len(keys)
    assert import_file(path, "pairs", tmp_path / "again", ift_from=more).key == keys[7]
    write_jsonl(more, [{"prompt": f"q{i}", "ift": "e"} for i in range(5)])
    assert import_file(path, "pairs", tmp_path / "changed", ift_from=more).key not in keys


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Of a file of long answers only a batch is in memory: pairs in a row, and of halves the short ones."""
    path = tmp_path / "m.jsonl"
    with open(path, "w") as file:
        for i in range(4000):
            for mode, reasoning in (("reasoning", "x" * 8_000), ("ift", "")):
                file.write(json.dumps(said("messages", "tags", f"q{i}", reasoning, "a") | {"mode": mode}) + "\n")
    tracemalloc.start()
    import_file(path, "messages", tmp_path / "t")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 32e6 and peak < 24e6, peak


def test_the_command(tmp_path):
    rows = [{"q": f"q{i}", "cot": f"since {i}", "final": f"a{i}", "label": i} for i in range(3)] + [{"q": 3}]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    flags = ["--prompt", "q", "--reasoning", "cot", "--answer", "final", "--gold", "label", "--ift-from", "stripped"]
    flags += ["--teacher", "t", "--system", "drop", "--skip-bad", "--json", "--out", str(tmp_path / "t")]
    run = CliRunner().invoke(app, ["traces", "import", str(path), *flags])
    assert run.exit_code == 0, run.output
    said = json.loads(run.stdout)
    assert (said["pairs"], said["rejected"], said["rows_read"]) == (3, {"malformed": 1}, 4)
    assert contents(tmp_path / "t")[1] == ("q1", "since 1", "a1", "a1", 0)
    assert read_pairs(tmp_path / "t")[1].reasoning.teacher == "t"

"""Exports: what is written is read back as it was, others' tools accept it, and nothing is ever overwritten."""

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from distill import artifact
from distill.cli import app
from distill.errors import InputError
from distill.process import child_environment
from distill.tasks.problem import Problem
from distill.traces.derive import deriving
from distill.traces.layouts import export as export_module
from distill.traces.layouts.export import export
from distill.traces.layouts.import_traces import import_file
from distill.traces.store import Rejected, read_pairs, write_pairs
from distill.traces.trace import MODES, Pair, Trace

HOSTILE = ["\r\n", "\u2028", "\x85", "\x00", "\x1b[31m", '"', "\\", "</pre><script>", "####", "<<1+1=2>>", "<|im_end|>"]
HOSTILE += ["{{x}}", "A) 1", "\ufeff", "\U0010ffff", "<thi nk>", "\t", "'''", "```", "| a |", "\u202e", "𝒙", "\x1f"]
PIECE = st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)
TEXT = st.lists(PIECE, min_size=1, max_size=6).map("".join).filter(lambda text: text.strip() and "think>" not in text)
ANY_TEXT = st.just("") | TEXT
SLOW = dict(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much])
STYLES = [("pairs", "tags"), ("sharegpt", "tags"), ("messages", "tags"), ("messages", "field")]
STYLES += [("prompt-completion", "tags"), ("prompt-completion", "field")]
CONVERSATIONS = ("prompt-completion", "messages", "sharegpt")


@st.composite
def sets(draw):
    """Pairs of different questions, one to three samples each."""
    rows = []
    prompts = draw(st.lists(TEXT, min_size=1, max_size=4, unique_by=str.strip))
    for place, prompt in enumerate(prompts):
        problem = Problem("add", prompt, draw(ANY_TEXT), draw(st.sampled_from(["open", "labels"])))
        for sample in range(draw(st.integers(1, 3))):
            reasoning = Trace("reasoning", draw(TEXT), draw(TEXT), "stop", "t", 1, 2, 3, verified=draw(st.booleans()))
            rows.append(Pair(problem, reasoning, Trace("ift", "", draw(TEXT), "stop", "t"), place, sample))
    return rows


def write(folder, rows, recipe=None):
    with artifact.workspace(folder, "traces", recipe or {"rows": len(rows)}) as space:
        return space.commit(write_pairs(folder, rows))


def pair(prompt="2+2?", gold="4", reasoning="2 and 2", answer="4", ift="4", verified=(None, None), **at):
    return Pair(
        Problem("add", prompt, gold, "open"),
        Trace("reasoning", reasoning, answer, "stop", "t", verified=verified[0]),
        Trace("ift", "", ift, "stop", "t", verified=verified[1]),
        **at,
    )


def remove_all(folder):
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def lines(file):
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]


def what_was_said(pairs):
    """What every layout holds; white space at the ends is not read back."""
    return [
        (
            p.problem.prompt.strip(),
            p.problem.gold.strip(),
            p.reasoning.reasoning.strip(),
            p.reasoning.answer.strip(),
            p.ift.answer.strip(),
            p.sample,
        )
        for p in pairs
    ]


@settings(max_examples=25, **SLOW)
@given(
    rows=sets(),
    how=st.sampled_from(STYLES),
    file_format=st.sampled_from(["jsonl", "parquet"]),
)
def test_an_export_is_imported_as_it_was(tmp_path, rows, how, file_format):
    remove_all(tmp_path)
    write(tmp_path / "t", rows)
    layout, reasoning = how
    out = tmp_path / f"file.{file_format}"
    made = export(tmp_path / "t", layout, out, file_format=file_format, reasoning=reasoning)
    assert made["pairs"] == len(rows) and made["rows"] == len(rows) * (1 if layout == "pairs" else 2)
    if file_format == "jsonl":  # whoever cuts lines at all of Unicode's line ends reads the same rows
        cut = [json.loads(line) for line in out.read_bytes().decode().splitlines()]
        assert cut == lines(out) and len(cut) == made["rows"]
    import_file(out, layout, tmp_path / "back")
    assert what_was_said(read_pairs(tmp_path / "back")) == what_was_said(rows)


GOOD_TEXT = TEXT.filter(lambda text: "####" not in text and "<<" not in text)


@settings(max_examples=25, **SLOW)
@given(data=st.data(), layout=st.sampled_from(["gsm8k", "aqua"]))
def test_worked_solutions_are_imported_as_they_were(tmp_path, data, layout):
    remove_all(tmp_path)
    rows = []
    for i in range(data.draw(st.integers(1, 4))):
        prompt = f"{i} {data.draw(GOOD_TEXT)}".strip()
        gold, answer = str(i), f"The answer is {i}"
        if layout == "aqua":
            options = [f"{letter}) {data.draw(st.integers())}" for letter in "ABCDE"[: data.draw(st.integers(2, 5))]]
            prompt = "\n".join([prompt.replace("\n", " ").replace("A)", "a"), *options]).strip()
            gold, answer = "B", "The answer is B."
        problem = Problem(layout, prompt, gold, "choice" if layout == "aqua" else "open")
        reasoning = Trace("reasoning", data.draw(GOOD_TEXT), answer, "stop", "t")
        rows.append(Pair(problem, reasoning, Trace("ift", "", gold, "stop", "t"), i))
    write(tmp_path / "t", rows)
    export(tmp_path / "t", layout, tmp_path / "file.jsonl")
    import_file(tmp_path / "file.jsonl", layout, tmp_path / "back", splits="all")
    back = read_pairs(tmp_path / "back")
    assert [p.problem for p in back] == [p.problem for p in rows]
    assert [p.reasoning.reasoning for p in back] == [p.reasoning.reasoning.strip() for p in rows]
    assert {p.reasoning.verified for p in back} == {True}


@pytest.mark.parametrize(
    "layout, change, reason",
    [
        ("gsm8k", {"gold": "Paris"}, "the gold answer is no number, found 'Paris'"),
        ("gsm8k", {"gold": ""}, "the gold answer is no number"),
        ("gsm8k", {"answer": "5"}, "another number .*--keep verified"),
        ("gsm8k", {"answer": "9**9**9"}, "another number"),
        ("gsm8k", {"reasoning": "so <<2+2=4>> it is"}, "the reasoning has signs that this layout uses"),
        ("gsm8k", {"gold": "5 #### 4"}, "the gold answer has signs"),
        ("aqua", {}, "does not end in lines 'A\\) ...'"),
        ("aqua", {"prompt": "?\nA) 1\nC) 2"}, "does not end in lines"),
        ("aqua", {"prompt": "?\nA) 1\nB) 2", "gold": "A", "answer": "B"}, "another option"),
        ("aqua", {"prompt": "?\nA) 1\nB)2", "gold": "A", "answer": "A"}, "the prompt has signs"),
        ("aqua", {"prompt": "\nA) 1\nB) 2", "gold": "A", "answer": "A"}, "field 'question' is empty"),
        ("pairs", {"answer": "<think>"}, None),
        ("pairs", {"answer": "a </think> b"}, None),
        ("sharegpt", {"reasoning": "a </think> b"}, "a think tag in the reasoning answer"),
        ("messages", {"ift": "</think>"}, "a think tag in the ift answer"),
        ("hub", {"reasoning": "</think>"}, "a think tag in the reasoning answer"),
    ],
)
def test_what_a_layout_cannot_hold_is_named_and_nothing_is_left(tmp_path, layout, change, reason):
    rows = [pair("1+1?", "2", answer="2", place=0), pair(**change, place=1)] if layout != "aqua" else [pair(**change)]
    write(tmp_path / "t", rows)
    if reason is None:  # the first closing tag ends the reasoning: what comes after it is the answer, tags and all
        export(tmp_path / "t", layout, tmp_path / "out")
        row = json.loads((tmp_path / "out").read_text().splitlines()[1])
        assert row["reasoning"].endswith(change["answer"])
        return
    with pytest.raises(InputError, match=rf"pairs\.parquet: row {len(rows)} \(add/.*: .*{reason}") as error:
        export(tmp_path / "t", layout, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["t"]


def test_modes_and_what_is_kept(tmp_path):
    labels = [(True, True), (True, False), (None, True), (True, None), (False, False), (True, True)]
    rows = [pair(f"q{i}", verified=label, place=i) for i, label in enumerate(labels)]
    write(tmp_path / "t", [*rows, Rejected("malformed", None, place=9)])
    made = export(tmp_path / "t", "messages", tmp_path / "a", mode="reasoning", keep="verified")
    assert (made["pairs"], made["rows"], made["left_out"]) == (2, 2, 4)
    found = lines(tmp_path / "a")
    assert [row["messages"][0]["content"] for row in found] == ["q0", "q5"]
    assert found[0]["messages"][1] == {"role": "assistant", "content": "<think>\n2 and 2\n</think>\n\n4"}
    export(tmp_path / "t", "messages", tmp_path / "b", mode="both", reasoning="field")
    found = lines(tmp_path / "b")
    assert [row["mode"] for row in found] == ["reasoning", "ift"] * 6
    assert found[0]["messages"][1] == {"role": "assistant", "reasoning_content": "2 and 2", "content": "4"}
    assert found[1]["messages"][1] == {"role": "assistant", "content": "4"}
    export(tmp_path / "t", "sharegpt", tmp_path / "c", mode="ift")
    assert lines(tmp_path / "c")[0]["conversations"] == [
        {"from": "human", "value": "q0"},
        {"from": "gpt", "value": "4"},
    ]
    write(tmp_path / "none", [pair()])
    with pytest.raises(InputError, match="no pair with both answers verified of 1; nothing to export"):
        export(tmp_path / "none", "pairs", tmp_path / "d", keep="verified")
    write(tmp_path / "empty", [Rejected("malformed", None)])
    with pytest.raises(InputError, match="no pair of 0"):
        export(tmp_path / "empty", "hub", tmp_path / "d")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    "layout, options, message",
    [
        ("pears", {}, "unknown layout 'pears': did you mean 'pairs'"),
        ("pairs", {"mode": "iff"}, "unknown mode 'iff': did you mean 'ift'"),
        ("pairs", {"keep": "right"}, "unknown keep 'right'"),
        ("pairs", {"file_format": "json"}, "unknown format 'json'"),
        ("pairs", {"mode": "ift"}, "layout pairs: field mode: found ift, expected both"),
        ("gsm8k", {"reasoning": "field"}, "layout gsm8k: field reasoning: found field"),
        ("sharegpt", {"reasoning": "field"}, "layout sharegpt: field reasoning"),
        ("hub", {"file_format": "jsonl"}, "layout hub: field format: found jsonl, expected parquet"),
    ],
)
def test_options_that_do_not_fit(tmp_path, layout, options, message):
    write(tmp_path / "t", [pair()])
    with pytest.raises(InputError, match=message):
        export(tmp_path / "t", layout, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["pairs", "messages", "hub"])
@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_again_gives_the_same_bytes_and_nothing_else_is_overwritten(tmp_path, layout, file_format):
    if layout == "hub":
        file_format = "parquet"
    write(tmp_path / "t", [pair(f"q{i}", place=i) for i in range(5)])
    write(tmp_path / "other", [pair(f"q{i}", place=i) for i in range(6)])

    def contents(path):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        return {
            file.relative_to(path): (file.read_bytes(), file.stat().st_mtime_ns) for file in files if file.is_file()
        }

    one, two = tmp_path / "deep" / "er" / "one", tmp_path / "two"
    for out in (one, two):
        export(tmp_path / "t", layout, out, file_format=file_format)
    before = contents(one)
    assert {k: v[0] for k, v in before.items()} == {k: v[0] for k, v in contents(two).items()}
    export(tmp_path / "t", layout, one, file_format=file_format)
    with pytest.raises(InputError, match="exists and holds something else than this export"):
        export(tmp_path / "other", layout, one, file_format=file_format)
    assert contents(one) == before and os.listdir(one.parent) == ["one"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("mine")
    (tmp_path / "file").write_text("mine")
    wrong, message = (tmp_path / "file", "is a file") if layout == "hub" else (tmp_path / "mine", "is a folder")
    with pytest.raises(InputError, match=message):
        export(tmp_path / "t", layout, wrong, file_format=file_format)
    if layout == "hub":
        with pytest.raises(InputError, match="something else than this export"):
            export(tmp_path / "t", layout, tmp_path / "mine")
        (tmp_path / "bare").mkdir()  # an empty folder may be taken
        export(tmp_path / "t", layout, tmp_path / "bare")
    assert (tmp_path / "mine" / "x").read_text() == (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("layout", ["messages", "hub"])
def test_an_interrupted_export_leaves_nothing(tmp_path, monkeypatch, layout):
    write(tmp_path / "t", [pair(f"q{i}", place=i) for i in range(5)])
    read = export_module.iter_pairs

    def interrupted(path):
        yield next(read(path))
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "iter_pairs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "t", layout, tmp_path / "out")
    assert os.listdir(tmp_path) == ["t"]


@pytest.mark.parametrize("layout", ["pairs", "hub"])
def test_what_killed_exports_left_is_removed(tmp_path, layout):
    """And nothing else: not what another process is writing, nor a file of another name."""
    write(tmp_path / "t", [pair()])
    here = platform.node()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [tmp_path / f".out.{here}.{dead.pid}.part", tmp_path / f".out.{here}.{os.getpid()}.part"]
    others = [f".out.{here}.{os.getppid()}.part", f".out.elsewhere.{dead.pid}.part", f".out.{here}.me.part"]
    others += [f".out2.{here}.{dead.pid}.part", f".out.{here}.{'9' * 99}.part"]
    for file in left:
        (file.mkdir() or file / "README.md" if layout == "hub" else file).write_text("half")
    for name in others:
        (tmp_path / name).write_text("another's")
    export(tmp_path / "t", layout, tmp_path / "out")
    assert set(os.listdir(tmp_path)) == {"t", "out", *others}


@pytest.mark.parametrize("layout, file_format", [("pairs", "jsonl"), ("pairs", "parquet"), ("hub", "parquet")])
def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, layout, file_format):
    """A limit on file sizes stands in for the disk."""
    write(tmp_path / "t", [pair(f"q{i}", place=i) for i in range(50)])
    full = (
        "import resource, sys\nfrom distill.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\nsys.argv[0] = 'distill'\nmain()"
    )
    command = ["traces", "export", str(tmp_path / "t"), "--layout", layout, "--format", file_format]
    child = subprocess.run(
        [sys.executable, "-c", full, *command, "--out", str(tmp_path / "out")],
        env=child_environment(1),
        capture_output=True,
        text=True,
    )
    assert child.returncode == 2
    assert child.stderr.splitlines() == [f"error: {tmp_path / 'out'}: cannot be written (File too large)"]
    assert os.listdir(tmp_path) == ["t"]


def test_trl_takes_conversations(tmp_path, tiny_student):
    """TRL's own functions: conversational rows, templated to text whose prompt is a prefix of the whole."""
    data_utils = pytest.importorskip("trl.data_utils")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    rows = [
        pair(f"q{i} <b>\u2028", reasoning=f"because {i}", answer=f"{i}\r\n!", ift=str(i), place=i) for i in range(4)
    ]
    write(tmp_path / "t", rows)
    for layout in ("prompt-completion", "messages"):
        for file_format in ("jsonl", "parquet"):
            out = tmp_path / f"{layout}.{file_format}"
            export(tmp_path / "t", layout, out, mode="reasoning", file_format=file_format)
            if file_format == "jsonl":
                found = lines(out)
            else:
                found = pq.read_table(out).to_pylist()
            for row, expected in zip(found, rows, strict=True):
                shown = {name: row[name] for name in ("prompt", "completion", "messages") if name in row}
                assert data_utils.is_conversational(shown)
                text = data_utils.apply_chat_template(shown, tokenizer)
                text = text["text"] if "text" in text else text["prompt"] + text["completion"]
                thought = f"<think>\n{expected.reasoning.reasoning}\n</think>\n\n{expected.reasoning.answer}"
                assert text == f"<|user|>{expected.problem.prompt}<|assistant|>{thought}<|end|>"
    export(tmp_path / "t", "sharegpt", tmp_path / "sharegpt", mode="reasoning")
    row = lines(tmp_path / "sharegpt")[0]
    assert data_utils.is_conversational_from_value({"conversations": row["conversations"]})
    converted = data_utils.maybe_convert_to_chatml({"conversations": row["conversations"]})["messages"]
    expected = lines(tmp_path / "messages.jsonl")[0]["messages"]
    assert [message["content"] for message in converted] == [message["content"] for message in expected]


def test_a_hub_folder_is_loaded_by_datasets(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(export_module, "_SHARD", 3)
    rows = [pair(f"q{i}\u2028\r\n\x00", place=i, verified=(True, None)) for i in range(7)]
    rows[2] = replace(rows[2], reasoning=replace(rows[2].reasoning, reasoning_tokens=5, verdict="number: 4"))
    write(tmp_path / "t", rows)
    made = export(tmp_path / "t", "hub", tmp_path / "hub")
    assert made["rows"] == 7
    files = [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    assert sorted(os.listdir(tmp_path / "hub" / "data")) == files
    found = datasets.load_dataset(str(tmp_path / "hub"), cache_dir=str(tmp_path / "cache"), split="train")
    assert [row["prompt"] for row in found] == [p.problem.prompt for p in rows]
    assert [row["id"] for row in found] == [p.problem.id for p in rows]
    assert {row["reasoning"] for row in found} == {"<think>\n2 and 2\n</think>\n\n4"}
    assert {(row["reasoning_verified"], row["ift_verified"]) for row in found} == {(True, None)}
    assert (found[2]["reasoning_tokens"], found[2]["reasoning_verdict"], found[0]["reasoning_tokens"]) == (
        5,
        "number: 4",
        None,
    )
    import_file(tmp_path / "hub" / "data" / files[0], "pairs", tmp_path / "back")
    assert what_was_said(read_pairs(tmp_path / "back")) == what_was_said(rows[:3])


def test_the_card_says_how_it_was_made_and_no_places(tmp_path):
    teacher = {
        "name": "a`teacher|\n# x",
        "revision": "r1",
        "sampling": {"temperature": 0.6},
        "tokenizer": "/home/me/tok",
    }
    recipe = {"tasks": {"add": {"count": 3, "path": "C:\\me"}}, "teacher": {**teacher, "usd_per_million_input": 77.5}}
    recipe["teacher"] |= {"url": "http://10.0.0.1:8000/v1"}
    rows = [pair(f"q{i}", place=i, verified=(True, i > 0)) for i in range(3)]
    write(tmp_path / "t", [*rows, Rejected("truncated", "ift", place=3)], recipe)
    with deriving(tmp_path / "t", tmp_path / "checked", {"step": "check", "removed": ["duplicates"]}) as new:
        new.commit(lambda index, pair: pair, {})
    export(tmp_path / "checked", "hub", tmp_path / "hub", keep="verified")
    text = (tmp_path / "hub" / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    about = yaml.safe_load(header)
    assert [f["name"] for f in about["dataset_info"]["features"]][:3] == ["prompt", "reasoning", "ift"]
    assert "2 " in body and about["size_categories"] == ["n<1K"]
    columns = [feature["name"] for feature in about["dataset_info"]["features"]]
    table = pq.read_table(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    assert columns == table.column_names and all(f"| `{name}` |" in body for name in columns)
    assert "license" not in about and "## License" in body
    assert "1. Answers generated by `a'teacher/ # x`, revision `r1`." in body
    assert "2. Step `check` of `distill traces`." in body and '"duplicates"' in body
    assert "Only pairs of which both answers were verified are here." in body
    assert "66.7 % [" in body and "`truncated`" in body
    for hidden in ("10.0.0.1", "/home/me", "C:\\", "77.5", str(tmp_path)):
        assert hidden not in text


def test_the_command(tmp_path):
    write(tmp_path / "t", [pair()])
    arguments = ["traces", "export", str(tmp_path / "t"), "--layout", "messages", "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(app, [*arguments, "--mode", "ift", "--format", "parquet", "--json"])
    assert json.loads(found.stdout) == {"left_out": 0, "pairs": 1, "path": str(tmp_path / "out"), "rows": 1}
    assert pq.read_table(tmp_path / "out").column("mode").to_pylist() == ["ift"]


def test_all_modes_are_written(tmp_path):
    write(tmp_path / "t", [pair()])
    for layout in CONVERSATIONS:
        export(tmp_path / "t", layout, tmp_path / layout)
        assert [row["mode"] for row in lines(tmp_path / layout)] == list(MODES)

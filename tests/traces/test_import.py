"""Imports: every row of a file becomes a pair, a labelled rejection or one clear error."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.errors import InputError
from distill.tasks import get_task
from distill.tasks.task import split_of
from distill.tasks import rows
from distill.traces.import_traces import import_file
from distill.traces.store import read_pairs, read_rejected

DATA = Path(__file__).parents[3] / "shared" / "data"


def row(i: int, **changes) -> dict:
    return {"prompt": f"q{i}", "reasoning": f"<think>\nsince {i}\n</think>\n\na{i}", "ift": f"a{i}"} | changes


def write_jsonl(path: Path, rows: list) -> Path:
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def test_published_layout(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [row(i) for i in range(5)] + [row(5, gold="g")])
    made = import_file(path, "pairs", tmp_path / "t", teacher="someone")
    assert made.summary == {"pairs": 6, "rejected": {}, "questions": 6}
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
    (row(1, prompt=[{"role": "user"}]), "malformed", r":2: field 'prompt': expected text, found list"),
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
    assert made.summary == {"pairs": 2, "rejected": {reason: 1}, "questions": 3}
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
    assert made.summary == {"pairs": len(pairs), "rejected": {"held_out": len(rejected)}, "questions": 300}
    assert {split_of(row.problem.prompt) for row in rejected} == {"validation", "test"}
    assert all(row.reason == "held_out" and row.source.startswith("questions.jsonl:") for row in rejected)
    everything = import_file(path, layout, tmp_path / "all", splits="all")
    assert everything.summary == {"pairs": 300, "rejected": {}, "questions": 300} and everything.key != made.key


def test_splits_of_pairs_are_taken_only_when_asked_for(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [row(i) for i in range(200)])
    assert import_file(path, "pairs", tmp_path / "all").summary["pairs"] == 200
    trained = sum(split_of(f"q{i}") == "train" for i in range(200))
    made = import_file(path, "pairs", tmp_path / "train", splits="train")
    assert made.summary == {"pairs": trained, "rejected": {"held_out": 200 - trained}, "questions": 200}
    with pytest.raises(InputError, match="unknown splits 'trian': did you mean 'train'"):
        import_file(path, "pairs", tmp_path / "t", splits="trian")


def test_a_mistyped_path_is_not_asked_of_the_hub(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(rows, "_data_set", lambda name, load: asked.append(name))
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
            rows.open_source(Path(name), "pairs")
    assert not asked
    for name in ("owner/pairs", "Some-Lab/pairs-v1.5", "lab/GSM8k_0.5b"):
        rows.open_source(Path(name), "pairs")
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
    assert made.summary["questions"] == rows
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
        assert made.summary == {"pairs": count, "rejected": {}, "questions": count}
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

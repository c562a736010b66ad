"""A folder is finished if and only if its manifest exists, and never holds what another recipe made."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import artifact
from distill.errors import InputError
from distill.process import child_environment

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


def make(folder, recipe, text="result", remove=()):
    with artifact.workspace(folder, "toy", recipe) as work:
        if work.finished:
            return work.finished
        (work.path / "data.txt").write_text(text)
        return work.commit({"n": len(text)}, remove=remove)


@given(JSON, JSON)
@settings(max_examples=150, deadline=None)
def test_keys_are_equal_exactly_when_recipes_are(a, b):
    assert (artifact.content_key("toy", {"x": a}) == artifact.content_key("toy", {"x": b})) == (
        artifact.canonical_json(a) == artifact.canonical_json(b)
    )
    assert artifact.content_key("toy", {"x": a}) != artifact.content_key("other", {"x": a})


def test_the_order_of_a_recipe_does_not_matter():
    assert artifact.content_key("k", {"a": 1, "b": {"c": 2, "d": 3}}) == artifact.content_key(
        "k", {"b": {"d": 3, "c": 2}, "a": 1}
    )


def test_made_read_and_reused(tmp_path):
    made = make(tmp_path / "a", {"seed": 1}, "first")
    assert make(tmp_path / "a", {"seed": 1}, "second") == made
    assert (tmp_path / "a" / "data.txt").read_text() == "first"
    found = artifact.read(tmp_path / "a", "toy", made_by="toy")
    assert (found.key, found.summary, set(found.files)) == (made.key, {"n": 5}, {"data.txt"})
    found.verify()


def test_no_manifest_no_artifact(tmp_path):
    class Killed(BaseException):
        pass

    with pytest.raises(Killed), artifact.workspace(tmp_path / "a", "toy", {"seed": 1}) as work:
        (work.path / "journal").write_text("half")
        raise Killed
    with pytest.raises(InputError, match="not finished; run the same command again"):
        artifact.read(tmp_path / "a", "toy", made_by="toy")
    with artifact.workspace(tmp_path / "a", "toy", {"seed": 1}) as work:
        assert work.finished is None and (work.path / "journal").read_text() == "half"
        (work.path / "data.txt").write_text("whole")
        work.commit({}, remove=("journal", "no such entry"))
    assert set(artifact.read(tmp_path / "a", "toy", made_by="toy").files) == {"data.txt"}


def test_of_many_changes_the_first_are_listed(tmp_path):
    make(tmp_path / "a", {f"s{i:02}": 1 for i in range(30)}, "x")
    with pytest.raises(InputError, match=r"\(s00 1 -> 2; .*; s07 1 -> 2; and 22 more\); choose another --out"):
        make(tmp_path / "a", {f"s{i:02}": 2 for i in range(30)}, "x")


def test_an_error_before_any_work_leaves_nothing(tmp_path):
    with pytest.raises(InputError), artifact.workspace(tmp_path / "deep" / "a", "toy", {"seed": 1}):
        raise InputError("bad input")
    assert not (tmp_path / "deep").exists()


def test_another_recipe_is_refused_with_what_changed(tmp_path):
    make(tmp_path / "a", {"settings": {"seed": 1, "same": 0}, "old": 1})
    with pytest.raises(InputError) as refused:
        make(tmp_path / "a", {"settings": {"seed": 2, "same": 0}, "new": "x"})
    message = str(refused.value)
    assert "settings.seed 1 -> 2" in message and "old 1 -> (none)" in message and "new (none) -> x" in message
    assert "same" not in message.replace("the same", "") and "\n" not in message
    with (
        pytest.raises(InputError, match="already holds toy, not other"),
        artifact.workspace(tmp_path / "a", "other", {"settings": 1}),
    ):
        pass


@pytest.mark.parametrize("content", ["file", "foreign folder"])
def test_what_is_not_ours_is_never_written_into(tmp_path, content):
    target = tmp_path / "a"
    if content == "file":
        target.write_text("precious")
    else:
        target.mkdir()
        (target / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="was not made by distill"):
        make(target, {"seed": 1})
    kept = target if content == "file" else target / "thesis.tex"
    assert kept.read_text() == "precious" and len(list(tmp_path.rglob("*"))) == (1 if content == "file" else 2)


def test_an_empty_folder_is_fine(tmp_path):
    (tmp_path / "a").mkdir()
    make(tmp_path / "a", {"seed": 1})


def test_damage_is_found(tmp_path):
    make(tmp_path / "a", {"seed": 1}, "abcdef")
    data = tmp_path / "a" / "data.txt"
    data.write_text("abcdeX")
    with pytest.raises(InputError, match=r"data\.txt: damaged"):
        artifact.read(tmp_path / "a", "toy", made_by="toy").verify()
    data.write_text("abc")
    with pytest.raises(InputError, match=r"data\.txt: missing or cut short"):
        artifact.read(tmp_path / "a", "toy", made_by="toy")
    data.unlink()
    with pytest.raises(InputError, match=r"data\.txt: missing or cut short"):
        make(tmp_path / "a", {"seed": 1})


@pytest.mark.parametrize("name", ["manifest.json", "recipe.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"kind": "toy"}', b"\xff\xfe", b'"text"'])
def test_a_broken_manifest_is_one_clear_line(tmp_path, name, content):
    make(tmp_path / "a", {"seed": 1})
    if name == "recipe.json":
        (tmp_path / "a" / "manifest.json").unlink()
    (tmp_path / "a" / name).write_bytes(content)
    with pytest.raises(InputError, match=name) as refused:
        make(tmp_path / "a", {"seed": 1})
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError):
        artifact.read(tmp_path / "a", "toy", made_by="toy")


def test_reading_what_is_not_there(tmp_path):
    make(tmp_path / "a", {"seed": 1})
    for folder, reason in (
        (tmp_path / "none", "no such folder; expected other made by `distill other`"),
        (tmp_path, r"has no manifest\.json \(not made by `distill other`\)"),
        (tmp_path / "a", "holds toy, expected other made by `distill other`"),
    ):
        with pytest.raises(InputError, match=reason):
            artifact.read(folder, "other", made_by="distill other")


def _racing(folder, barrier, results):
    barrier.wait()
    results.put(make(Path(folder), {"seed": 1}, f"made by {os.getpid()}").summary)


def test_of_many_writers_one_wins_and_the_others_find_it(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(6), context.Queue()
    workers = [context.Process(target=_racing, args=(str(tmp_path / "a"), barrier, results)) for _ in range(6)]
    for worker in workers:
        worker.start()
    summaries = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert all(summary == summaries[0] for summary in summaries)
    artifact.read(tmp_path / "a", "toy", made_by="toy").verify()


WRITER = """
import sys
from pathlib import Path
from distill.artifact import write_atomic
path, n = Path(sys.argv[1]), 0
while True:
    n += 1
    write_atomic(path, f"{n % 10}" * 200_000)
"""


def test_an_atomic_write_is_whole_or_not_there(tmp_path):
    """A writer killed in the middle, and a reader at any time, see one version or another, never a mixture."""
    path = tmp_path / "file"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], env=child_environment(1))
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        if path.exists():
            text = path.read_text()
            assert len(text) == 200_000 and len(set(text)) == 1
    process.kill()
    process.wait()
    text = path.read_text()
    assert len(text) == 200_000 and len(set(text)) == 1


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    artifact.write_json(path, {"a": 1})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        artifact.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_who_waited_for_one_that_failed_makes_the_folder_anew(tmp_path):
    """Ten threads want one folder; each that gets it first fails and removes it. Nobody trips over the removal."""
    path, made, errors = tmp_path / "a" / "thing", [], []

    def attempt(number: int) -> None:
        try:
            with artifact.workspace(path, "thing", {"x": 1}) as work:
                if work.finished:
                    return
                if number % 3:
                    raise InputError("bad input")
                (work.path / "file").write_text("made")
                made.append(number)
                work.commit({})
        except InputError:
            pass
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=attempt, args=(n,)) for n in range(1, 31)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not errors and len(made) == 1
    assert (path / "manifest.json").is_file()


def test_what_was_paid_for_is_deleted_only_when_the_manifest_is_there(tmp_path, monkeypatch):
    def no_space(path, value):
        raise OSError(28, "No space left on device")

    with artifact.workspace(tmp_path / "a", "thing", {"x": 1}) as work:
        (work.path / "journal").write_text("paid for")
        (work.path / "checkpoints").mkdir()
        (work.path / "checkpoints" / "one").write_text("paid for, too")
        (work.path / "result").write_text("r")
        with monkeypatch.context() as patch, pytest.raises(OSError):
            patch.setattr(artifact, "write_json", no_space)
            work.commit({}, remove=("journal", "checkpoints"))
        assert (work.path / "journal").read_text() == "paid for"
        made = work.commit({}, remove=("journal", "checkpoints"))
    assert list(made.files) == ["result"]
    assert not (tmp_path / "a" / "journal").exists() and not (tmp_path / "a" / "checkpoints").exists()


def test_a_start_that_fails_leaves_a_folder_of_the_users_as_it_was(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError), artifact.workspace(tmp_path / "mine", "thing", {"x": 1}):
        raise InputError("bad input")
    assert list((tmp_path / "mine").iterdir()) == []
    with artifact.workspace(tmp_path / "mine", "thing", {"x": 2}) as work:  # other settings are welcome
        work.commit({})


def test_what_a_killed_write_left_is_no_part_of_what_is_made(tmp_path):
    with artifact.workspace(tmp_path / "made", "toy", {"a": 1}) as work:
        (work.path / "result").write_text("whole")
        (work.path / ".result.1234.part").write_text("to")
        assert list(work.commit({}).files) == ["result"]
    assert sorted(file.name for file in work.path.iterdir()) == [".lock", "manifest.json", "recipe.json", "result"]


def test_a_recipe_that_cannot_be_written_leaves_no_folder_and_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left") as raised, artifact.workspace(tmp_path / "a" / "b", "toy", {}):
        pass
    assert raised.value.filename == str(tmp_path / "a" / "b" / "recipe.json")
    assert list(tmp_path.iterdir()) == []

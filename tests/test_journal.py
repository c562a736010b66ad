"""The journal: what was finished is there after any kill, and damage is named."""

import json
import os
import random
from contextlib import suppress

import pytest

from distill import journal as module
from distill.errors import InputError
from distill.journal import Journal


def filled(path, count=3):
    with Journal(path) as journal:
        for i in range(count):
            journal.append(f"k{i}", {"text": "é\u2028\n" * i})
    return path.read_bytes()


def test_a_torn_last_line_is_cut_off(tmp_path):
    path = tmp_path / "journal.jsonl"
    whole = filled(path)
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        complete = whole[:cut].count(b"\n")
        with Journal(path) as journal:
            assert list(journal) == [f"k{i}" for i in range(complete)]
            for i in range(complete):
                assert journal.get(f"k{i}") == {"text": "é\u2028\n" * i}
            journal.append("new", {"text": "after"})
        with Journal(path) as journal:
            assert len(journal) == complete + 1 and journal.get("new") == {"text": "after"}


@pytest.mark.parametrize(
    "bad", [b"garbage", b"{}", b"[1]", b'{"key":1,"value":2}', b'{"key":"k"}', b"[" * 10**5, b"\0"]
)
def test_a_damaged_line_is_named_and_nothing_is_lost(tmp_path, bad):
    path = tmp_path / "journal.jsonl"
    lines = filled(path, 5).splitlines(keepends=True)
    place = random.randrange(5)
    damaged = b"".join([*lines[:place], bad + b"\n", *lines[place:]])
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=rf"journal\.jsonl:{place + 1}: damaged"):
        Journal(path)
    assert path.read_bytes() == damaged


def test_no_file_is_left_when_nothing_was_finished(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        assert len(journal) == 0 and "k" not in journal and not path.exists()
    assert not path.exists()
    path.write_bytes(b'{"key":"to')
    with Journal(path):
        pass
    assert not path.exists()


def test_opening_it_never_loses_what_is_in_it(tmp_path, monkeypatch):
    """A kill between opening it and the first new line leaves the finished ones."""
    path = tmp_path / "journal.jsonl"
    before = filled(path)

    class Killed(BaseException):
        pass

    def open_and_die(*arguments, **options):
        open(*arguments, **options).close()
        raise Killed

    monkeypatch.setattr(module, "open", open_and_die, raising=False)
    with suppress(Killed):
        Journal(path)
    assert path.read_bytes() == before


def test_short_writes_are_completed_and_lines_forced_to_the_disk(tmp_path, monkeypatch):
    path, synced, forced = tmp_path / "journal.jsonl", [], os.fsync
    monkeypatch.setattr(module.os, "fsync", lambda descriptor: (synced.append(path.stat().st_size), forced(descriptor)))

    class Stingy:
        """A disk that takes a few bytes at a time."""

        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            return self.file.write(data[: random.randrange(1, 5)])

    real = open
    monkeypatch.setattr(
        module, "open", lambda *a, **o: Stingy(real(*a, **o)) if "a" in a[1] else real(*a, **o), raising=False
    )
    with Journal(path) as journal:
        for i in range(600):
            journal.append(f"k{i}", i)
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == [
        {"key": f"k{i}", "value": i} for i in range(600)
    ]
    assert len(synced) >= 3 and synced[-1] == path.stat().st_size


def test_a_write_that_fails_midway_damages_nothing(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append("a", 1)
        file = journal._open()

        class Full:
            """A disk that takes half a line, then nothing."""

            truncate, fileno, space = file.truncate, file.fileno, 9

            def write(self, data):
                if not self.space:
                    raise OSError(28, "No space left on device")
                self.space, taken = 0, self.space
                return file.write(data[:taken])

        journal._file = Full()
        with pytest.raises(InputError, match=r"cannot be written.*No space left"):
            journal.append("b", 2)
        journal._file = file
        journal.append("c", 3)
    with Journal(path) as journal:
        assert {key: journal.get(key) for key in journal} == {"a": 1, "c": 3}


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    with Journal(tmp_path / "none" / "journal.jsonl") as journal, pytest.raises(InputError, match="cannot be written"):
        journal.append("k", 1)

"""What is shown cannot steer a terminal, and every path ends in a result or in one line."""

import json
import os
import sys

import pytest

from distill import cli, console

EVIL = "\x1b[2J\x1b]0;title\x07\r\x00\x7f\x9b1A\u202e\u2028\ud800[bold]x[/bold]<b>é東😀"


def test_messages_and_facts_hold_nothing_that_a_terminal_obeys(capsys):
    console.note(f"error: {EVIL}\nsecond line")
    console.facts(EVIL, {EVIL: EVIL, "list": [{"a": EVIL}]})
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert all(c.isprintable() or c == "\n" for c in text) and "[bold]x[/bold]<b>é東😀" in text
    assert shown.err.count("\n") == 2


def test_json_is_read_back_as_it_was(capsys):
    value = {EVIL: [EVIL, {"e": 'é\n\t\\"'}], "number": 1.5}
    console.emit_json(value)
    text = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in text) and "é東😀" in text
    assert json.loads(text) == value


@pytest.mark.parametrize(
    "command", ["generate --tasks add=3 --out {}", "stats {}", "merge {} --out x", "verify {} --out x"]
)
@pytest.mark.parametrize("name, said", [("x" * 300, "too long"), (os.fsdecode(b"\xff\xfe"), "UTF-8")])
def test_names_that_no_file_can_have_are_one_line(tmp_path, monkeypatch, capsys, command, name, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["distill", "traces", *command.format(tmp_path / name).split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert list(tmp_path.iterdir()) == []

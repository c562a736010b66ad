"""The flags of `distill train`: each is explained, with the default that its setting has, and none is ignored."""

import json
import re

import pytest
import typer

from distill import cli
from distill.training import dry_run
from distill.training.settings import RunOptions, TrainSettings

ARE_FLAGS_ONLY = {"traces", "out", "config", "show_batch", "dry_run", "ranks", "json", "help"}
ARE_YAML_ONLY = {"phases", "adam_betas"}


@pytest.fixture
def command():
    return typer.main.get_command(cli.app).commands["train"]


@pytest.fixture
def distill_train(monkeypatch, capsys):
    """distill_train(*arguments): (exit code, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["distill", "train", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run


def test_every_setting_has_a_flag_that_is_explained_and_no_flag_is_nobodys(command):
    fields = TrainSettings.model_fields.keys() | RunOptions.model_fields.keys()
    flags = {option.name for option in command.params}
    assert fields - flags == ARE_YAML_ONLY and flags - fields | {"out"} == ARE_FLAGS_ONLY - {"help"}
    assert all(option.help for option in command.params)


def test_defaults_that_are_shown_are_those_of_the_settings(command):
    fields = RunOptions.model_fields | TrainSettings.model_fields
    for option in command.params:
        if option.name in ARE_FLAGS_ONLY:
            continue
        default = fields[option.name].get_default()
        assert option.default is None, option.name  # else the flag would win over the file
        if option.name in ("student", "learning_rate", "packed", "tensorboard") or default in (None, False):
            continue  # needed, told in words, or off
        assert option.show_default == (f"{default:g}" if isinstance(default, float) else str(default)), option.name


def test_no_flag_is_cut_off_at_80_columns(command, distill_train, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    _, shown, _ = distill_train("--help")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert all(flag in shown for option in command.params for flag in option.opts) and "-…" not in shown


def test_rows_are_packed_unless_told_otherwise_and_options_of_the_run_stand_in_yaml_too(
    distill_train, traces, tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(dry_run, "dry_run", lambda *given: seen.append(given) or {})
    (tmp_path / "own.yaml").write_text(
        "student: tiny\nseed: 3\nthreads: 1\ncheckpoint_steps: 7\ncheckpoint_seconds: 5\ntensorboard: false\n"
    )
    where = ("--traces", traces, "--dry-run", "--json")
    assert distill_train(*where, "--student", "tiny")[0] == 0
    assert distill_train(*where, "--config", tmp_path / "own.yaml", "--checkpoint-steps", 9, "--padded")[0] == 0
    (plain, _, options, ranks), (own, _, own_options, _) = seen
    assert plain.packed and options.tensorboard and ranks == 1
    assert not own.packed and own.seed == 3
    assert own_options.model_dump(exclude_unset=True, exclude={"out"}) == {
        "threads": 1, "checkpoint_steps": 9, "checkpoint_seconds": 5, "tensorboard": False,
    }  # fmt: skip


def test_under_torchrun_one_process_looks_and_counts_for_all(distill_train, traces, monkeypatch):
    seen = []
    monkeypatch.setattr(dry_run, "dry_run", lambda *given: seen.append(given[-1]) or {})
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        assert distill_train("--traces", traces, "--dry-run", "--json", "--student", "tiny")[0] == 0
    assert seen == [3]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ranks", 4], "--ranks.*--dry-run"),
        (["--dry-run", "--show-batch"], "--show-batch.*--dry-run"),
        (["--decay-steps", 5], "schedule cosine.*decay_steps"),
        (["--think-tags", "<a>,</a>"], "think_tags: student tiny"),
        (["--think-tags", "<a>"], "think_tags: .*two.*found '<a>'"),
        (["--select", "hard"], "select hard .*arm reasoning mixes nothing"),
        (["--arm", "mixed"], "arm 'mixed': .*mixed:0.5"),
        (["--student", "./none"], "student ./none: no such folder"),
    ],
)
def test_what_would_be_ignored_or_contradicts_is_refused(distill_train, traces, tmp_path, arguments, said):
    code, _, error = distill_train("--traces", traces, "--student", "tiny", "--out", tmp_path / "out", *arguments)
    assert code == 2 and re.search(said, error) and error.count("\n") == 1 and not (tmp_path / "out").exists(), error


def test_a_mistyped_field_of_a_file_is_named_with_its_neighbour(distill_train, traces, tmp_path):
    (tmp_path / "own.yaml").write_text(json.dumps({"student": "tiny", "learnin_rate": 1}))
    code, _, error = distill_train("--traces", traces, "--config", tmp_path / "own.yaml", "--dry-run")
    assert code == 2 and "field learnin_rate: no such field; did you mean learning_rate?" in error
    code, _, error = distill_train("--traces", traces, "--dry-run")
    assert code == 2 and "field student: needed, but not given" in error

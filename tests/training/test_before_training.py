"""What is shown before anything is trained: the first batch as text, and what the training would take."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from distill import cli
from distill.errors import InputError
from distill.packing.chat import COMPACT, ChatFormat, ThinkFormat
from distill.packing.pack import IGNORE, Document, build_pack
from distill.packing.source import read_traces
from distill.packing.tokenizer import train_tokenizer
from distill.training import dry_run as dry
from distill.training import show_batch as show
from distill.training.prepare import make_ready
from distill.training.settings import RunOptions, TrainSettings
from distill.training.train import train

SETTINGS = TrainSettings(student="tiny", arm="mixed:0.5", row_tokens=200, batch=40, seed=5)


def run_command(monkeypatch, capsys, *arguments):
    """(exit code, standard output, standard error) of a `distill train` in this process."""
    monkeypatch.setattr("sys.argv", ["distill", "train", "--packed", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_the_shown_row_is_the_first_that_is_trained_on(traces):
    shown = show.show_batch(SETTINGS, traces)
    ready = make_ready(SETTINGS, read_traces(traces))
    references = ready.steps[0].rows[0]
    pairs = {p.problem.id: p for p in read_traces(traces).pairs}
    assert len(shown["documents"]) == len(references)
    for document, reference in zip(shown["documents"], references, strict=True):
        original, pair = ready.rendered.documents[reference], pairs[document["pair"]]
        parts = {part["kind"]: part for part in document["parts"]}
        assert document["mode"] == ("ift", "reasoning")[reference % 2]
        assert list(parts) == ["prompt", *(["reasoning"] if reference % 2 else []), "answer", "end of turn"]
        assert parts["prompt"]["text"] == f"<|user|>{pair.problem.prompt}<|assistant|>"
        if reference % 2:
            assert parts["reasoning"]["text"] == f"<think>{pair.reasoning.reasoning}</think>"
        assert parts["answer"]["text"] == pair.trace(document["mode"]).answer
        assert parts["end of turn"]["text"] == "<|end|>" and parts["end of turn"]["tokens"] == 1
        assert [part["supervised"] for part in document["parts"]] == [False] + [True] * (len(parts) - 1)
        assert sum(part["tokens"] for part in document["parts"]) == len(original.tokens)
        assert sum(part["tokens"] for part in document["parts"] if part["supervised"]) == original.supervised


def test_it_is_read_from_the_labels(rng):
    """A pack whose labels say otherwise is shown as they say."""
    tokenizer = train_tokenizer(["add 12 max A3"] * 20, 320)
    chat = ChatFormat(tokenizer, COMPACT, source="a test")
    (prompt,), (target,) = chat.prompt_ids(["add 12"]), chat.target_ids([("1:1", "3")])
    document = Document(torch.tensor(prompt + target).numpy().astype("int32"), len(prompt))
    pack = build_pack([document, document])
    pack.labels[0, document.length + len(prompt) - 1] = IGNORE  # the second's first target token
    first, second = show.parts_of(pack, [chat.reasoning_tokens(target)] * 2, chat)
    assert first[0].tokens == len(prompt) and second[0].tokens == len(prompt) + 1


def test_tags_of_several_tokens_and_text_that_moves_a_cursor(capsys):
    tokenizer = train_tokenizer(["add 12 max A3"] * 20, 320)
    chat = ChatFormat(tokenizer, ThinkFormat(opening="[[why", closing="why]]"), source="a test")
    assert chat.think_close_id is None
    (prompt,), (target,) = chat.prompt_ids(["add 12"]), chat.target_ids([("1:1\x1b[2J\nso", "[red]3")])
    pack = build_pack([Document(torch.tensor(prompt + target).numpy().astype("int32"), len(prompt))])
    (parts,) = show.parts_of(pack, [chat.reasoning_tokens(target)], chat)
    assert [part.kind for part in parts] == ["prompt", "reasoning", "answer", "end of turn"]
    assert parts[1].text.endswith("why]]") and parts[2].text.strip() == "[red]3"
    document = {"pair": "a", "mode": "reasoning", "parts": [vars(part) for part in parts]}
    show.print_batch(
        {"arm": "x", "student": "y", "tokens": 1, "row_tokens": 2, "supervised_tokens": 1, "documents": [document]}
    )
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\\x1b[2J" in out and "| [red]3" in out and "prompt (" in out


def test_the_commands_write_nothing(traces, tmp_path, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in (traces, *traces.rglob("*"))}
    monkeypatch.chdir(tmp_path)
    common = ("--traces", traces, "--student", "tiny", "--out", tmp_path / "s")
    code, out, _ = run_command(monkeypatch, capsys, *common, "--show-batch")
    assert code == 0 and "--- document 1 of" in out and "end of turn (1) | <|end|>" in out
    code, out, _ = run_command(monkeypatch, capsys, *common[:-2], "--dry-run", "--json")
    assert code == 0 and json.loads(out)["steps"] == 10
    code, _, said = run_command(monkeypatch, capsys, *common[:-2])
    assert code == 2 and "--out" in said and len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in (traces, *traces.rglob("*"))} == before


def test_a_dry_run_counts_what_a_training_then_reports(traces, tmp_path):
    settings = SETTINGS.model_copy(update={"validation": 0.2})
    options = RunOptions(out=tmp_path / "s", threads=1, tensorboard=False)
    said, made = dry.dry_run(settings, traces, options), train(settings, traces, options)
    for name in (
        "parameters",
        "pairs",
        "dropped_tokens",
        "steps",
        "rows",
        "examples",
        "tokens",
        "supervised_tokens",
        "row_fill",
    ):
        assert said[name] == made.summary[name], name
    validation = made.summary["validation"]
    assert said["flops"] == {"training": made.summary["flops"], "validation": validation["times"] * validation["flops"]}
    assert said["shares"] == made.summary["shares"]
    reasoning = made.summary["by_mode"]["reasoning"]
    assert said["shares"]["reasoning"]["tokens"] == pytest.approx(reasoning["tokens"] / made.summary["tokens"])
    assert sum(mode["loss"] for mode in said["shares"].values()) == pytest.approx(1.0)
    measured, memory = said["measured"], said["memory_gib"]
    assert memory["weights"] * 2**30 == 4 * made.summary["parameters"]
    assert measured["total_gib"] == pytest.approx(sum(memory.values()) + measured["program_gib"])
    work = measured["seconds"] * measured["assumed_mfu"] * measured["peak_flops"]
    assert work == pytest.approx(sum(said["flops"].values()))


def test_activation_checkpointing_trades_memory_for_work(traces, tmp_path):
    plain, full = (
        dry.dry_run(SETTINGS, traces, RunOptions(out=tmp_path, threads=1, activation_checkpointing=choice))
        for choice in ("off", "full")
    )
    assert full["memory_gib"]["activations"] < plain["memory_gib"]["activations"]
    assert sum(full["flops"].values()) > 1.1 * plain["flops"]["training"]


def test_selective_checkpointing_runs_products_again_where_layers_are_compiled(traces, tmp_path, monkeypatch):
    """A compiled piece is run again as a whole; attention is a call of its own, whose result is kept."""
    options = RunOptions(out=tmp_path, threads=1, activation_checkpointing="selective")
    assert "activation_checkpointing" not in dry.dry_run(SETTINGS, traces, options)["flops"]
    monkeypatch.setattr(dry, "resolve_compile", lambda setting, device: True)
    said = dry.dry_run(SETTINGS, traces, options)
    layer = 4 * 64 * 64 + 3 * 64 * 172  # of a tiny student: four projections and a gated feed-forward
    assert said["flops"]["activation_checkpointing"] == 2 * 2 * layer * said["tokens"]


def test_what_cannot_fit_is_refused_in_one_line(traces, tmp_path, monkeypatch):
    options = RunOptions(out=tmp_path, threads=1)
    needs = dry.dry_run(SETTINGS, traces, options)["measured"]["total_gib"] * 2**30
    monkeypatch.setattr(dry, "device_bytes", lambda device: int(needs / 2))
    with pytest.raises(InputError) as refused:
        dry.dry_run(SETTINGS, traces, options)
    said = str(refused.value)
    assert "\n" not in said and "training tiny needs about" in said and "--activation-checkpointing full" in said


def test_a_student_of_a_folder_is_counted_without_its_weights(traces, tmp_path, monkeypatch):
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=320)
    model = Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True))
    model.save_pretrained(tmp_path / "student")
    train_tokenizer(read_traces(traces).texts(), 320).save_pretrained(tmp_path / "student")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    settings = TrainSettings(student=str(tmp_path / "student"), row_tokens=256)
    said = dry.dry_run(settings, traces, RunOptions(out=tmp_path / "s", threads=1))
    assert said["parameters"] == sum(p.numel() for p in model.parameters())

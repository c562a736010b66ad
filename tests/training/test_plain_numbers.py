"""Whole trainings with random settings and unusual texts against one written plainly; interrupted and shared they are the
same bytes."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from distill import artifact
from distill.errors import InputError
from distill.tasks.problem import Problem
from distill.traces.store import KIND, write_pairs
from distill.traces.top_k import Distributions, top_k_file, write_top_k
from distill.traces.trace import Pair, Trace
from distill.traces.vocabulary import Vocabulary
from distill.training import train as train_module
from distill.training.dry_run import dry_run
from distill.training.run import Run
from distill.training.settings import RunOptions, TrainSettings
from distill.training.validation import is_held_out

_spec = importlib.util.spec_from_file_location("plain_reference", Path(__file__).with_name("plain_reference.py"))
plain = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(plain)

ENTRIES = 272  # more than the tokenizer's 262, as models are padded
SHAPE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=40)
FAMILIES = {
    "qwen2": (Qwen2Config, dict(tie_word_embeddings=True)),
    "qwen2-untied": (Qwen2Config, dict(tie_word_embeddings=False)),
    "qwen2-window": (Qwen2Config, dict(use_sliding_window=True, sliding_window=8, max_window_layers=1)),
    "qwen3": (Qwen3Config, dict(head_dim=12, tie_word_embeddings=False)),
    "llama": (LlamaConfig, dict(tie_word_embeddings=False)),
    "gemma": (GemmaConfig, dict(head_dim=8)),
    # Small caps, so that they bend what these students say
    "gemma2": (
        Gemma2Config,
        dict(head_dim=8, sliding_window=9, attn_logit_softcapping=1.5, final_logit_softcapping=2.0),
    ),
    "gemma3": (
        Gemma3TextConfig,
        dict(head_dim=8, sliding_window=7, layer_types=["sliding_attention", "full_attention"]),
    ),
}
# What may be refused of random settings: a budget too small for two phases, nothing held out, no teacher's token ids.
REFUSED = ("has no step of its own", "validation=0.4", "there is nothing to distil")
WORDS = ["7", "12", " the", " naïve", "東京", "🙂", "e\u0301", "\n", "\n\n", "\t", " ", "<", "|>", "{{x}}", "\u200d", "<|user|>", "<|pad|>"]  # fmt: skip


def text(rng, most):
    return "".join(rng.choice(WORDS, int(rng.integers(1, most + 1))))


def random_pairs(rng, n):
    """Among them one-token answers, no reasoning, a question asked several times, and one that is far too long."""
    pairs = []
    for i in range(n):
        problem = Problem("add", f"{i}{text(rng, 5)}", rng.choice(["8", "gold 東"]), "open")
        thought = "" if rng.random() < 0.1 else text(rng, 12)
        if i == 1:
            thought = "x" * 900
        with_reasoning = Trace("reasoning", thought, rng.choice(["4", text(rng, 3)]), "stop", "t")
        pairs.append(Pair(problem, with_reasoning, Trace("ift", "", rng.choice(["5", text(rng, 4)]), "stop", "t")))
        if rng.random() < 0.2 and i != 1:
            pairs.append(replace(pairs[-1], ift=Trace("ift", "", "another" + text(rng, 3), "stop", "t")))
    return pairs


def random_answer(rng, token_ids, k, temperature):
    """Some rows nearly certain, some with fewer than K, some with ids beyond the student's vocabulary."""
    n, known = len(token_ids), ENTRIES if k > ENTRIES else ENTRIES + 8
    ids = np.full((n, k), -1)
    logprobs = np.full((n, k), -np.inf)
    for t in range(n):
        has = min(k, known) if rng.random() < 0.7 else int(rng.integers(1, min(k, known) + 1))
        # With all of the vocabulary listed nothing is left; below the rounding of float32 nobody knows how much.
        logits = rng.standard_normal(has + (has < ENTRIES)) * rng.uniform(0.2, 2)
        found = np.sort(logits[:has] - np.log(np.exp(logits).sum()))[::-1]
        ids[t, :has], logprobs[t, :has] = rng.permutation(known)[:has], found
    return Distributions.of(token_ids, ids, logprobs, temperature)


def write_traces(rng, folder, student, n=14, k=None):
    """(pairs, what the teacher's files say by mode) of a finished trace set."""
    pairs, tokenizer = random_pairs(rng, n), AutoTokenizer.from_pretrained(student)
    k = k or int(rng.choice([1, 5, ENTRIES - 40, ENTRIES + 20]))
    temperature, answers, known = float(rng.uniform(0.6, 1.7)), {}, {}
    with artifact.workspace(folder, KIND, {"made": int(rng.integers(2**31))}) as space:
        summary = write_pairs(space.path, pairs)
        for mode in ("reasoning", "ift"):
            answers[mode] = []
            for pair in pairs:
                trace = pair.trace(mode)
                said = trace.answer
                if trace.reasoning:
                    said = f"<think>\n{trace.reasoning}\n</think>\n\n{said}"
                if (pair.problem, said) in known:  # the same text has the same distributions
                    answers[mode].append(known[pair.problem, said])
                    continue
                ids = tokenizer(said, add_special_tokens=False)["input_ids"]
                how = rng.random()  # with its end of turn, without it, other tokens
                ids = [*ids, 3] if how < 0.6 else ids if how < 0.8 else [*ids[:-1], (ids[-1] + 1) % 262, 3]
                known[pair.problem, said] = random_answer(rng, ids, k, temperature)
                answers[mode].append(known[pair.problem, said])
            about = {"k": k, "temperature": temperature, "vocabulary": Vocabulary.of(tokenizer)}
            write_top_k(top_k_file(folder, mode), [len(a.token_ids) for a in answers[mode]], answers[mode], **about)
        space.commit(summary)
    return pairs, answers


def write_student(rng, folder, tiny_student, family):
    kind, more = FAMILIES[family]
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    ids = dict(bos_token_id=None, eos_token_id=3, pad_token_id=0, vocab_size=ENTRIES, max_position_embeddings=512)
    torch.manual_seed(int(rng.integers(2**31)))
    AutoModelForCausalLM.from_config(kind(**SHAPE, **more, **ids, initializer_range=0.25)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def random_settings(rng, student, **changes):
    """(settings, options) of a short training: everything is drawn."""
    pick = lambda *of: of[int(rng.integers(len(of)))]  # noqa: E731
    row_tokens = int(rng.integers(220, 300))
    packed = bool(rng.random() < 0.7)
    values = dict(
        student=student, precision="fp32", seed=int(rng.integers(1000)), row_tokens=row_tokens, packed=packed,
        answers=pick("teacher", "teacher", "stripped", "gold"), epochs=pick(1, 1, 2),
        loss_weight=pick("token", "example", "answer"), mode_signal=pick("none", "prompt"),
        learning_rate=float(rng.uniform(2e-4, 4e-3)), schedule=pick("cosine", "wsd", "linear", "constant"),
        warmup_steps=int(rng.integers(0, 4)),
        final_learning_rate_ratio=float(rng.uniform(0, 1)), weight_decay=pick(0.0, 0.3),
        adam_betas=(float(rng.uniform(0.5, 0.95)), float(rng.uniform(0.8, 0.999))),
        gradient_clip=float(rng.choice([0.05, 1.0, 1e9])),
        arm=pick("ift", "reasoning", f"mixed:{rng.uniform(0.2, 0.8):.2f}", f"sequential:{rng.uniform(0.3, 0.7):.2f}"),
    )  # fmt: skip
    if values["schedule"] == "wsd":
        values["decay_steps"] = int(rng.integers(1, 4))
    if rng.random() < 0.5:
        values |= dict(batch_unit="tokens", batch=row_tokens * pick(1, 2), balance_ranks=pick(None, 1, 2))
    else:
        values |= dict(batch_unit="examples", batch=int(rng.integers(4, 9)))
    if rng.random() < 0.25:
        own = [dict(reasoning=round(float(rng.uniform(0, 1)), 2), epochs=pick(1, 1, 2)) for _ in range(2)]
        own[0]["learning_rate"] = float(rng.uniform(2e-4, 2e-3))
        values = {k: v for k, v in values.items() if k not in ("arm", "epochs")} | dict(phases=own)
    elif values["arm"].startswith("sequential") and rng.random() < 0.5:
        values["reasoning_learning_rate"] = float(rng.uniform(2e-4, 4e-3))
    values |= pick({}, {}, {"tokens": int(rng.integers(600, 2500))}, {"match": pick("steps", "tokens", "flops")})
    how = rng.random()
    if how < 0.35:
        values |= dict(distillation_weight=pick(1.0, float(rng.uniform(0.1, 0.9))))
        values |= dict(divergence=pick("forward_kl", "reverse_kl", "jsd"), answers="teacher")
    elif how < 0.7:
        values |= dict(z_loss=float(rng.uniform(0, 0.02)))
    if rng.random() < 0.35:
        values |= dict(lora_rank=int(rng.integers(1, 5)), lora_alpha=pick(None, 3.5, 8.0))
        values |= dict(lora_targets=pick(None, ("q_proj", "down_proj")), merge=pick(True, False))
        values["learning_rate"] *= 5
    if rng.random() < 0.5:
        values |= dict(validation=0.4, weights=pick("last", "best"))
        values |= pick(dict(validation_steps=2), dict(validation_epochs=pick(1, 2)))
    return TrainSettings(**values | changes), {"activation_checkpointing": pick("off", "off", "selective", "full")}


def options_for(folder, **changes):
    return RunOptions(out=folder, threads=1, tensorboard=False, **changes)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def compare(rng, tmp_path, tiny_student, monkeypatch, family, **changes):
    student = write_student(rng, tmp_path / "student", tiny_student, family)
    pairs, teacher = write_traces(rng, tmp_path / "traces", student)
    settings, more = random_settings(rng, student, **changes)
    # Masks of padded batches overflow where scores are float64 and probabilities float32.
    wide = settings.packed or "gemma" not in family
    print(family, settings, more)
    seen = {}

    def ready_in_float64(*arguments, **options):
        ready = make_ready(*arguments, **options)
        if wide:
            ready.origin.model.double()
        seen.update(ready=ready, start=plain.copy_state(ready.origin.model))
        return ready

    make_ready = train_module.make_ready
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "make_ready", ready_in_float64)
        try:
            made = train_module.train(settings, tmp_path / "traces", options_for(tmp_path / "out", **more))
        except InputError as refused:
            assert any(words in str(refused) for words in REFUSED)
            return
    ready, start = seen["ready"], seen["start"]

    kept = plain.plain_documents(student, pairs, settings)
    assert ready.rendered.pair_ids == [pairs[both[0].place].problem.id for both in kept]
    assert ready.rendered.dropped == len(pairs) - len(kept) >= 1
    trained_on = {r // 2 for s in ready.steps for row in s.rows for r in row}
    held = [i for i, both in enumerate(kept) if is_held_out(pairs[both[0].place].problem.prompt, settings.validation)]
    training = [i for i in range(len(kept)) if i not in held]
    assert not trained_on & set(held)
    model, trained = plain.plain_model(student, start, settings.lora)
    adapters = sum(p.numel() for p in trained.values()) if settings.lora else 0
    flops = lambda documents, **how: plain.plain_flops(model.config, documents, adapters, **how)  # noqa: E731
    settings_of_one = settings.for_ranks(1)
    wanted = plain.check_plan(settings_of_one, kept, training, ready.steps, lambda d: flops([d]))
    losses, norms, validations, at = plain.plain_training(
        model, trained, kept, ready.steps, settings, teacher, held, ready.validate_after
    )

    log = lines_of(tmp_path / "out" / "training_log.jsonl")
    assert log[0]["loss"] == pytest.approx(losses[0], rel=2e-5, abs=1e-7)
    assert log[0]["gradient_norm"] == pytest.approx(norms[0], rel=2e-4, abs=1e-7)
    # AdamW divides by the root of the second moment, so rounding grows from step to step, in float32 more.
    later = 2e-4 if wide else 3e-3
    assert [line["loss"] for line in log] == pytest.approx(losses, rel=later, abs=1e-6)
    assert [line["gradient_norm"] for line in log] == pytest.approx(norms, rel=10 * later, abs=1e-5)
    rates = [plain.plain_rate(settings, s.index, s.of, s.phase) for s in ready.steps]
    assert [line["learning_rate"] for line in log] == pytest.approx(rates, rel=1e-12)
    validated = lines_of(tmp_path / "out" / "validation_log.jsonl")
    assert [line["step"] for line in validated] == sorted(validations)
    for line in validated:
        assert line == pytest.approx({"step": line["step"], **validations[line["step"]]}, rel=later)

    final = {name: p.detach() for name, p in trained.items()}
    if settings.weights == "best":
        step = made.summary["validation"]["kept"]["step"]
        assert validations[step]["loss"] <= min(v["loss"] for v in validations.values()) * (1 + later)
        final = at[step]
    found = dict(ready.origin.model.named_parameters())
    for name, value in final.items():
        moved = float((value - start[name]).norm())
        assert float((found[name].detach() - value).norm()) <= (0.01 if wide else 0.2) * moved + 1e-9, name

    shown = [kept[r // 2][r % 2] for s in ready.steps for row in s.rows for r in row]
    summary = made.summary
    by_mode = {mode: [d for d in shown if d.mode == mode] for mode in ("ift", "reasoning")}
    for mode, documents in by_mode.items():
        weights = sum(float(plain.token_weights(d, settings.loss_weight).sum()) for d in documents)
        assert summary["by_mode"][mode] == {
            "examples": len(documents),
            "tokens": sum(d.length for d in documents),
            "supervised_tokens": sum(len(d.target) for d in documents),
            "loss_weight": pytest.approx(weights),
        }
    assert summary["tokens"] == sum(d.length for d in shown) == sum(line["tokens"] for line in log)
    assert summary["flops"] == pytest.approx(flops(shown), rel=1e-9)
    assert sum(line["flops"] for line in log) == pytest.approx(flops(shown), rel=1e-9)
    measured = summary["measured"]
    assert measured["mfu"] / measured["tokens_per_second"] == pytest.approx(
        flops(shown) / summary["tokens"] / measured["peak_flops"], rel=1e-6
    )
    assert summary["pairs"] == len(training) and summary["dropped_tokens"] >= 900
    if wanted is not None:
        assert summary["matched"]["wanted"] == pytest.approx(wanted, rel=1e-9)
    if held:
        documents = [
            kept[i][m] for i in held for m, mode in enumerate(("ift", "reasoning")) if f"loss_{mode}" in validated[0]
        ]
        assert summary["validation"]["flops"] == pytest.approx(flops(documents, forward_only=True), rel=1e-9)
        assert summary["validation"]["tokens"] == sum(d.length for d in documents)
    if settings.distillation_weight:
        references = {r for s in ready.steps for row in s.rows for r in row}
        documents = [kept[r // 2][r % 2] for r in references]
        has = [
            len(teacher[d.mode][d.place].token_ids)
            for d in documents
            if list(teacher[d.mode][d.place].token_ids) in (d.target, d.target[:-1])
        ]
        coverage = summary["distillation"]
        assert coverage["taught"] == {"documents": len(has), "supervised_tokens": sum(has)}
        assert coverage["supervised_tokens"] == sum(len(d.target) for d in documents)
    said = dry_run(settings, tmp_path / "traces", options_for(tmp_path / "none", **more))
    for name in ("parameters", "trainable_parameters", "pairs", "steps", "rows", "examples", "tokens", "matched"):
        assert said[name] == summary[name], name
    assert said["flops"]["training"] == summary["flops"]
    for mode, documents in by_mode.items():
        share = sum(float(plain.token_weights(d, settings.loss_weight).sum()) for d in documents)
        total = sum(float(plain.token_weights(d, settings.loss_weight).sum()) for d in shown)
        assert said["shares"][mode]["loss"] == pytest.approx(share / total)
        assert said["shares"][mode]["examples"] == pytest.approx(len(documents) / len(shown))


@pytest.mark.parametrize(("family", "packed"), [("qwen2", True), ("gemma2", True), ("gemma2", False)])
def test_a_random_training_is_the_plain_one(tmp_path, tiny_student, rng, monkeypatch, family, packed):
    """Padded batches of a model with capped scores are attended with the cap, too."""
    compare(rng, tmp_path, tiny_student, monkeypatch, family, packed=packed)


@pytest.mark.long
@pytest.mark.parametrize("number", range(60))
def test_random_trainings_are_the_plain_ones(tmp_path, tiny_student, rng, monkeypatch, number):
    compare(rng, tmp_path, tiny_student, monkeypatch, [*FAMILIES][number % len(FAMILIES)])


def bytes_of(folder):
    """Of everything but what has a clock in it."""
    names = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and "tensorboard" not in p.parts)
    files = {
        str(n): (folder / n).read_bytes() for n in names if n.name not in ("manifest.json", ".lock", "metrics.json")
    }
    without = lambda value: {k: v for k, v in value.items() if k != "measured"}  # noqa: E731
    return files | {"metrics.json": without(json.loads((folder / "metrics.json").read_text()))}


def interrupt(rng, tmp_path, tiny_student, monkeypatch, family, **changes):
    """Killed after random steps and going on with other options, its documents found where another arm has left them."""
    student = write_student(rng, tmp_path / "student", tiny_student, family)
    write_traces(rng, tmp_path / "traces", student)
    settings, more = random_settings(rng, student, **changes)
    print(family, settings, more)
    try:
        whole = train_module.train(settings, tmp_path / "traces", options_for(tmp_path / "whole", **more))
    except InputError as refused:
        assert any(words in str(refused) for words in REFUSED)
        return
    other = dict(settings.model_dump(), arm="ift", phases=None, seed=1, tokens=None, match="steps", validation=0)
    other |= dict(
        weights="last", validation_steps=None, validation_epochs=1, distillation_weight=0, divergence="forward_kl"
    )
    other |= dict(reasoning_learning_rate=None)
    shared = tmp_path / "documents"
    train_module.train(TrainSettings(**other), tmp_path / "traces", options_for(tmp_path / "other", documents=shared))
    made_by_others = {p: p.stat().st_mtime_ns for p in shared.rglob("*.npy")}
    step, left = Run.step, 0

    def counted(self, *arguments):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return step(self, *arguments)

    monkeypatch.setattr(Run, "step", counted)
    for life in range(40):
        left = int(rng.integers(1, 5)) if life < 39 else -1
        options = options_for(
            tmp_path / "cut",
            documents=shared,
            checkpoint_steps=1 if left < 3 else int(rng.integers(1, 3)),
            activation_checkpointing=str(rng.choice(["off", "selective", "full"])),
        )
        try:
            cut = train_module.train(settings, tmp_path / "traces", options)
            break
        except KeyboardInterrupt:
            pass
    monkeypatch.setattr(Run, "step", step)
    assert cut.key == whole.key
    found, expected = bytes_of(tmp_path / "cut"), bytes_of(tmp_path / "whole")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == value, name
    assert made_by_others == {p: p.stat().st_mtime_ns for p in shared.rglob("*.npy")}


def test_a_random_training_goes_on_in_the_same_bytes(tmp_path, tiny_student, rng, monkeypatch):
    interrupt(rng, tmp_path, tiny_student, monkeypatch, str(rng.choice([*FAMILIES])))


@pytest.mark.long
@pytest.mark.parametrize("number", range(24))
def test_random_trainings_go_on_in_the_same_bytes(tmp_path, tiny_student, rng, monkeypatch, number):
    interrupt(rng, tmp_path, tiny_student, monkeypatch, [*FAMILIES][number % len(FAMILIES)])


LORA = {"lora_rank": 2}
PHASES = ({"reasoning": 0.0}, {"reasoning": 1.0})
# What is changed of every field, given what; two values of a field are two keys and, but for WHY_NOT, other weights.
CHANGES = {
    "arm": ({}, "reasoning"),
    "phases": ({"arm": "phases"}, PHASES),
    "answers": ({}, "stripped"),
    "seed": ({}, 8),
    "packed": ({}, False),
    "row_tokens": ({"row_tokens": 600, "batch": 40}, 230),
    "batch": ({}, 5),
    "batch_unit": ({"batch": 260}, "tokens"),
    "epochs": ({}, 2),
    "tokens": ({}, 150),
    "match": ({}, "tokens"),
    "balance_ranks": ({"batch_unit": "tokens", "batch": 520, "epochs": 3}, 2),
    "loss_weight": ({}, "answer"),
    "z_loss": ({}, 0.01),
    "distillation_weight": ({}, 0.5),
    "divergence": ({"distillation_weight": 0.5}, "jsd"),
    "learning_rate": ({}, 2e-3),
    "reasoning_learning_rate": ({"arm": "sequential:0.5"}, 2e-3),
    "one_schedule": ({"arm": "sequential:0.5"}, True),
    "schedule": ({}, "linear"),
    "warmup_steps": ({}, 2),
    "decay_steps": ({"schedule": "wsd", "decay_steps": 1}, 2),
    "final_learning_rate_ratio": ({}, 0.5),
    "weight_decay": ({}, 0.5),
    "adam_betas": ({}, (0.8, 0.95)),
    "gradient_clip": ({}, 0.01),
    "validation": ({}, 0.4),
    "validation_epochs": ({"validation": 0.4}, 2),
    "validation_steps": ({"validation": 0.4}, 1),
    "weights": ({"validation": 0.4, "learning_rate": 0.05, "epochs": 3}, "best"),
    "lora_rank": (LORA, 3),
    "lora_alpha": (LORA, 8.0),
    "lora_targets": (LORA, ("q_proj",)),
    "merge": (LORA, True),
    "precision": ({}, "bf16"),
    "think_tags": ({}, ("<pad>", "</pad>")),
    "mode_signal": ({}, "prompt"),
    "vocab_size": ({"student": "tiny", "vocab_size": 280}, 300),
}
WHY_NOT = {
    "validation_epochs": "it names what is looked at and, with weights best, what is kept",
    "validation_steps": "the same",
    "merge": "the adapters are the same, the folder is another",
}
ELSEWHERE = {
    "student": "identity of its files",
    "compile": "asks for a compiler",
    "keep": "test_keep.py",
    "select": "test_select.py",
    "sampling": "test_select.py",
}


def test_every_setting_is_looked_at():
    assert CHANGES.keys() | ELSEWHERE.keys() == TrainSettings.model_fields.keys()


@pytest.mark.long
@pytest.mark.parametrize("field", CHANGES)
def test_a_setting_changes_the_weights_and_the_key(tmp_path, tiny_student, rng, field):
    student = write_student(rng, tmp_path / "student", tiny_student, "qwen2")
    write_traces(rng, tmp_path / "traces", student, n=40 if field in ("row_tokens", "balance_ranks") else 16)
    base = dict(student=student, arm="mixed:0.5", batch=6, row_tokens=260, learning_rate=1e-3, precision="fp32")
    given, changed = CHANGES[field]
    made = {}
    for name, values in {"as it is": given, "changed": given | {field: changed}}.items():
        values = base | values
        if values["arm"] == "phases" and "phases" not in values:
            values["arm"] = base["arm"]
        made[name] = train_module.train(TrainSettings(**values), tmp_path / "traces", options_for(tmp_path / name))
    a, b = made.values()
    assert a.key != b.key
    weights = []
    for one in (a, b):
        adapter = next(one.path.rglob("adapter_model.safetensors"), None)
        weights.append((adapter or one.path / "model.safetensors").read_bytes())
    same = field in WHY_NOT
    if field == "weights":
        same = b.summary["validation"]["lowest"]["step"] == b.summary["steps"]
    assert (weights[0] == weights[1]) == same


def test_how_a_training_is_run_changes_neither_weights_nor_key(tmp_path, tiny_student, rng):
    student = write_student(rng, tmp_path / "student", tiny_student, str(rng.choice([*FAMILIES])))
    write_traces(rng, tmp_path / "traces", student)
    settings = TrainSettings(student=student, batch=6, row_tokens=260, precision="fp32", learning_rate=1e-3)
    runs = {
        "plain": {},
        "documents": dict(documents=tmp_path / "d"),
        "checkpoints": dict(checkpoint_seconds=0, tensorboard=True),
        "steps": dict(checkpoint_steps=1),
        "selective": dict(activation_checkpointing="selective"),
        "full": dict(activation_checkpointing="full"),
    }
    runs = {name: {"tensorboard": False, "threads": 1} | more for name, more in runs.items()}
    named = {option for more in runs.values() for option in more} | {"out", "cpu_offload"}
    assert named == RunOptions.model_fields.keys()
    made = [
        train_module.train(settings, tmp_path / "traces", RunOptions(out=tmp_path / n, **m)) for n, m in runs.items()
    ]
    for one in made:
        assert one.key == made[0].key and bytes_of(one.path) == bytes_of(made[0].path)

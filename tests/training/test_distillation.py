"""Distillation: the loss of every row against an eager float64 reference, what has a teacher and what has none."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill import artifact
from distill.errors import InputError
from distill.kernels import reference, register_attention
from distill.packing.chat import ChatFormat, ThinkFormat
from distill.packing.pack import build_pack
from distill.packing.source import read_traces
from distill.packing.teacher_rows import TeacherTarget, teacher_rows
from distill.tasks import get_task
from distill.traces.store import KIND, read_pairs, write_pairs
from distill.traces.teachers.solver import SolverTeacher
from distill.traces.top_k import Distributions, read_top_k, top_k_file, write_top_k
from distill.traces.trace import Pair
from distill.traces.vocabulary import Vocabulary
from distill.training.distillation import Distillation
from distill.training.padded import build_padded
from distill.training.prepare import make_ready
from distill.training.run import Run
from distill.training.settings import RunOptions, TrainSettings
from distill.training.student import Student
from distill.training.train import recipe, train

END, ENTRIES = 3, 262  # of tiny_student
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")


def random_rows(rng, token_ids, k, temperature):
    """Distributions as a teacher might have: K of the vocabulary, some rows with fewer, some nearly certain.

    None is so certain that the mass of the rest is below the rounding of float32, where the reference's floor is.
    """
    n = len(token_ids)
    ids = np.stack([rng.permutation(ENTRIES)[:k] for _ in range(n)])
    logits = rng.standard_normal((n, k + 1)) * rng.uniform(0.2, 2, (n, 1))
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))  # the last is the mass that is not listed
    logprobs = -np.sort(-logprobs[:, :k], axis=1)
    fewer = rng.random(n) < 0.2
    ids[fewer, k - 1], logprobs[fewer, k - 1] = -1, -np.inf
    return Distributions.of(token_ids, ids, logprobs, temperature)


def write_traces(folder, rng, student, *, pairs=10, k=4, temperature=1.0, spoil=lambda place, mode, ids: ids):
    """A finished trace set of `add` with distributions; spoil(place, mode, token_ids) says what was generated."""
    task, tokenizer = get_task("add"), AutoTokenizer.from_pretrained(student)
    solver = SolverTeacher({task.name: task})
    problems = list(task.problems("train", pairs, int(rng.integers(1000))))
    rows = [Pair(p, solver.solve(p, "reasoning").trace, solver.solve(p, "ift").trace) for p in problems]
    with artifact.workspace(folder, KIND, {"made": int(rng.integers(2**31))}) as space:
        summary = write_pairs(space.path, rows)
        for mode in ("reasoning", "ift"):
            answers = []
            for place, row in enumerate(rows):
                trace = row.trace(mode)
                text = f"<think>\n{trace.reasoning}\n</think>\n\n{trace.answer}" if trace.reasoning else trace.answer
                ids = spoil(place, mode, [*tokenizer(text, add_special_tokens=False)["input_ids"], END])
                answers.append(random_rows(rng, ids, k, temperature))
            write_top_k(
                top_k_file(folder, mode),
                [len(answer.token_ids) for answer in answers],
                answers,
                k=k,
                temperature=temperature,
                vocabulary=Vocabulary.of(tokenizer),
            )
        space.commit(summary)
    return folder


def spoil_some(place, mode, ids):
    """A third as generated, a third without its end of turn, and a third generated as other tokens."""
    return (ids, ids[:-1], [*ids[:-2], (ids[-2] + 1) % ENTRIES, END])[place % 3]


def settings_for(student, **changes):
    values = {"student": str(student), "batch": 4, "row_tokens": 200, "learning_rate": 1e-3, "precision": "fp32"}
    return TrainSettings(**values | {"distillation_weight": 0.7, "gradient_clip": 1e9} | changes)


def options_for(folder, **changes):
    return RunOptions(out=folder, threads=1, tensorboard=False, **changes)


@pytest.fixture(scope="module")
def taught(tiny_student, tmp_path_factory):
    """A trace set of which every document has its teacher's distributions."""
    rng = np.random.default_rng()
    return write_traces(tmp_path_factory.mktemp("taught") / "traces", rng, tiny_student)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("loss_weight", ["token", "example", "answer"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_loss_and_gradients_are_the_reference(tmp_path, tiny_student, rng, packed, loss_weight, divergence):
    """Rows with a teacher, rows without, and documents with both, against one document at a time in float64."""
    temperature, weight = float(rng.uniform(0.5, 2)), float(rng.choice([1.0, rng.uniform(0.05, 0.95)]))
    write_traces(tmp_path / "t", rng, tiny_student, pairs=5, temperature=temperature, spoil=spoil_some)
    settings = settings_for(
        tiny_student,
        arm="mixed:0.5",
        packed=packed,
        loss_weight=loss_weight,
        divergence=divergence,
        distillation_weight=weight,
        seed=int(rng.integers(1000)),
    )
    ready = make_ready(settings, read_traces(tmp_path / "t"))
    loss_settings = ready.teaching.distillation
    assert loss_settings == Distillation(weight, divergence, temperature)
    documents = [ready.documents[r] for step in ready.steps for row in step.rows for r in row]
    assert {d.teacher is None for d in documents} == {True, False}

    register_attention()
    model = ready.origin.model.double()
    student = Student(model, distillation=loss_settings).train()
    batch = build_pack(documents, loss_weight) if packed else build_padded(documents, 0, loss_weight)
    loss = student(batch)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}

    files, pairs = read_top_k(tmp_path / "t"), read_pairs(tmp_path / "t")
    plain = AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.float64, attn_implementation="eager")
    expected = torch.zeros((), dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    for document in documents:
        text = tokenizer.decode(document.tokens[: document.prompt_length])
        place = next(i for i, pair in enumerate(pairs) if f"<|user|>{pair.problem.prompt}<|assistant|>" == text)
        mode = "reasoning" if document.reasoning_length else "ift"
        tokens = torch.from_numpy(document.tokens.astype(np.int64))
        hidden = plain.model(tokens[None, :-1]).last_hidden_state[0, document.prompt_length - 1 :]
        labels, n = tokens[document.prompt_length :], document.supervised
        losses = F.cross_entropy(hidden @ plain.lm_head.weight.T, labels, reduction="none")
        has_teacher = (n, n - 1, 0)[place % 3]
        if has_teacher:
            ids, logprobs = (torch.from_numpy(a) for a in files[mode].rows(place, has_teacher))
            with_teacher = reference.linear_topk_divergence(
                hidden[:has_teacher],
                plain.lm_head.weight,
                ids,
                logprobs.double(),
                divergence=divergence,
                temperature=temperature,
                labels=labels[:has_teacher],
                ce_weight=1 - weight,
                reduction="none",
            )
            losses = torch.cat([with_teacher, losses[has_teacher:]])
        reasoning = document.reasoning_length
        weights = torch.ones(n, dtype=torch.float64)
        if loss_weight == "example" or (loss_weight == "answer" and not reasoning):
            weights /= n
        elif loss_weight == "answer":
            weights[:reasoning], weights[reasoning:] = 0.5 / reasoning, 0.5 / (n - reasoning)
        expected = expected + (weights * losses).sum()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)  # weights of a pack are float32
    expected.backward()
    for name, p in plain.named_parameters():  # by norm: log-probs and weights are stored in float32, and entries cancel
        assert (found[name] - p.grad).norm() <= 1e-5 * p.grad.norm(), name


def test_rows_and_accumulation_do_not_change_what_is_learned(tmp_path, tiny_student, rng):
    write_traces(tmp_path / "t", rng, tiny_student, pairs=9, spoil=spoil_some)
    losses, weights = [], []
    for number, changes in enumerate(({"row_tokens": 250}, {"row_tokens": 90}, {"packed": False})):
        settings = settings_for(tiny_student, arm="mixed:0.5", divergence="jsd", **changes)
        made = train(settings, tmp_path / "t", options_for(tmp_path / f"{number}"))
        lines = (made.path / "training_log.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
        weights.append(AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32).state_dict())
    start = AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.float32).state_dict()
    for other in (1, 2):
        np.testing.assert_allclose(losses[other], losses[0], rtol=1e-4)
        for name, value in weights[0].items():
            moved = float((value - start[name]).abs().max())
            assert float((weights[other][name] - value).abs().max()) <= 0.1 * moved
    assert len(losses[0]) == 3


def test_interrupted_ends_in_the_same_bytes(tmp_path, tiny_student, taught, rng, monkeypatch):
    settings = settings_for(tiny_student, epochs=2, divergence="reverse_kl")
    whole = train(settings, taught, options_for(tmp_path / "whole"))
    step, stop_at, done = Run.step, int(rng.integers(1, 5)), 0

    def interrupted(self, *arguments):
        nonlocal done
        if done == stop_at:
            raise KeyboardInterrupt
        done += 1
        return step(self, *arguments)

    monkeypatch.setattr(Run, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(settings, taught, options_for(tmp_path / "cut", checkpoint_steps=1))
    monkeypatch.setattr(Run, "step", step)
    cut = train(settings, taught, options_for(tmp_path / "cut", checkpoint_steps=1))
    for name in ("model.safetensors", "training_log.jsonl"):
        assert (cut.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_what_has_a_teacher_is_counted_and_said(tmp_path, tiny_student, rng, capsys):
    write_traces(tmp_path / "t", rng, tiny_student, pairs=12, k=3, spoil=spoil_some)
    made = train(settings_for(tiny_student, arm="reasoning"), tmp_path / "t", options_for(tmp_path / "s"))
    counts = made.summary["distillation"]
    file = read_top_k(tmp_path / "t")["reasoning"]
    generated = [len(file.token_ids(i)) for i in range(12)]
    assert (counts["documents"], counts["k"], counts["temperature"]) == (12, 3, 1.0)
    assert counts["taught"] == {
        "documents": 8,
        "supervised_tokens": sum(n for i, n in enumerate(generated) if i % 3 < 2),
    }
    assert counts["other_token_ids"] == {"documents": 4, "supervised_tokens": sum(generated[2::3])}
    assert counts["end_of_turn_not_generated"] == 4
    assert counts["supervised_tokens"] == sum(generated) + 4 == made.summary["supervised_tokens"]
    said = " ".join(capsys.readouterr().err.split())
    assert "top 3 at temperature 1: 8 of 12 documents" in said
    assert "4 documents whose token ids are not those the teacher generated and 4 ends of turn" in said


def test_validation_is_on_the_text_alone(tiny_student, tmp_path, rng):
    write_traces(tmp_path / "t", rng, tiny_student, pairs=60)
    ready = make_ready(settings_for(tiny_student, arm="mixed:0.5", validation=0.3), read_traces(tmp_path / "t"))
    held = [d for rows in ready.validation.rows.values() for row in rows for d in row]
    assert held and all(d.teacher is None for d in held)
    trained = [ready.documents[r] for step in ready.steps for row in step.rows for r in row]
    assert all(d.teacher is not None for d in trained)
    assert ready.teaching.coverage["documents"] == len(trained)


def test_a_question_asked_twice_has_its_own_distributions(tmp_path, tiny_student, rng):
    """The same prompt with two answers: each document learns from the distributions of its own text."""
    folder = write_traces(tmp_path / "t", rng, tiny_student, pairs=3)
    pairs = read_pairs(folder)
    twice = [pairs[0], replace(pairs[0], ift=replace(pairs[0].ift, answer="7 or so")), *pairs[1:]]
    tokenizer, answers = AutoTokenizer.from_pretrained(tiny_student), {}
    with artifact.workspace(tmp_path / "twice", KIND, {"twice": 1}) as space:
        summary = write_pairs(space.path, twice)
        for mode in ("reasoning", "ift"):
            texts = [pair.trace(mode) for pair in twice]
            texts = [f"<think>\n{t.reasoning}\n</think>\n\n{t.answer}" if t.reasoning else t.answer for t in texts]
            ids = [[*tokenizer(text, add_special_tokens=False)["input_ids"], END] for text in texts]
            answers[mode] = [random_rows(rng, row, 4, 1.0) for row in ids]
            about = {"k": 4, "temperature": 1.0, "vocabulary": Vocabulary.of(tokenizer)}
            write_top_k(top_k_file(space.path, mode), [len(row) for row in ids], answers[mode], **about)
        space.commit(summary)
    ready = make_ready(settings_for(tiny_student, arm="ift"), read_traces(tmp_path / "twice"))
    for place in range(4):
        loaded = ready.documents[2 * place].teacher.load()
        np.testing.assert_array_equal(loaded[0], answers["ift"][place].ids)
        np.testing.assert_allclose(loaded[1], answers["ift"][place].logprobs.astype(np.float32), atol=1e-3, rtol=2**-11)


def test_ids_beyond_the_students_vocabulary_are_not_listed(taught, rng):
    file = read_top_k(taught)["reasoning"]
    ids, logprobs = file.rows(0)
    entries = int(np.median(ids))
    found_ids, found_logprobs = TeacherTarget(file, 0, len(ids), entries).load()
    kept = ids < entries
    assert kept.any() and not kept.all()
    assert (found_ids[kept] == ids[kept]).all() and (found_logprobs[kept] == logprobs[kept]).all()
    assert (found_ids[~kept] == -1).all() and np.isneginf(found_logprobs[~kept]).all()


def test_a_batch_without_teachers_has_no_teacher_rows(documents):
    assert teacher_rows(documents(5)) is None and build_pack(documents(3)).teacher is None


def test_what_cannot_be_distilled_is_refused(tmp_path, tiny_student, taught, traces, rng):
    def refused(match, student=tiny_student, folder=taught, **changes):
        with pytest.raises(InputError, match=match):
            train(settings_for(student, **changes), folder, options_for(tmp_path / "s"))
        assert not (tmp_path / "s" / "manifest.json").exists()

    refused("has no log-probabilities of its teacher, which distillation_weight=0.7 needs", folder=traces)
    refused(r"tiny: .*tokenizer \(\d+ entries\) is not the teacher's", student="tiny", vocab_size=290)
    refused("none of 10 documents has the token ids that the teacher generated", arm="ift", answers="stripped", folder=(
        write_traces(tmp_path / "t", rng, tiny_student, spoil=lambda place, mode, ids: [*ids[:-2], 100, END])
    ))  # fmt: skip
    for values, match in (
        ({"divergence": "jsd", "distillation_weight": 0.0}, "divergence jsd needs a distillation_weight"),
        ({"z_loss": 1e-4}, "z_loss is a part of cross-entropy"),
        ({"distillation_weight": 1.5}, "less than or equal to 1"),
    ):
        with pytest.raises((InputError, ValueError), match=match):
            settings_for(tiny_student, **values)


def test_a_larger_vocabulary_is_named(tmp_path, tiny_student, rng):
    write_traces(tmp_path / "t", rng, tiny_student, pairs=3)
    for mode in ("reasoning", "ift"):  # as if captured of a teacher with more tokens
        path = top_k_file(tmp_path / "t", mode)
        data = path.read_bytes()
        at = data.index(b'"vocabulary_size": "') + len(b'"vocabulary_size": "')
        path.write_bytes(data[:at] + b"999" + data[at + 3 :])
    with pytest.raises(InputError, match="its vocabulary has 262 entries, that of the teacher's log-probabilities 999"):
        make_ready(settings_for(tiny_student), read_traces(tmp_path / "t"))


def test_it_names_a_student_and_off_is_off(tmp_path, tiny_student, taught):
    plain, off = settings_for(tiny_student, distillation_weight=0.0), TrainSettings(student=str(tiny_student))
    keys = {
        artifact.content_key("student", recipe(settings_for(tiny_student, **changes), "traces"))
        for changes in ({}, {"distillation_weight": 0.0}, {"distillation_weight": 1.0}, {"divergence": "jsd"})
    }
    assert len(keys) == 4
    assert off.distillation_weight == 0 and off.divergence == "forward_kl"
    ready = make_ready(plain, read_traces(taught))
    assert ready.teaching is None and all(ready.documents[r].teacher is None for r in range(20))


def test_the_chat_of_the_tests_is_the_teachers(tiny_student):
    """What these tests take for generated is what a student's chat format renders."""
    chat = ChatFormat(AutoTokenizer.from_pretrained(tiny_student), ThinkFormat.load(tiny_student), source="tiny")
    assert chat.end_of_turn == END and (chat.think_open_id, chat.think_close_id) == (4, 5)

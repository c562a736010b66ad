"""A teacher's distributions: what is kept of a server's log-probabilities, through kills, faults and damage."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from distill.cli import app
from distill.errors import InputError
from distill.process import child_environment
from distill.tasks import get_task
from distill.traces.generate import generate, generate_recipe
from distill.traces.settings import EndpointSettings, GenerateSettings
from distill.traces.store import read_pairs
from distill.traces.teachers.endpoint import EndpointTeacher
from distill.traces.teachers.teacher import Question
from distill.traces.top_k import Distributions, TopK, read_top_k, write_top_k
from distill.traces.vocabulary import Vocabulary, load_tokenizer

END = 3
PROBES = 2  # requests of one token that ask at which temperature log-probabilities come
RUN = (
    "import sys; from pathlib import Path; from distill.traces.generate import generate; "
    "from distill.traces.settings import GenerateSettings; "
    "generate(GenerateSettings.model_validate_json(sys.argv[1]), Path(sys.argv[2]))"
)


@pytest.fixture
def vllm_like(teacher, tiny_student):
    """The loopback teacher with the tokenizer of tiny_student."""
    teacher.tokenizer = load_tokenizer(str(tiny_student))
    teacher.folder = str(tiny_student)
    return teacher


def settings_for(teacher, count=12, **changes) -> GenerateSettings:
    changes = {"url": teacher.url, "model": "fake", "concurrency": 4, "tokenizer": teacher.folder} | changes
    return GenerateSettings(tasks={"add": count}, teacher=EndpointSettings(**changes))


def expected_rows(teacher, pair, mode, token_ids, k):
    """(ids, log-probabilities) of the k most likely, by the teacher's own distributions."""
    messages = [{"role": "user", "content": pair.problem.prompt}]
    whole = np.stack([teacher.distribution(messages, mode == "reasoning", i) for i in range(len(token_ids))])
    ids = np.argsort(-whole, axis=1)[:, :k]
    return ids, np.take_along_axis(whole, ids, axis=1)


def data_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_every_token_has_the_k_most_likely_ids(tmp_path, vllm_like, rng):
    k = int(rng.integers(1, 20))
    made = generate(settings_for(vllm_like, top_k=k), tmp_path / "t")
    assert vllm_like.requests == 24 + PROBES
    files, pairs = read_top_k(tmp_path / "t"), read_pairs(tmp_path / "t")
    assert made.recipe["teacher"]["top_k"] == k
    assert {"reasoning.top_k.safetensors", "ift.top_k.safetensors"} < set(made.files)
    tokens = sum(t.reasoning_tokens + t.answer_tokens for pair in pairs for t in (pair.reasoning, pair.ift))
    assert made.summary["top_k"] == {"k": k, "temperature": 1.0, "tokens": tokens}
    for mode, file in files.items():
        assert (len(file), file.k, file.temperature) == (12, k, 1.0)
        assert file.vocabulary == Vocabulary.of(vllm_like.tokenizer)
        for place, pair in enumerate(pairs):
            trace = pair.trace(mode)
            text = f"<think>\n{trace.reasoning}\n</think>\n\n{trace.answer}" if mode == "reasoning" else trace.answer
            ids, logprobs = file.rows(place)
            assert file.token_ids(place).tolist() == [*vllm_like.tokenize(text), END]
            expected, values = expected_rows(vllm_like, pair, mode, file.token_ids(place), k)
            assert ids.dtype == np.int32 and logprobs.dtype == np.float32
            np.testing.assert_array_equal(ids, expected)
            np.testing.assert_allclose(logprobs, values, atol=1e-3, rtol=2**-11)
            # what is not listed weighs what it did, however little that is
            rest = 1 - np.exp(values).sum(1)
            np.testing.assert_allclose(1 - np.exp(logprobs.astype(np.float64)).sum(1), rest, rtol=1e-4, atol=1e-6)
            first = file.rows(place, 2)
            assert np.array_equal(first[0], ids[:2]) and np.array_equal(first[1], logprobs[:2])


def test_killed_at_a_random_moment(tmp_path, vllm_like):
    """Nothing that was kept is asked again, and the files are those of a run that was not killed."""
    settings = settings_for(vllm_like, count=40, top_k=5)
    vllm_like.delay_s = 0.01
    out = tmp_path / "t"
    wait_for = PROBES + random.randrange(1, 60)
    child = subprocess.Popen(
        [sys.executable, "-c", RUN, settings.model_dump_json(), str(out)], env=child_environment(1)
    )
    deadline = time.monotonic() + 60
    while vllm_like.requests < wait_for and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert child.poll() is None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (out / "manifest.json").exists()
    vllm_like.delay_s = 0
    generate(settings, out)
    assert vllm_like.requests <= 80 + 4 + 2 * PROBES
    generate(settings, tmp_path / "uninterrupted")
    assert data_files(tmp_path / "uninterrupted") == data_files(out)


def test_rows_are_those_of_the_pairs_that_are_kept(tmp_path, vllm_like):
    spoilt = {p.prompt for p in random.sample(list(get_task("add").problems("train", 12, 0)), 4)}
    good = vllm_like.reply

    def reply(body):
        choice = good(body)
        if body["messages"][-1]["content"] in spoilt and not body["chat_template_kwargs"]["enable_thinking"]:
            choice["finish_reason"] = "length"
        return choice

    vllm_like.reply = reply
    made = generate(settings_for(vllm_like, top_k=3), tmp_path / "t")
    assert made.summary["pairs"] == 8 and made.summary["rejected"] == {"truncated": 4}
    for mode, file in read_top_k(tmp_path / "t").items():
        assert len(file) == 8
        for place, pair in enumerate(read_pairs(tmp_path / "t")):
            ids, _ = expected_rows(vllm_like, pair, mode, file.token_ids(place), 3)
            np.testing.assert_array_equal(file.rows(place)[0], ids)


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs"])
def test_the_temperature_is_found_out(tmp_path, vllm_like, rng, mode):
    vllm_like.logprobs_mode = mode
    sampled = round(float(rng.uniform(0.3, 0.9)), 2)
    for temperature in (sampled, 1.0, 0.0):
        settings = settings_for(vllm_like, count=3, top_k=4, temperature=temperature, top_p=1.0)
        made = generate(settings, tmp_path / f"{temperature}")
        expected = temperature if mode == "processed_logprobs" and temperature > 0 else 1.0
        assert made.summary["top_k"]["temperature"] == expected
        file, pair = read_top_k(made.path)["ift"], read_pairs(made.path)[0]
        ids, plain = expected_rows(vllm_like, pair, "ift", file.token_ids(0), 262)
        scaled = plain / expected
        scaled -= np.log(np.exp(scaled).sum(1, keepdims=True))
        np.testing.assert_array_equal(file.rows(0)[0], ids[:, :4])
        np.testing.assert_allclose(file.rows(0)[1], scaled[:, :4], atol=5e-3, rtol=1e-3)


def test_a_mode_changed_between_two_runs_is_found(tmp_path, vllm_like, monkeypatch):
    monkeypatch.setattr("distill.serve.client.BACKOFF_S", 0.001)
    monkeypatch.setattr("distill.serve.patience.GONE_S", 0.1)
    settings, good = settings_for(vllm_like, count=30, top_k=4, temperature=0.5, top_p=1.0), vllm_like.reply
    vllm_like.reply = lambda body: good(body) if len(vllm_like.asked) <= 35 else 503
    with pytest.raises(InputError, match="finished answers are kept"):
        generate(settings, tmp_path / "t")
    vllm_like.reply, vllm_like.logprobs_mode = good, "processed_logprobs"
    with pytest.raises(InputError, match=r"temperatures 0\.5 and 1: .*journal\.jsonl and run again"):
        generate(settings, tmp_path / "t")
    assert not (tmp_path / "t" / "manifest.json").exists()


def test_servers_that_cannot_be_distilled_from(tmp_path, vllm_like, trained_tokenizer):
    def refused(match, teacher=vllm_like, **changes):
        with pytest.raises(InputError, match=match):
            generate(settings_for(teacher, **{"top_k": 4} | changes), tmp_path / "t")
        assert not (tmp_path / "t").exists()

    refused("gives no 22 log-probabilities a token .*max allowed: 20.*--max-logprobs 22", top_k=21)
    refused("tokenizes otherwise than .*--tokenizer", tokenizer=trained_tokenizer)
    refused("tokenizer '.*nowhere': expected a folder", tokenizer=str(tmp_path / "nowhere"))
    vllm_like.logprobs_mode = "raw_logits"
    refused(r"add up to more than 1: logits\? \(token 1\)")
    vllm_like.logprobs_mode = "processed_logprobs"
    refused("left after sampling with top_p 0.3; use top_p 1", temperature=0.7, top_p=0.3)
    vllm_like.logprobs_mode, good = "raw_logprobs", vllm_like.logprobs
    vllm_like.logprobs = lambda body, token_ids: None
    refused("expected vLLM's log-probabilities, found 0 log-probability entries for 1 tokens")
    vllm_like.logprobs = lambda body, token_ids: {"content": [dict(good(body, token_ids)["content"][0], token="a")]}
    refused("1 log-probability entries for 1 tokens, or of other tokens")
    vllm_like.tokens = False
    refused("has no /tokenize")


def test_answers_without_their_log_probabilities_are_asked_for_again(tmp_path, vllm_like):
    good, count = vllm_like.logprobs, 0

    def sometimes(body, token_ids):
        nonlocal count
        count += 1
        found = good(body, token_ids)
        if count > PROBES and count % 5 == 0:
            found["content"].pop()
        return found

    vllm_like.logprobs = sometimes
    made = generate(settings_for(vllm_like, top_k=2), tmp_path / "t")
    assert 0 < made.summary["pairs"] < 12 and set(made.summary["rejected"]) == {"failed"}
    assert len(read_top_k(made.path)["ift"]) == made.summary["pairs"]


def test_without_top_k_nothing_is_different(tmp_path, vllm_like):
    settings = settings_for(vllm_like, count=3, tokenizer=None)
    made = generate(settings, tmp_path / "t")
    assert vllm_like.requests == 6 and all("logprobs" not in body for body in vllm_like.bodies)
    assert read_top_k(made.path) is None and "top_k" not in made.summary
    assert not {"top_k", "vocabulary"} & generate_recipe(settings)["teacher"].keys()


def test_on_the_command_line(tmp_path, vllm_like):
    flags = f"--tasks add=3 --teacher {vllm_like.url} --model fake --top-k 6 --tokenizer {vllm_like.folder}"
    found = CliRunner().invoke(app, ["traces", "generate", *flags.split(), "--out", str(tmp_path / "t")])
    assert found.exit_code == 0, found.output
    assert read_top_k(tmp_path / "t")["reasoning"].k == 6
    found = CliRunner().invoke(app, ["traces", "generate", "--tasks", "add=3", "--top-k", "6", "--out", str(tmp_path)])
    assert isinstance(found.exception, InputError) and "--top-k is about a teacher" in str(found.exception)


def random_entries(rng, n, k, vocabulary=50):
    """n entries of k + 1 candidates in any order, and the reference's k most likely of each."""
    entries, tokens, best = [], [], []
    for _ in range(n):
        logits = rng.standard_normal(vocabulary) * rng.uniform(0.1, 8)
        values = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        order, token = np.argsort(-values), int(rng.integers(vocabulary))
        listed = [token, *(int(i) for i in order if i != token)][: k + 1]
        rng.shuffle(listed)
        top = [{"token": f"token_id:{i}", "logprob": float(values[i])} for i in listed]
        entries.append({"token": f"token_id:{token}", "top_logprobs": top})
        tokens.append(token)
        best.append(order[:k])
    return entries, tokens, np.array(best).reshape(n, k)


def test_reading_keeps_the_most_likely_and_survives_json(rng):
    for _ in range(20):
        n, k = int(rng.integers(0, 9)), int(rng.integers(1, 12))
        entries, tokens, best = random_entries(rng, n, k)
        found = Distributions.read(entries, tokens, k, 0.7)
        np.testing.assert_array_equal(found.ids, best)
        assert (np.diff(found.logprobs.astype(np.float64), axis=1) <= 0).all()
        again = Distributions.from_json(found.to_json())
        for name in ("token_ids", "ids", "logprobs", "rest"):
            one, other = getattr(found, name), getattr(again, name)
            assert one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
        assert again.temperature == 0.7


def test_fewer_than_k_are_filled_up(rng):
    entries, tokens, _ = random_entries(rng, 4, 6)
    for entry in entries:  # what a server gives for ids that cannot be sampled
        for top in entry["top_logprobs"][2:]:
            top["logprob"] = -9999.0
    found = Distributions.read(entries, tokens, 6)
    assert (found.ids[:, 2:] == -1).all() and np.isneginf(found.logprobs[:, 2:]).all()
    assert (found.ids[:, :2] >= 0).all() and np.isfinite(found.logprobs[:, :2]).all()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda e: e.pop(),
        lambda e: e[0].update(token="token_id:51"),
        lambda e: e[0].update(token="the"),
        lambda e: e[0].pop("top_logprobs"),
        lambda e: e[0].update(top_logprobs=[]),
        lambda e: e[0].update(top_logprobs=None),
        lambda e: e[0].update(top_logprobs=[e[0]["top_logprobs"][0]] * 2),
        lambda e: e[0]["top_logprobs"][0].update(logprob="x"),
        lambda e: e[0]["top_logprobs"][0].update(logprob=None),
        lambda e: e[0]["top_logprobs"][0].update(logprob=float("nan")),
        lambda e: e[0]["top_logprobs"][0].update(logprob=3.0),
        lambda e: e[0]["top_logprobs"][0].update(token="token_id:-1"),
        lambda e: e[0]["top_logprobs"][0].update(token=f"token_id:{2**40}"),
        lambda e: e.__setitem__(0, None),
        lambda e: e.__setitem__(0, [1]),
    ],
)
def test_malformed_entries_are_one_kind_of_error(rng, spoil):
    entries, tokens, _ = random_entries(rng, 3, 4)
    spoil(entries)
    with pytest.raises(ValueError, match=r"\w"):
        Distributions.read(entries, tokens, 5)


def write_random(path, rng, lengths, k, vocabulary=40):
    answers = []
    for n in lengths:
        ids = np.array([rng.permutation(vocabulary)[:k] for _ in range(n)]).reshape(n, k)
        logits = rng.standard_normal((n, k + 1)) * rng.uniform(0.2, 9, (n, 1))
        logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))  # the last is what is not listed
        logprobs = -np.sort(-logprobs[:, :k], axis=1)
        answers.append(Distributions.of(rng.integers(0, vocabulary, n), ids, logprobs, 0.8))
    about = {"k": k, "temperature": 0.8, "vocabulary": Vocabulary(vocabulary, "f" * 64)}
    write_top_k(path, list(lengths), iter(answers), **about)
    return answers


@pytest.mark.parametrize("last", [0, 1, 29])
def test_a_file_gives_back_what_was_written(tmp_path, rng, last):
    from safetensors.numpy import load_file

    lengths, k = [*rng.integers(0, 30, int(rng.integers(0, 12))), last], int(rng.integers(1, 9))
    answers = write_random(tmp_path / "a.safetensors", rng, lengths, k)
    file = TopK(tmp_path / "a.safetensors")
    for place, answer in enumerate(answers):
        np.testing.assert_array_equal(file.token_ids(place), answer.token_ids)
        stored = file.distributions(place)
        for name in ("token_ids", "ids", "logprobs", "rest"):
            np.testing.assert_array_equal(getattr(stored, name), getattr(answer, name))
        ids, logprobs = file.rows(place)
        np.testing.assert_array_equal(ids, answer.ids)
        np.testing.assert_allclose(logprobs, answer.logprobs.astype(np.float32), atol=1e-3, rtol=2**-11)
        listed = np.exp(logprobs.astype(np.float64)).sum(1)
        np.testing.assert_allclose(listed + np.exp(answer.rest.astype(np.float64)), 1, atol=1e-6)
    whole = load_file(tmp_path / "a.safetensors")  # another reader of the same format
    for name in ("token_ids", "ids", "logprobs", "rest"):
        np.testing.assert_array_equal(whole[name], np.concatenate([getattr(a, name) for a in answers]))
    np.testing.assert_array_equal(whole["offsets"], np.cumsum([0, *lengths]))


def test_damaged_files_are_named(tmp_path, rng):
    path = tmp_path / "a.safetensors"
    write_random(path, rng, [5, 3], 4)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:100], b"", whole.replace(b'"k"', b'"q"'), whole + b"x", b"\xff" * 99):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.safetensors: cannot be read"):
            TopK(path)
    with pytest.raises(InputError, match="cannot be written"):
        write_random(tmp_path / "nowhere" / "a.safetensors", rng, [1], 1)


@pytest.fixture
def trained_tokenizer(tmp_path):
    """The folder of another tokenizer."""
    from distill.packing.tokenizer import train_tokenizer

    train_tokenizer(["add 12 34", "six seven"], 280).save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def test_of_a_real_server_they_are_the_models_own(trained_server, trained_student, monkeypatch, rng):
    """vLLM's log-probabilities against the softmax of the same weights in transformers, in float64."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("TEACHER_KEY", trained_server.endpoint.api_key)
    k, endpoint = int(rng.integers(1, 20)), trained_server.endpoint
    settings = EndpointSettings(
        url=endpoint.base_url,
        model=endpoint.model,
        api_key_env="TEACHER_KEY",
        tokenizer=str(trained_student),
        max_tokens=120,
        temperature=0.7,
        top_k=k,
    )
    problems = get_task("max").problems("validation", 12, int(rng.integers(1000)))
    questions = [Question(problem, "reasoning") for problem in problems]
    answers = {}
    teacher = EndpointTeacher(settings, seed=int(rng.integers(1000)))
    asyncio.run(teacher.answer(questions, answers.__setitem__))
    model = AutoModelForCausalLM.from_pretrained(trained_student, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained_student)
    checked = 0
    for question in questions:
        answer = answers[question]
        if answer.fault:  # cut off, for instance: nothing is kept
            assert answer.distributions is None
            continue
        found = answer.distributions
        message = [{"role": "user", "content": question.problem.prompt}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
        assert found.temperature == 1.0 and len(found.token_ids) == answer.output_tokens
        text = tokenizer.decode(found.token_ids[:-1])
        assert text == f"<think>{answer.trace.reasoning}</think>{answer.trace.answer}"
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *found.token_ids.tolist()]])).logits[0]
        logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        kept = logprobs.gather(1, torch.tensor(found.ids.astype(np.int64)))
        # fp32 on the server, and half a unit in the last place of a float16
        tolerance = 1e-3 + 2**-11 * kept.abs()
        assert ((torch.tensor(found.logprobs.astype(np.float64)) - kept).abs() <= tolerance).all()
        # no id that was left out is more likely than one that was kept
        assert (logprobs.sort(descending=True).values[:, k - 1] <= kept[:, -1] + 2e-3).all()
        checked += 1
    assert checked

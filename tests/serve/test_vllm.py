"""The real vLLM server: token ids, determinism, keys, the profile's counts. One server for the whole test session."""

import asyncio
import ipaddress
import json
import os
import random
import signal
from pathlib import Path

import httpx
import pytest

from distill.serve import (
    ProfileSettings,
    SamplingSettings,
    chat,
    check_endpoint,
    complete,
    profile_endpoint,
    split_thinking,
)
from distill.serve.load.shapes import ClosedLoop, OpenLoop
from distill.serve.metrics import scrape
from distill.serve.timing import timing

END, THINK, THINK_END = 3, 4, 5


def fresh_prompts(count, length=12):
    rng = random.Random()
    return [[1, *[rng.randrange(6, 260) for _ in range(length)], 2] for _ in range(count)]


def run(server, prompts, sampling, **options):
    return asyncio.run(complete(server.endpoint, prompts, sampling, **options))


def test_greedy_ids_are_those_of_transformers(vllm_server, tiny_student):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.float32).eval()
    prompts = fresh_prompts(12)
    for result in run(vllm_server, prompts, SamplingSettings(max_tokens=24)):
        prompt = torch.tensor([prompts[result.index]])
        with torch.no_grad():
            expected = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False
            )
        expected = expected[0, prompt.shape[1] :].tolist()
        if result.token_ids != expected:  # allowed only where the two best logits are as good as equal
            at = next(i for i, (a, b) in enumerate(zip(result.token_ids, expected, strict=False)) if a != b)
            with torch.no_grad():
                logits = model(torch.tensor([[*prompts[result.index], *expected[:at]]])).logits[0, -1]
            first, second = logits.topk(2).values.tolist()
            assert first - second < 1e-4


def test_greedy_is_deterministic_and_streaming_changes_nothing(vllm_server):
    prompts = fresh_prompts(16)
    sampling = SamplingSettings(max_tokens=20)
    first = run(vllm_server, prompts, sampling, concurrency=1)
    again = run(vllm_server, prompts, sampling, concurrency=1)
    streamed = run(vllm_server, prompts, sampling, concurrency=1, stream=True)
    assert [r.token_ids for r in first] == [r.token_ids for r in again] == [r.token_ids for r in streamed]
    assert [r.text for r in first] == [r.text for r in streamed]
    for r in streamed:
        assert len(r.token_times_s) == len(r.token_ids) and r.token_times_s == sorted(r.token_times_s)
        assert r.token_times_s[0] > 0 and r.token_times_s[-1] <= r.e2e_s
    assert all(r.token_times_s == [] for r in first)


@pytest.mark.parametrize("stream", [False, True])
def test_every_token_comes_back_with_the_one_that_ended_the_answer(vllm_server, stream):
    """Checked against the server's own count of generated tokens."""
    before = scrape(vllm_server.endpoint)["generation_tokens_total"]
    sampling = SamplingSettings(max_tokens=150, temperature=1.5)
    seeds = random.sample(range(2**31), 60)  # of one seed all draw alike, and may all miss the end
    results = run(vllm_server, fresh_prompts(60), sampling, stream=stream, seeds=seeds)
    assert all(r.error is None for r in results)
    generated = scrape(vllm_server.endpoint)["generation_tokens_total"] - before
    assert sum(len(r.token_ids) for r in results) == generated
    stopped = [r for r in results if r.finish_reason == "stop"]
    assert stopped, "no answer of 60 ended by itself: unlikely with random weights"
    assert all(r.token_ids[-1] == END and END not in r.token_ids[:-1] for r in stopped)
    assert all(len(r.token_ids) == 150 and END not in r.token_ids for r in results if r.finish_reason == "length")
    if stream:
        for r in results:
            after_thinking = THINK_END in r.token_ids[:-1]
            assert (timing(r, None, THINK_END).ttfat_s is not None) == after_thinking


def test_a_stop_token_of_ones_own_is_included_too(vllm_server):
    (prompt,) = fresh_prompts(1)
    (free,) = run(vllm_server, [prompt], SamplingSettings(max_tokens=12))
    stop = free.token_ids[len(free.token_ids) // 2]
    (result,) = run(vllm_server, [prompt], SamplingSettings(max_tokens=12, stop_token_ids=(stop,)))
    assert result.finish_reason == "stop" and result.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]


def test_seeds_decide_samples(vllm_server):
    (prompt,) = fresh_prompts(1)
    sampling = SamplingSettings(max_tokens=30, temperature=1.0)
    results = run(vllm_server, [prompt] * 4, sampling, seeds=[1, 1, 2, 3], concurrency=1)
    assert results[0].token_ids == results[1].token_ids
    assert len({tuple(r.token_ids) for r in results}) == 3


def test_too_long_a_prompt_fails_alone(vllm_server):
    results = run(vllm_server, [[7] * 400, *fresh_prompts(1)], SamplingSettings(max_tokens=4))
    assert results[0].error.startswith("HTTP 400") and results[1].error is None


def test_chat(vllm_server):
    conversation = [{"role": "user", "content": "add 12"}]
    sampling = SamplingSettings(max_tokens=10)
    (reply,) = asyncio.run(chat(vllm_server.endpoint, [conversation], sampling, extra={"return_token_ids": True}))
    assert reply.error is None and reply.usage["completion_tokens"] == len(reply.token_ids)
    assert reply.reasoning is None and reply.finish_reason in ("stop", "length")


def test_the_key_is_needed_and_nowhere_to_be_seen(vllm_server):
    endpoint = vllm_server.endpoint
    check_endpoint(endpoint)
    assert httpx.get(f"{endpoint.base_url}/models", trust_env=False).status_code == 401
    key = endpoint.api_key.encode()
    assert key not in vllm_server.log.read_bytes()
    for arguments in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert key not in arguments.read_bytes()
        except OSError:
            continue


def test_nothing_of_it_listens_elsewhere_than_on_loopback(vllm_server):
    """Its engine and whatever its processes open to find each other included."""
    import psutil

    keeper = psutil.Process(vllm_server._keeper.pid)
    found = [
        connection.laddr
        for process in [keeper, *keeper.children(recursive=True)]
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert any(f":{address.port}/" in vllm_server.endpoint.base_url for address in found)
    assert {ipaddress.ip_address(address.ip).is_loopback for address in found} == {True}, found


@pytest.mark.parametrize("processes", [1, 2])
def test_profile(vllm_server, processes):
    loads = (ClosedLoop(concurrency=1), ClosedLoop(concurrency=4), OpenLoop(rate=20, burstiness=0.5))
    settings = ProfileSettings(
        loads=loads,
        requests=6,
        warmup_requests=2,
        sampling=SamplingSettings(max_tokens=16, temperature=1.0, seed=7),
        processes=processes,
    )
    prompts = fresh_prompts(settings.prompts_needed, length=20)
    options = {"think_start_id": THINK, "think_end_id": THINK_END}
    profile = profile_endpoint(vllm_server.endpoint, prompts, settings, **options)
    json.dumps(profile, allow_nan=False)
    count = 2 + 6 + 1, 2 + 6 + 4, 2 + 6 + 40
    assert profile["prompts"] == {"sent": sum(count), "distinct": sum(count), "repeated": False}
    assert [level["concurrency"] for level in profile["levels"]] == [1, 4, None]
    assert profile["client"]["measured"]["tokens_per_s"] > 0
    for level, start, sent in zip(profile["levels"], (0, count[0], sum(count[:2])), count, strict=True):
        assert (level["completed"], level["failed"]) == (6, 0)
        results = run(vllm_server, prompts[start : start + sent], settings.sampling, concurrency=8)
        splits = [split_thinking(r.token_ids, THINK, THINK_END) for r in results[2:8]]
        tokens, measured = level["tokens"], level["measured"]
        assert tokens["thinking"] == sum(len(thinking) for thinking, _, _ in splits)
        assert tokens["output"] == sum(len(r.token_ids) for r in results[2:8])
        assert tokens["prompt"] == 6 * 22
        # The server counts what warms up and what comes last as well.
        assert measured["server"]["output_tokens"] == sum(len(r.token_ids) for r in results)
        assert measured["server"]["prompt_tokens"] == sent * 22
        assert measured["server"]["prefix_cache_hit_tokens"] == 0
        assert measured["ttft_s"]["p50"] <= measured["e2e_s"]["p50"]
        assert (measured["late_s"] is None) == (level["concurrency"] is not None)


@pytest.mark.long
def test_nothing_of_vllm_is_left_when_the_parent_is_killed(tiny_student, tmp_path):
    """SIGKILL to the parent of a real server: its engine, which on its own outlives it, goes too."""
    import subprocess
    import sys
    import time

    code = (
        "import sys, time; from pathlib import Path; from distill.serve import Server, ServerSettings\n"
        "with Server(sys.argv[1], ServerSettings(kv_cache_gib=1), Path(sys.argv[2])):\n"
        "    print('ready', flush=True); time.sleep(600)"
    )
    mark = f"DISTILL_TEST_MARK={tmp_path}"
    environment = {**os.environ, "DISTILL_TEST_MARK": str(tmp_path)}
    arguments = [sys.executable, "-P", "-c", code, str(tiny_student), str(tmp_path / "server.log")]
    parent = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)

    def left():
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                alive = (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
                if alive and mark.encode() in (folder / "environ").read_bytes():
                    found.append(folder.name)
            except OSError:
                continue
        return found

    try:
        assert parent.stdout.readline() == "ready\n"
        assert len(left()) >= 4  # the parent, the keeper, the server, its engine
        parent.send_signal(signal.SIGKILL)
        parent.wait(timeout=10)
        deadline = time.monotonic() + 20
        while left() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left() == []
    finally:
        parent.kill()
        parent.stdout.close()


def test_many_long_prompts_with_seeds_of_their_own(vllm_server):
    """More tokens at once than fit into a step: a prompt cut in two there would end the engine on a CPU."""
    prompts = [[6 + (i * j) % 200 for j in range(200)] for i in range(1, 41)]
    sampling = SamplingSettings(max_tokens=3, temperature=1.0)
    found = asyncio.run(complete(vllm_server.endpoint, prompts, sampling, concurrency=40, seeds=list(range(40))))
    assert {completion.error for completion in found} == {None}

"""The profile's arithmetic on completions made up here, and its rules about prompts. The real server: test_vllm.py."""

import random

import numpy as np
import pytest

from distill.errors import InputError
from distill.serve import Completion, Endpoint, ProfileSettings, SamplingSettings, profile_endpoint
from distill.serve.load.run import Run
from distill.serve.load.shapes import ClosedLoop, OpenLoop
from distill.serve.metrics import between
from distill.serve.objective import Objective
from distill.serve.profile import put_under_load, summarise
from distill.settings import validate

START, END = 4, 5
SAMPLING = SamplingSettings(max_tokens=8)


def made_up(rng, index):
    thinking = [START, *[9] * rng.randrange(5), END] if rng.random() < 0.7 else []
    token_ids = thinking + [9] * rng.randrange(1, 6)
    times_s = sorted(rng.uniform(0.1, 1) for _ in token_ids)
    reason, sent_s = rng.choice(["stop", "length"]), 100 + rng.random()
    done = Completion(index, 3, token_ids, "", reason, times_s, times_s[-1] + rng.random(), sent_s)
    return done, len(thinking)


def run_of(completions, warmup=0, cooldown=0, load=ClosedLoop(concurrency=2), server=None):
    return Run(load, completions, warmup, cooldown, server)


def test_numbers_are_what_they_say():
    rng = random.Random()
    made = [made_up(rng, i) for i in range(rng.randrange(9, 40))]
    warmup, cooldown = 2, rng.randrange(1, 4)
    everything = [completion for completion, _ in made]
    failed = [Completion(99, 3, error="HTTP 500: a"), Completion(98, 3, error="HTTP 500: a")]
    measured_ones = made[warmup : len(made) - cooldown]
    done = [completion for completion, _ in measured_ones]
    sent = [*everything[: len(made) - cooldown], *failed, *everything[len(made) - cooldown :]]
    level = summarise(run_of(sent, warmup, cooldown, server={"ttft_s_mean": 1.0}), START, END)
    thinking, output = sum(t for _, t in measured_ones), sum(len(c.token_ids) for c in done)
    tokens, measured = level["tokens"], level["measured"]
    assert (level["requests"], level["completed"], level["failed"]) == (len(done) + 2, len(done), 2)
    assert level["errors"] == {"HTTP 500: a": 2}
    assert (tokens["thinking"], tokens["answer"], tokens["output"]) == (thinking, output - thinking, output)
    assert tokens["prompt"] == 3 * len(done)
    assert tokens["per_answer"]["thinking"] == pytest.approx(thinking / len(done))
    assert level["truncated"] == sum(c.finish_reason == "length" for c in done)
    assert level["truncated_share"] == pytest.approx(level["truncated"] / len(done))
    # The window: the first measured request to the last one sent at all; every token that came in it.
    start_s, end_s = min(c.sent_s for c in done), max(c.sent_s for c in everything)
    came = sum(start_s <= c.sent_s + t <= end_s for c in everything for t in c.token_times_s)
    if came:
        rate = came / (end_s - start_s)
        assert measured["window_s"] == pytest.approx(end_s - start_s)
        assert measured["output_tokens_per_s"]["value"] == pytest.approx(rate)
        assert measured["seconds_per_answer"] == pytest.approx(output / len(done) / rate)
    tpot = [(c.e2e_s - c.token_times_s[0]) / (len(c.token_ids) - 1) for c in done if len(c.token_ids) > 1]
    if tpot:
        assert measured["tpot_s"]["mean"] == pytest.approx(np.mean(tpot))
        assert measured["tpot_s"]["count"] == len(tpot)
    after = [c.token_times_s[t] for c, t in measured_ones if t]
    assert (measured["ttfat_s"] or {"count": 0})["count"] == len(after)
    if after:
        assert measured["ttfat_s"]["p50"] == pytest.approx(np.median(after))
    assert measured["e2e_s"]["p90"] == pytest.approx(np.quantile([c.e2e_s for c in done], 0.9))
    assert measured["ttft_s"]["p50"] == pytest.approx(np.median([c.token_times_s[0] for c in done]))
    assert measured["server"] == {"ttft_s_mean": 1.0} and measured["goodput"] is None


def test_goodput_counts_failures_as_misses():
    rng = random.Random()
    made = [made_up(rng, i)[0] for i in range(20)]
    limit = float(np.median([c.e2e_s for c in made]))
    level = summarise(run_of([*made, Completion(20, 3, error="x")]), START, END, Objective(e2e_s=limit))
    met = sum(c.e2e_s <= limit for c in made)
    goodput = level["measured"]["goodput"]
    assert goodput["share"] == pytest.approx(met / 21) and goodput["objective"] == {"e2e_s": limit}
    assert goodput["answers_per_s"] == pytest.approx(level["measured"]["answers_per_s"] * met / 20)


def test_a_level_without_an_answer_has_nulls_not_a_crash():
    level = summarise(run_of([Completion(0, 3, error="ConnectError: refused")]), START, END)
    assert (level["completed"], level["failed"], level["truncated_share"]) == (0, 1, None)
    assert level["tokens"]["per_answer"] == {"output": None, "thinking": None, "answer": None}
    assert all(value is None for value in level["measured"].values())


NOWHERE = Endpoint("http://127.0.0.1:9/v1", "m")


def test_no_server_at_all_is_a_profile_of_failures():
    settings = ProfileSettings(
        loads=(ClosedLoop(concurrency=2), OpenLoop(rate=200)), requests=5, warmup_requests=1, sampling=SAMPLING
    )
    prompts = [[i] for i in range(settings.prompts_needed)]
    profile = profile_endpoint(NOWHERE, prompts, settings)
    for level in profile["levels"]:
        assert level["failed"] == 5 and sum(level["errors"].values()) == 5
    assert profile["client"] is None
    assert profile["prompts"] == {"sent": len(prompts), "distinct": len(prompts), "repeated": False}


def test_prompts_are_distinct_or_the_result_says_so():
    loads = (ClosedLoop(concurrency=1), ClosedLoop(concurrency=2))
    settings = ProfileSettings(loads=loads, requests=3, warmup_requests=2, sampling=SAMPLING)
    prompts = [[i % 9] for i in range(50)]
    with pytest.raises(InputError, match=r"found 9 distinct prompts, expected 13 \(3 requests"):
        profile_endpoint(NOWHERE, prompts, settings)
    repeats = settings.model_copy(update={"allow_repeats": True})
    assert profile_endpoint(NOWHERE, prompts, repeats)["prompts"] == {"sent": 13, "distinct": 9, "repeated": True}
    with pytest.raises(InputError, match="found 0 distinct"):
        profile_endpoint(NOWHERE, [], repeats)


def test_settings_are_checked():
    replay = {"kind": "replay", "times_s": [0.0, 1.0]}
    for wrong in (
        {"loads": []},
        {"loads": [{"kind": "closed", "concurrency": 0}]},
        {"loads": [{"kind": "open", "rate": float("inf")}]},
        {"loads": [{"kind": "other"}]},
        {"loads": [replay | {"times_s": [1.0, 0.0]}]},
        {"loads": [replay], "warmup_requests": 2},
        {"requests": 0},
        {"no_such": 1},
    ):
        with pytest.raises(InputError):
            validate(ProfileSettings, {"sampling": {"max_tokens": 8}, **wrong}, source="test")


def test_means_between_two_scrapes():
    before = {"time_to_first_token_seconds_sum": 2.0, "time_to_first_token_seconds_count": 4.0}
    after = {
        "time_to_first_token_seconds_sum": 5.0,
        "time_to_first_token_seconds_count": 10.0,
        "num_preemptions_total": 2,
    }
    grown = between(before, after)
    assert grown["ttft_s_mean"] == 0.5 and grown["preemptions"] == 2 and grown["queue_s_mean"] is None
    assert between(None, after) is None
    assert grown["output_tokens"] is None and grown["flops_per_gpu"] is None  # not on the page
    assert between(after, before) is None  # a counter never falls: these are pages of two servers


def test_estimates_are_means_over_engines(rng):
    flops, read, written, engines = (float(x) for x in rng.integers(1, 1000, 4))
    page = {
        "estimated_flops_per_gpu_total": flops,
        "estimated_read_bytes_per_gpu_total": read,
        "estimated_write_bytes_per_gpu_total": written,
        "engines": engines,
    }
    grown = between({"engines": engines}, page)
    assert grown["flops_per_gpu"] == pytest.approx(flops / engines)
    assert grown["memory_bytes_per_gpu"] == pytest.approx((read + written) / engines)


class Instant:
    """A server as the clients see it: every load is answered at once and measured as nothing."""

    def __init__(self, fails_from=99):
        self.loads, self.fails_from = [], fails_from

    def run_load(self, clients, endpoint, prompts, load, sampling, *, warmup, on_result, **_):
        failed = "gone" if len(self.loads) >= self.fails_from else None
        self.loads.append((load, [tuple(p) for p in prompts]))
        completions = [
            Completion(i, 1, [9, 9], "", "stop", [0.1, 0.2], 0.2, 100 + 0.1 * i, error=failed)
            for i in range(len(prompts))
        ]
        return Run(load, completions, warmup, load.cooldown_requests, None, prompts)


def put(instant, monkeypatch, **values):
    """(what came of it, the loads) of a server that the test plays."""
    monkeypatch.setattr("distill.serve.profile.run_load", instant.run_load)
    settings = ProfileSettings(**{"requests": 4, "warmup_requests": 1, "sampling": SAMPLING} | values)
    prompts = [[i] for i in range(400)]

    def check():
        raise InputError("it is gone")

    return put_under_load(None, NOWHERE, prompts, settings, (None, None), check=check).result


def test_a_search_measures_no_load_twice_and_no_prompt_twice(monkeypatch):
    instant = Instant()
    result = put(instant, monkeypatch, loads=(ClosedLoop(concurrency=1),), saturate=True, objective=Objective(e2e_s=1))
    sent = [prompt for _, prompts in instant.loads for prompt in prompts]
    assert len(set(sent)) == len(sent) == result["prompts"]["sent"] and not result["prompts"]["repeated"]
    closed = [load.concurrency for load, _ in instant.loads if isinstance(load, ClosedLoop)]
    assert closed[:2] == [1, 2] and len(set(closed)) == len(closed)
    assert len(result["levels"]) == len(instant.loads)
    # Every rate is kept, so that only the prompts end it.
    assert "no prompts were left" in result["found"]["ended"] and result["found"]["highest_rate"]["failed_at"] is None


def test_nothing_is_sent_to_a_server_that_is_gone(monkeypatch):
    instant = Instant(fails_from=1)
    loads = tuple(ClosedLoop(concurrency=c) for c in (1, 2, 3))
    result = put(instant, monkeypatch, loads=loads, saturate=True)
    assert result["stopped"] == "it is gone" and result["found"] is None
    assert [level["completed"] for level in result["levels"]] == [4, 0] and len(instant.loads) == 2

"""The profile's arithmetic on completions made up here, and its rules about prompts. The real server: test_vllm.py."""

import random

import numpy as np
import pytest

from distill.errors import InputError
from distill.serve import Completion, Endpoint, ProfileSettings, SamplingSettings, profile_endpoint
from distill.serve.metrics import between
from distill.serve.profile import summarise
from distill.settings import validate

START, END = 4, 5
SAMPLING = SamplingSettings(max_tokens=8)


def made_up(rng, index):
    thinking = [START, *[9] * rng.randrange(5), END] if rng.random() < 0.7 else []
    answer = [9] * rng.randrange(1, 6)
    ttft_s, e2e_s = rng.random(), 1 + rng.random()
    tfat_s = ttft_s + 0.1 if thinking else None
    reason = rng.choice(["stop", "length"])
    done = Completion(index, 3, thinking + answer, "", reason, ttft_s, tfat_s, e2e_s, sent_s=100 + rng.random())
    return done, len(thinking), len(answer)


def test_numbers_are_what_they_say():
    rng = random.Random()
    made = [made_up(rng, i) for i in range(rng.randrange(5, 40))]
    done = [completion for completion, _, _ in made]
    failed = [Completion(99, 3, error="HTTP 500: a"), Completion(98, 3, error="HTTP 500: a")]
    level = summarise([*done, *failed], {"ttft_s_mean": 1.0}, START, END)
    thinking, answer = sum(t for _, t, _ in made), sum(a for _, _, a in made)
    tokens, measured = level["tokens"], level["measured"]
    assert (level["completed"], level["failed"], level["errors"]) == (len(done), 2, {"HTTP 500: a": 2})
    assert (tokens["thinking"], tokens["answer"], tokens["output"]) == (thinking, answer, thinking + answer)
    assert tokens["prompt"] == 3 * len(done)
    assert tokens["per_answer"]["thinking"] == pytest.approx(thinking / len(done))
    assert level["truncated"] == sum(c.finish_reason == "length" for c in done)
    assert level["truncated_share"] == pytest.approx(level["truncated"] / len(done))
    duration_s = max(c.sent_s + c.e2e_s for c in done) - min(c.sent_s for c in done)
    assert measured["duration_s"] == pytest.approx(duration_s)
    assert measured["output_tokens_per_s"] == pytest.approx((thinking + answer) / duration_s)
    assert measured["requests_per_s"] == pytest.approx(len(done) / duration_s)
    tpot = [(c.e2e_s - c.ttft_s) / (len(c.token_ids) - 1) for c in done if len(c.token_ids) > 1]
    assert measured["tpot_s"]["mean"] == pytest.approx(np.mean(tpot)) and measured["tpot_s"]["count"] == len(tpot)
    assert measured["e2e_s"]["p90"] == pytest.approx(np.quantile([c.e2e_s for c in done], 0.9))
    assert measured["ttft_s"]["p50"] == pytest.approx(np.median([c.ttft_s for c in done]))
    assert measured["server"] == {"ttft_s_mean": 1.0}


def test_a_level_without_an_answer_has_nulls_not_a_crash():
    level = summarise([Completion(0, 3, error="ConnectError: refused")], None, START, END)
    assert (level["completed"], level["failed"], level["truncated_share"]) == (0, 1, None)
    assert level["tokens"]["per_answer"] == {"output": None, "thinking": None, "answer": None}
    assert all(value is None for value in level["measured"].values())


def test_no_server_at_all_is_a_profile_of_failures():
    settings = ProfileSettings(concurrencies=(2,), requests=5, warmup_requests=1, sampling=SAMPLING)
    nowhere = Endpoint("http://127.0.0.1:9/v1", "m")
    profile = profile_endpoint(nowhere, [[i] for i in range(6)], settings)
    (level,) = profile["levels"]
    assert level["failed"] == 5 and sum(level["errors"].values()) == 5
    assert profile["prompts"] == {"sent": 6, "distinct": 6, "repeated": False}


def test_prompts_are_distinct_or_the_result_says_so():
    settings = ProfileSettings(concurrencies=(1, 2), requests=3, warmup_requests=2, sampling=SAMPLING)
    nowhere = Endpoint("http://127.0.0.1:9/v1", "m")
    prompts = [[i % 9] for i in range(50)]
    with pytest.raises(InputError, match=r"found 9 distinct prompts, expected 10"):
        profile_endpoint(nowhere, prompts, settings)
    repeats = settings.model_copy(update={"allow_repeats": True})
    assert profile_endpoint(nowhere, prompts, repeats)["prompts"] == {"sent": 10, "distinct": 9, "repeated": True}
    with pytest.raises(InputError, match="found 0 distinct"):
        profile_endpoint(nowhere, [], repeats)


def test_settings_are_checked():
    for wrong in ({"concurrencies": []}, {"concurrencies": [0]}, {"requests": 0}, {"no_such": 1}):
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

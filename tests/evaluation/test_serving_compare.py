"""Two students in turns: the order, the arithmetic, what is kept of a run that was killed, and the real server."""

import asyncio
import json
import os
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from distill.artifact import read_json
from distill.errors import InputError
from distill.evaluation.server import Serving
from distill.evaluation.serving import compare as module
from distill.evaluation.serving import turns as turns_module
from distill.evaluation.serving.at_objective import at_objective
from distill.evaluation.serving.compare import CompareSettings, Entrant, compare_students
from distill.evaluation.serving.cost import Answers, Price
from distill.evaluation.serving.flags import entrants
from distill.evaluation.serving.pricing import PriceSettings
from distill.evaluation.serving.rounds import level
from distill.evaluation.serving.turns import Contender, Salted, Turns, measure_in_turns, search_in_turns
from distill.evaluation.serving.words import in_words, objective_in_words, show_comparison, times
from distill.serve import complete
from distill.serve.load.null_server import NullServer
from distill.serve.load.shapes import ClosedLoop, OpenLoop
from distill.serve.load.steady import Rate
from distill.serve.metrics import scrape
from distill.serve.objective import Objective
from distill.serve.saturation import highest_rate, rate_search
from distill.settings import validate
from distill.tasks.task import ACCURACY


def settings(**changes):
    values = {"questions": [{"task": "max"}], "concurrencies": (1, 3), "rounds": 3, "requests": 6, "warmup_requests": 1}
    return validate(CompareSettings, values | {"max_tokens": 48} | changes, source="test")


# ---------------------------------------------------------------------------------------------- turns and arithmetic


def test_questions_are_the_same_for_all_and_never_repeated_and_order_is_reversed(monkeypatch):
    asked = []

    def run_load(clients, endpoint, prompts, load, sampling, *, warmup, **_):
        asked.append((endpoint, [tuple(p) for p in prompts], load, sampling.cache_salt))
        return SimpleNamespace(completions=[])

    monkeypatch.setattr(turns_module, "run_load", run_load)
    problems = [SimpleNamespace(id=f"q{i}") for i in range(100)]
    sampling = Salted(max_tokens=4, cache_salt="")
    respondent = SimpleNamespace(
        prompts=SimpleNamespace(ids={p.id: [i] for i, p in enumerate(problems)}),
        sampling=SimpleNamespace(model_dump=lambda: sampling.model_dump()),
    )
    contenders = [Contender(n, respondent, SimpleNamespace(endpoint=n)) for n in ("a", "a, budget 8", "b")]
    loads = [ClosedLoop(concurrency=1), ClosedLoop(concurrency=4)]
    rounds = list(measure_in_turns(contenders, SimpleNamespace(problems=problems), loads, range(4), Turns(None, 5, 2)))
    assert [number for number, _ in rounds] == [0, 1, 2, 3]
    names = ["a", "a, budget 8", "b"]
    assert [endpoint for endpoint, *_ in asked] == (names * 2 + names[::-1] * 2) * 2
    assert all(list(of_load) == names for _, measured in rounds for of_load in measured)
    for start in range(0, len(asked), 3):  # one load of one round
        turn = asked[start : start + 3]
        assert len({tuple(prompts) for _, prompts, _, _ in turn}) == 1 and len({load for _, _, load, _ in turn}) == 1
    for name in names:
        mine = [prompt for endpoint, prompts, _, _ in asked if endpoint == name for prompt in prompts]
        assert len(set(mine)) == len(mine) == 4 * (2 + 5 + 1 + 2 + 5 + 4)
    assert {salt for *_, salt in asked} == set(names)


def test_searches_in_turns_find_what_each_finds_alone(rng):
    class Machine:
        def __init__(self, most, log):
            self.most, self.log = most, log

        def __call__(self, load, requests=None):
            self.log.append(self)
            share = 1.0 if load.rate <= self.most else 0.5
            return {"completed": 9, "measured": {"goodput": {"share": share, "answers_per_s": load.rate}}}

    log: list = []
    machines = [Machine(float(rng.uniform(1, 100)), log) for _ in range(3)]
    starts = [machine.most * float(rng.uniform(0.3, 3)) for machine in machines]
    alone = [highest_rate(m, requests=1, saturated=s) for m, s in zip(machines, starts, strict=True)]
    runs = [log.count(machine) for machine in machines]
    log.clear()
    found = search_in_turns([(rate_search(saturated=s), m) for m, s in zip(machines, starts, strict=True)])
    assert found == alone and [log.count(machine) for machine in machines] == runs
    for place in range(0, 3 * min(runs), 3):
        assert set(log[place : place + 3]) == set(machines)  # each had its turn


def kept(rng, questions, *, tokens, right, rate, errors=None):
    n = len(questions)
    correct = (rng.random(n) < right).astype(int).tolist()
    return {
        "requests": n + sum((errors or {}).values()),
        "errors": errors or {},
        "rate": {"value": rate, "low": 0.9 * rate, "high": 1.1 * rate, "window_s": 1.0, "tokens": 100},
        "energy": None,
        "energy_tokens": 0,
        "server": {"ttft_s_mean": float(rng.random()), "preemptions": 1.0, "running": {"mean": 1.0, "max": 2.0}},
        "answers": {
            "question": list(questions),
            "prompt": [5] * n,
            "output": rng.integers(1, 2 * tokens, n).tolist(),
            "thinking": [0] * n,
            "correct": correct,
            "unfinished": [False] * n,
            **{name: rng.random(n).tolist() for name in ("ttft_s", "tpot_s", "e2e_s")},
            "ttfat_s": [None] * n,
        },
        "metrics": {"accuracy": {"correct": [float(c) for c in correct]}},
    }


def some_rounds(rng, n=3, questions=40):
    rounds = []
    for number in range(n):
        ids = [f"q{number}-{i}" for i in range(questions)]
        a = kept(rng, ids, tokens=200, right=0.8, rate=float(rng.uniform(900, 1100)))
        b = kept(rng, rng.permutation(ids).tolist(), tokens=20, right=0.4, rate=float(rng.uniform(900, 1100)))
        rounds.append({"a": a, "b": b})
    return rounds


def test_a_level_is_plain_arithmetic(rng):
    rounds = some_rounds(rng)
    for one, mean, most in zip(rounds, (1.0, 3.0, None), (4.0, 3.0, None), strict=True):
        one["a"]["server"]["running"] = None if mean is None else {"mean": mean, "max": most}  # None: under a second
    gauge = {"mean": 2.0, "max": 4.0}
    price = Price(2e-4)
    found = level(ClosedLoop(concurrency=4), rounds, {"a": price, "b": price}, "b", {"accuracy": ACCURACY})
    mean = lambda who, what: np.mean([v for one in rounds for v in one[who]["answers"][what]])  # noqa: E731
    rate = lambda who: np.exp(np.mean([np.log(one[who]["rate"]["value"]) for one in rounds]))  # noqa: E731
    f, seconds = found["factors"]["a"], found["factors"]["a"]["seconds"]
    assert f["token_factor"]["value"] == pytest.approx(mean("a", "output") / mean("b", "output"))
    assert seconds["per_token_factor"]["value"] == pytest.approx(rate("b") / rate("a"))
    product = f["token_factor"]["value"] * seconds["per_token_factor"]["value"]
    assert seconds["cost_factor"]["value"] == pytest.approx(product)
    assert seconds["cost_factor_per_correct"]["value"] == pytest.approx(
        product * mean("b", "correct") / mean("a", "correct")
    )
    accuracy = f["metrics"]["accuracy"]
    assert accuracy["difference"]["value"] == pytest.approx(mean("a", "correct") - mean("b", "correct"))
    assert accuracy["difference"]["low"] < accuracy["difference"]["value"] < accuracy["difference"]["high"]
    more = mean("a", "output") / rate("a") - mean("b", "output") / rate("b")
    points = 100 * accuracy["difference"]["value"]
    assert accuracy["per_added_point"]["seconds"]["value"] == pytest.approx(more / points)
    a = found["contenders"]["a"]
    assert a["measured"]["seconds_per_answer"] == pytest.approx(mean("a", "output") / rate("a"))
    assert a["measured"]["cost"]["per_answer"]["seconds"]["value"] == pytest.approx(a["measured"]["seconds_per_answer"])
    assert a["measured"]["in_flight"] == pytest.approx(a["measured"]["answers_per_s"] * mean("a", "e2e_s"))
    assert a["measured"]["ttfat_s"] is None and a["measured"]["energy"] == {"reason": "not measured"}
    assert a["measured"]["server"]["preemptions"] == 3 and a["measured"]["server"]["running"] == gauge
    assert f["usd"]["cost_factor"]["value"] == pytest.approx(product)
    json.dumps(found, allow_nan=False)


def test_rounds_without_answers_are_left_out_and_failures_counted(rng):
    rounds = some_rounds(rng, 4)
    whole = level(ClosedLoop(concurrency=4), rounds[1:], {"a": None, "b": None}, "b", {"accuracy": ACCURACY})
    rounds[0]["a"] = kept(rng, [], tokens=9, right=1, rate=1.0, errors={"connection dropped": 40})
    rounds[0]["a"]["rate"] = None
    found = level(ClosedLoop(concurrency=4), rounds, {"a": None, "b": None}, "b", {"accuracy": ACCURACY})
    assert found["contenders"]["a"]["failed"] == 40 and found["contenders"]["a"]["rounds_left_out"] == 1
    assert found["contenders"]["a"]["errors"] == {"connection dropped": 40}
    assert found["factors"] == whole["factors"] and found["factors"]["a"]["usd"] is None


def test_at_an_objective_an_answer_costs_what_the_rate_says(rng):
    held = rng.uniform(1, 50, (2, 3))
    found = [
        {
            w: {"rate": float(r), "failed_at": float(1.1 * r), "goodput": 0}
            for w, r in zip("ab", held[:, i], strict=True)
        }
        for i in range(3)
    ]
    questions = np.array([f"q{i}" for i in range(50)])
    answers = {
        who: [
            Answers(
                questions,
                rng.integers(1, 100, 50),
                np.full(50, 5),
                np.r_[1, (rng.random(49) < 0.5)].astype(int),
                np.zeros(50, bool),
                Rate(1.0, None, None, 1.0, 1),
            )
        ]
        for who in "ab"
    }
    prices = {"a": Price(1e-3), "b": None}
    at = lambda found: at_objective(Objective(e2e_s=1), found, {"a": 1e3, "b": 1e3}, answers, prices, "b")  # noqa: E731
    got = at(found)
    rate = np.exp(np.log(held).mean(axis=1))
    a = got["contenders"]["a"]["measured"]
    assert a["answers_per_s"]["value"] == pytest.approx(rate[0]) and a["limited"]
    assert a["cost"]["per_answer"]["seconds"]["value"] == pytest.approx(1 / rate[0])
    assert a["cost"]["per_answer"]["usd"]["value"] == pytest.approx(1e-3 / rate[0])
    right = answers["a"][0].correct.mean()
    assert a["cost"]["per_correct"]["seconds"]["value"] == pytest.approx(1 / rate[0] / right)
    f = got["factors"]["a"]
    assert f["cost_factor"]["value"] == pytest.approx(rate[1] / rate[0])
    assert f["token_factor"]["value"] * f["per_token_factor"]["value"] == pytest.approx(f["cost_factor"]["value"])
    found[0]["a"] = {"rate": None, "failed_at": 1.0, "goodput": None}
    got = at(found)
    assert got["factors"] == {} and got["contenders"]["a"]["measured"]["cost"] is None
    found[0]["a"] = {"rate": 1e6, "failed_at": None, "goodput": 1}  # met no rate that fails
    assert at(found)["contenders"]["a"]["measured"]["limited"] is False
    assert "a search met no rate that is too high for a;" in "".join(objective_in_words(at(found), "b"))
    assert at(found[:1])["contenders"]["a"]["measured"]["answers_per_s"]["value"] == pytest.approx(1e3)


def test_words(rng):
    found = level(ClosedLoop(concurrency=4), some_rounds(rng), {"a": None, "b": None}, "b", {"accuracy": ACCURACY})
    said = in_words("a", "b", found["factors"]["a"])
    assert said.startswith("a's answers are ") and " as long as b's, each token costs " in said
    assert said.endswith(" points of right answers") and " a correct one" in said
    rounds = some_rounds(rng)
    for one in rounds:
        one["a"]["answers"]["correct"] = [0] * 40
        one["a"]["metrics"]["accuracy"]["correct"] = [0.0] * 40
    found = level(ClosedLoop(concurrency=4), rounds, {"a": None, "b": None}, "b", {"accuracy": ACCURACY})
    assert " an answer (none of a is right); " in in_words("a", "b", found["factors"]["a"])
    assert times({"value": 9.72, "low": 9.5, "high": None}) == "9.7x [9.5, -]"
    assert times({"value": 0.981, "low": None, "high": None}) == "0.98x"


# ---------------------------------------------------------------------------------------------- without vLLM


@pytest.fixture
def null_students(tiny_student):
    """Two students whose answers cost nothing and have no end."""
    with ExitStack() as stack:
        servers = [stack.enter_context(NullServer()) for _ in range(2)]
        yield [
            Entrant(name, tiny_student, Serving(lambda server=server: server.endpoint))
            for name, server in zip(("one", "other"), servers, strict=True)
        ]


def test_the_whole_of_it_and_again(null_students, tmp_path, capsys, monkeypatch):
    def search(*, saturated, burstiness):  # a null server keeps every rate: one is enough
        assert saturated > 0
        found = yield OpenLoop(rate=20.0, burstiness=burstiness)
        assert found["measured"]["goodput"]["share"] == 1
        return {"rate": 10.0, "failed_at": 11.0, "goodput": 10.0}

    monkeypatch.setattr(module, "rate_search", search)
    monkeypatch.setattr(module, "requests_at", lambda rate, least: least)
    load = settings(objective=Objective(e2e_s=30), requests=4, rounds=2)
    made = compare_students(load, *null_students, tmp_path / "c")
    result = read_json(made.path / "compare.json")
    assert sorted(made.files) == ["compare.html", "compare.json"] and not (made.path / "rounds.jsonl").exists()
    assert result["reference"] == "other" and [c["name"] for c in result["contenders"]] == ["one", "other"]
    task = result["tasks"]["max"]
    assert [one["concurrency"] for one in task["levels"]] == [1, 3]
    for one in task["levels"]:
        for contender in one["contenders"].values():
            assert (contender["requests"], contender["failed"], contender["completed"]) == (8, 0, 8)
            assert contender["unfinished"] == 8 and contender["tokens"]["per_answer"]["output"] == 48
            assert contender["measured"]["cost"]["per_correct"]["seconds"]["value"] is None  # none is right
            assert len(contender["measured"]["rounds"]) == 2 and contender["measured"]["client_share"] > 0
        factors = one["factors"]["one"]
        assert factors["token_factor"]["value"] == 1 and factors["correct_factor"] is None
        assert factors["seconds"]["cost_factor"]["value"] == pytest.approx(
            factors["seconds"]["per_token_factor"]["value"]
        )
    assert len(task["objective"]["contenders"]["one"]["measured"]["rates"]) == 2
    show_comparison(made.path)
    assert "one's answers are 1.00x" in capsys.readouterr().out
    page = (made.path / "compare.html").read_text()
    assert page.count("<svg") > 4 and "one against other" in page
    again = compare_students(load, *null_students, tmp_path / "c")
    assert again.key == made.key and "already compared" in capsys.readouterr().err


def test_a_comparison_that_was_killed_goes_on(null_students, tmp_path, monkeypatch, capsys):
    ran, most = [], 5

    def run_load(*arguments, **options):
        if len(ran) == most:
            raise InputError("the server is gone")
        ran.append(arguments[3])
        return whole(*arguments, **options)

    whole = turns_module.run_load
    monkeypatch.setattr(turns_module, "run_load", run_load)
    with pytest.raises(InputError, match=r"the server is gone\n1 rounds are kept; run the same command again"):
        compare_students(settings(), *null_students, tmp_path / "c")
    assert not (tmp_path / "c" / "manifest.json").exists()
    ran.clear()
    most = 10**6
    compare_students(settings(), *null_students, tmp_path / "c")
    assert len(ran) == 2 * 2 * 2  # two of three rounds
    assert "1 rounds are there" in capsys.readouterr().err
    level_of = read_json(tmp_path / "c" / "compare.json")["tasks"]["max"]["levels"][0]
    assert level_of["contenders"]["one"]["completed"] == 18
    with pytest.raises(InputError, match="other settings"):
        compare_students(settings(requests=7), *null_students, tmp_path / "c")


def test_a_student_that_answers_nothing_is_said_before_its_rates_are_searched(null_students, tmp_path, monkeypatch):
    mute = null_students[1].serving.endpoint()

    def run_load(clients, endpoint, prompts, load, sampling, *, warmup, **options):
        run = whole(clients, endpoint, prompts, load, sampling, warmup=warmup, **options)
        dropped = [replace(c, token_ids=[], token_times_s=[], error="dropped") for c in run.completions]
        return replace(run, completions=dropped) if endpoint == mute else run

    whole = turns_module.run_load
    monkeypatch.setattr(turns_module, "run_load", run_load)
    load = settings(objective=Objective(e2e_s=9), rounds=2, concurrencies=(1,))
    with pytest.raises(InputError, match=r"^other: gave no answer to max at concurrency 1 \(dropped\)$"):
        compare_students(load, *null_students, tmp_path / "c")


def test_bad_input(null_students, tiny_student, tmp_path):
    one, other = null_students
    with pytest.raises(InputError, match="both students are named 'one'"):
        compare_students(settings(), one, one, tmp_path / "c")
    with pytest.raises(InputError, match="different questions"):
        compare_students(settings(requests=5000), one, other, tmp_path / "c")
    with pytest.raises(InputError, match="positions"):
        compare_students(settings(max_tokens=5000), one, other, tmp_path / "c")
    for bad, match in (
        ({"rounds": 1}, "rounds"),
        ({"concurrencies": ()}, "concurrencies"),
        ({"concurrencies": (2, 2)}, "named twice"),
        ({"thinking_budgets": (8,), "think": "off"}, "thinking_budgets"),
    ):
        with pytest.raises(InputError, match=match):
            settings(**bad)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_names_students_servers_and_prices(tmp_path, monkeypatch):
    price = {"hardware": "cpu-2core", "answers_per_month": 10, "fixed_usd": "3,4"}
    a, b = entrants(
        (f"x={tmp_path}", str(tmp_path)), ["http://h/v1#m", "http://h/v1#n"], "KEY", ours=Serving(), price=price
    )
    assert (a.name, a.folder, b.name) == ("x", tmp_path, tmp_path.name)
    assert (a.price.fixed_usd, b.price.fixed_usd) == (3, 4) and isinstance(a.price, PriceSettings)
    monkeypatch.setenv("KEY", "secret")
    assert b.serving.endpoint().model == "n" and b.serving.endpoint().api_key == "secret"
    assert "secret" not in repr(b)
    for endpoints, fixed, match in (
        (["http://h/v1#m"], "1", "--endpoint: found 1"),
        (["http://h/v1", "http://h/v1#n"], "1", "URL#MODEL"),
        (
            ["http://u:secret@h/v1#m", "http://h/v1#n"],
            "1",
            "^command line: a URL at h with user name or password; expected none",
        ),
        ([], "1,2,3", "--fixed-usd"),
        ([], "x", "fixed_usd"),
    ):
        with pytest.raises(InputError, match=match):
            entrants(("x=a", "b"), endpoints, "KEY", ours=Serving(), price=price | {"fixed_usd": fixed})


# ---------------------------------------------------------------------------------------------- the real server


def test_a_student_against_itself_and_its_budgets(trained_server, trained_student, tmp_path, rng):
    serving = Serving(lambda: trained_server.endpoint)
    load = settings(thinking_budgets=(3, None), concurrencies=(2,), requests=12, seed=int(rng.integers(1000)))
    students = (Entrant("a", trained_student, serving), Entrant("b", trained_student, serving))
    result = read_json(compare_students(load, *students, tmp_path / "c").path / "compare.json")
    assert [c["name"] for c in result["contenders"]] == ["a, budget 3", "a", "b"]
    (one,) = result["tasks"]["max"]["levels"]
    same, limited = one["factors"]["a"], one["factors"]["a, budget 3"]
    assert same["questions"] == 36 and same["left_out"] == 0
    # The same weights and questions: all but what a near tie may turn is equal.
    assert same["token_factor"]["value"] == pytest.approx(1, abs=0.1)
    assert abs(same["metrics"]["accuracy"]["difference"]["value"]) < 0.1
    assert same["metrics"]["accuracy"]["difference"]["low"] < 0 < same["metrics"]["accuracy"]["difference"]["high"]
    free, cut = (one["contenders"][name]["tokens"]["per_answer"] for name in ("a", "a, budget 3"))
    assert free["thinking"] > 2 * cut["thinking"] > 0 and limited["token_factor"]["value"] < 0.8
    assert one["contenders"]["a"]["measured"]["server"]["output_tokens"] > 36 * free["output"] * 0.9


def test_a_salt_hides_what_the_prefix_cache_has_seen(vllm_server):
    prompt = [1, *(6 + os.urandom(200)[i] for i in range(200)), 2]  # longer than a block of the cache

    def hits(salt):
        before = scrape(vllm_server.endpoint)["prefix_cache_hits_total"]
        sampling = Salted(max_tokens=2, cache_salt=salt)
        (done,) = asyncio.run(complete(vllm_server.endpoint, [prompt], sampling, stream=True))
        assert done.error is None
        return scrape(vllm_server.endpoint)["prefix_cache_hits_total"] - before

    assert hits("a") == 0 and hits("a") > 0 and hits("b") == 0

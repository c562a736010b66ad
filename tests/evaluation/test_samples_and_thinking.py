"""Several answers to a question, thinking switched on and off, and limited: through the real vLLM server."""

import copy
import json
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from distill import artifact
from distill.errors import InputError
from distill.evaluation.answer_file import read_answers
from distill.evaluation.answers import Answer, take_apart
from distill.evaluation.budgets import cut_thinking, server_arguments, why_not_vllm
from distill.evaluation.evaluate import evaluate, evaluation_recipe
from distill.evaluation.generate import JOURNAL, Generation, Journal, Output
from distill.evaluation.questions import Prompts, ask, prompt_ids
from distill.evaluation.requests import requests
from distill.evaluation.samples_and_budgets import further_grades, headline
from distill.evaluation.server import Serving
from distill.evaluation.settings import EvaluateSettings
from distill.evaluation.subject import load_subject
from distill.evaluation.thinking import template_switch, think_prompts
from distill.packing.chat import COMPACT, ChatFormat
from distill.process import child_environment
from distill.settings import validate

BUDGETS = (0, 5, 12, None)


def settings(count=30, **changes):
    return EvaluateSettings(questions=[{"task": "max", "count": count, "seed": 3}], max_tokens=48, **changes)


def run(settings, student, server, out):
    made = evaluate(settings, student, out, Serving(lambda: server.endpoint))
    return made.summary["max"], read_answers(made.path / "answers.parquet")


# ---------------------------------------------------------------------------------------------- samples


def test_n_samples_are_n_answers_with_a_seed_each(trained_server, trained_student, tmp_path):
    wanted = settings(samples=3, temperature=1.5)
    grades, answers = run(wanted, trained_student, trained_server, tmp_path / "e")
    assert Counter(a.problem_id for a in answers) == dict.fromkeys((a.problem_id for a in answers), 3)
    assert [a.sample for a in answers] == [0, 1, 2] * 30
    assert len({a.seed for a in answers}) == 90 and len({tuple(a.token_ids) for a in answers}) > 60
    assert grades["n_questions"] == 30 and grades["n_answers"] == 90
    found = grades["samples"]
    assert found["n"] == 3 and found["pass_at_1"]["value"] == pytest.approx(np.mean([a.correct for a in answers]))
    assert found["pass_at_1"]["value"] == pytest.approx(grades["metrics"]["accuracy"])
    assert found["pass_at_1"]["low"] < found["pass_at_1"]["value"] < found["pass_at_1"]["high"]
    assert 0 <= found["majority_at_3"]["low"] <= found["majority_at_3"]["value"] <= found["majority_at_3"]["high"] <= 1


def test_an_evaluation_that_is_killed_goes_on_with_the_samples_it_has(trained_server, trained_student, tmp_path, rng):
    wanted, out = settings(samples=4, temperature=1.0), tmp_path / "e"
    whole = evaluate(wanted, trained_student, tmp_path / "whole", Serving(lambda: trained_server.endpoint))
    theirs = {(a.problem_id, a.sample): a.token_ids for a in read_answers(whole.path / "answers.parquet")}
    # What a kill leaves: a journal with some of the samples of some of the questions.
    subject, asked = load_subject(trained_student), ask(wanted.questions)
    recipe = evaluation_recipe(wanted, subject, asked)
    every = requests(wanted, asked, Prompts(prompt_ids(subject, asked)))
    assert len({r.key for r in every}) == len({r.seed(0) for r in every}) == 120
    kept = [every[i] for i in rng.choice(120, 50, replace=False)]
    with pytest.raises(KeyboardInterrupt), artifact.workspace(out, "evaluation", recipe) as work:
        with Journal(work.path / JOURNAL) as journal:
            for request in kept:
                journal.add(request.key, Output([*theirs[request.problem.id, request.sample], 3], "stop", 0.5))
        raise KeyboardInterrupt
    asked_for = []
    generate = Generation.run

    async def watched(self, missing):
        asked_for.extend(missing)
        await generate(self, missing)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Generation, "run", watched)
        evaluate(wanted, trained_student, out, Serving(lambda: trained_server.endpoint))
    assert {r.key for r in asked_for} == {r.key for r in every} - {r.key for r in kept}
    again = {(a.problem_id, a.sample): a.token_ids for a in read_answers(out / "answers.parquet")}
    assert all(again[r.problem.id, r.sample] == [*theirs[r.problem.id, r.sample], 3] for r in kept)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samples": 2}, "2 greedy answers would all be the same"),
        ({"thinking_budgets": (64, 64)}, "named twice"),
        ({"thinking_budgets": (-1,)}, "greater than or equal to 0"),
        ({"thinking_budgets": (64,), "think": "off"}, "no thinking to limit"),
        ({"few_shot": 2, "think": "on"}, "plain text"),
        ({"few_shot": 2, "thinking_budgets": (3,)}, "plain text"),
        ({"engine": "transformers", "samples": 2, "temperature": 1.0}, "use vllm"),
        ({"think": "maybe"}, "'free', 'on' or 'off'"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(changes, said):
    with pytest.raises(InputError, match=said) as refused:
        validate(EvaluateSettings, settings().model_dump() | changes, source="command line")
    assert "\n" not in str(refused.value)


def test_settings_that_are_not_used_are_in_no_key(trained_student):
    subject = load_subject(trained_student)
    asked = ask(settings().questions)
    recipe = evaluation_recipe(settings(), subject, asked)["settings"]
    assert set(recipe) == {"questions", "engine", "max_tokens", "temperature", "top_p", "seed"}
    assert set(recipe["questions"][0]) == {"task", "count", "split", "seed"}
    keys = set()
    for changes in (
        {},
        {"think": "on"},
        {"think": "off"},
        {"thinking_budgets": (5,)},
        {"thinking_budgets": (5, None)},
        {"samples": 2, "temperature": 1.0},
        {"temperature": 1.0},
    ):
        keys.add(artifact.content_key("evaluation", evaluation_recipe(settings(**changes), subject, asked)))
    assert len(keys) == 7


# ---------------------------------------------------------------------------------------------- think


def test_thinking_on_and_off(trained_server, trained_student, tmp_path):
    free, on, off = (
        run(settings(think=think), trained_student, trained_server, tmp_path / think) for think in ("free", "on", "off")
    )
    assert free[0]["think_rate"] == on[0]["think_rate"] == 1.0
    tokens = load_subject(trained_student).chat
    for answer in on[1]:
        assert answer.think == "on" and tokens.think_open_id not in answer.token_ids
        assert tokens.think_close_id in answer.token_ids or not answer.finished
    # The opened block is the token the student would have begun with: the same answers, one generated token fewer.
    by_id = {a.problem_id: a for a in free[1]}
    same = [a for a in on[1] if by_id[a.problem_id].token_ids == [tokens.think_open_id, *a.token_ids]]
    assert len(same) > 25
    for a in same:
        b = by_id[a.problem_id]
        assert (a.thinking, a.answer, a.correct) == (b.thinking, b.answer, b.correct)
        assert (a.prompt_tokens, a.thinking_tokens) == (b.prompt_tokens + 1, b.thinking_tokens - 1)
    did_not = [a for a in off[1] if not a.thought]
    # Trained to reason it may do so all the same, and close a block that was closed for it; the rate says so.
    assert len(did_not) == pytest.approx((1 - off[0]["think_rate"]) * 30)
    assert all(not a.thinking and not a.thinking_tokens for a in did_not)
    assert "think" not in free[0] and (on[0]["think"], off[0]["think"]) == ("on", "off")


def rendered(chat, think):
    subject = Stub(chat)
    asked = ask(settings(count=3).questions)
    prompts = think_prompts(subject, asked, None, think)
    return [chat.decode(prompts.ids[p.id]).removeprefix(f"<|user|>{p.prompt}") for p in asked[0].problems], prompts


class Stub:
    folder = "a student"

    def __init__(self, chat):
        self.chat, self.tokenizer = chat, chat.tokenizer

    def require_chat(self):
        return self.chat


def with_template(tiny_student, prompt_end):
    tokenizer = copy.deepcopy(load_subject(tiny_student).chat.tokenizer)
    whole = tokenizer.chat_template
    assert whole.count("<|assistant|>{% endif %}") == 1
    tokenizer.chat_template = whole.replace("<|assistant|>{% endif %}", "<|assistant|>" + prompt_end + "{% endif %}")
    return ChatFormat(tokenizer, COMPACT, source="here")


SWITCHED = "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
TURNED = "{% if thinking is defined and thinking %}<think>{% endif %}"


@pytest.mark.parametrize(
    ("prompt_end", "switch", "on", "off"),
    [
        ("", None, "<think>", "<think></think>"),
        ("<think>", None, "<think>", "<think></think>"),
        (SWITCHED, "enable_thinking", "<think>", "<think></think>"),
        (TURNED, "thinking", "<think>", ""),
    ],
)
def test_a_templates_own_switch_is_asked_first(tiny_student, prompt_end, switch, on, off):
    chat = with_template(tiny_student, prompt_end)
    assert template_switch(chat) == switch
    for think, end in (("on", on), ("off", off)):
        texts, prompts = rendered(chat, think)
        assert set(texts) == {"<|assistant|>" + end}
        assert prompts.opened == (think == "on")


def test_what_a_student_cannot_be_asked_is_refused(tiny_student):
    broken = with_template(tiny_student, SWITCHED.replace("</think>", ""))
    with pytest.raises(InputError, match="opens a think block even with enable_thinking off"):
        rendered(broken, "off")
    signalled = copy.copy(load_subject(tiny_student).chat)
    signalled.think = type(COMPACT)(**vars(COMPACT) | {"mode_signal": "prompt"})
    for think in ("on", "off"):
        with pytest.raises(InputError, match="say --mode reasoning or --mode ift"):
            rendered(signalled, think)


# ---------------------------------------------------------------------------------------------- budgets


@pytest.fixture(scope="module")
def limited(trained_server, trained_student, tmp_path_factory):
    out = tmp_path_factory.mktemp("budgets") / "e"
    return run(settings(thinking_budgets=BUDGETS), trained_student, trained_server, out)


def test_a_thinking_budget_is_kept_to_the_token(limited, trained_server, trained_student):
    grades, answers = limited
    assert grades["budget_kept_by"] == "vLLM"
    free = {a.problem_id: a for a in answers if a.budget is None}
    chat = load_subject(trained_student).chat
    assert len({(a.problem_id, a.sample, a.budget) for a in answers}) == len(answers) == 30 * len(BUDGETS)
    for a in answers:
        if a.budget is None:
            continue
        first = chat.tokenizer(free[a.problem_id].thinking, add_special_tokens=False)["input_ids"]
        block = a.token_ids[: a.token_ids.index(chat.think_close_id) + 1]
        assert len(block) <= a.budget + 2
        if len(first) > a.budget:
            assert len(block) == a.budget + 2
            same = next((i for i, (x, y) in enumerate(zip(block[1:-1], first, strict=False)) if x != y), a.budget)
            assert same == a.budget or same > 2  # up to a near tie
        assert a.finished or a.finish_reason == "length"


def test_one_student_gives_a_curve(limited):
    grades, answers = limited
    assert [point["budget"] for point in grades["curve"]] == list(BUDGETS)
    thinking = [point["tokens_per_answer"]["thinking"] for point in grades["curve"]]
    assert thinking == sorted(thinking) and thinking[0] < thinking[-1]
    for point in grades["curve"]:
        mine = [a for a in answers if a.budget == point["budget"]]
        accuracy = point["accuracy"]
        assert accuracy["value"] == pytest.approx(np.mean([a.correct for a in mine]))
        assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert grades["n_answers"] == 30
    assert grades["metrics"]["accuracy"] == pytest.approx(grades["curve"][-1]["accuracy"]["value"])


def test_two_requests_limit_thinking_as_vllm_does(limited, trained_server, trained_student, tmp_path):
    """Where vLLM cannot see the tags. Greedy, so that both ways give the same tokens up to near ties."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.evaluation.evaluate.why_not_vllm", lambda chat, prompts: "a think tag is several tokens")
        grades, answers = run(settings(thinking_budgets=BUDGETS), trained_student, trained_server, tmp_path / "two")
    assert grades["budget_kept_by"] == "two requests: a think tag is several tokens"
    theirs = {(a.problem_id, a.budget): a.token_ids for a in limited[1]}
    same = [a.token_ids == theirs[a.problem_id, a.budget] for a in answers]
    assert np.mean(same) > 0.9


def test_killed_between_its_two_requests_it_asks_only_for_the_second(trained_server, trained_student, tmp_path):
    asked = []
    complete = Generation._complete

    async def watched(self, requests, prompts, *rest):
        asked.extend(prompts)
        await complete(self, requests, prompts, *rest)

    async def killed(self, max_tokens, rows):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.evaluation.evaluate.why_not_vllm", lambda chat, prompts: "a think tag is several tokens")
        patch.setattr(Generation, "_complete", watched)
        wanted = settings(count=12, thinking_budgets=(3,))
        with pytest.MonkeyPatch.context() as until, pytest.raises(KeyboardInterrupt):
            until.setattr(Generation, "_answers", killed)
            run(wanted, trained_student, trained_server, tmp_path / "e")
        with Journal(tmp_path / "e" / JOURNAL) as journal:
            uncut = {key.removesuffix(" uncut"): journal.outputs[key] for key in journal if key.endswith(" uncut")}
        first, asked[:] = list(asked), []
        _, answers = run(wanted, trained_student, trained_server, tmp_path / "e")
    assert len(first) == len({tuple(ids) for ids in first}) == 12 and uncut
    assert len(asked) == len(uncut) and not {tuple(ids) for ids in asked} & {tuple(ids) for ids in first}
    chat = load_subject(trained_student).chat
    for a in answers:
        output = uncut.get(f"{a.problem_id} budget 3")
        if output is not None and output.token_ids[0] == chat.think_open_id:
            assert a.token_ids[:5] == [*output.token_ids[:4], chat.think_close_id]


def test_who_limits_thinking(tiny_student):
    chat = load_subject(tiny_student).chat
    opening, closing = chat.think_open_id, chat.think_close_id
    assert why_not_vllm(chat, Prompts({"a": [9, 10]})) is None
    assert why_not_vllm(chat, Prompts({"a": [9, opening]}, opened=True)) is None
    for ids, opened in (([9, opening, 8], False), ([9, closing], False), ([opening, 9, opening], True)):
        assert "holds a think tag" in why_not_vllm(chat, Prompts({"b": [9], "a": ids}, opened=opened))
    assert json.loads(server_arguments(chat)[1]) == {"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}
    spelled = ChatFormat(chat.tokenizer, type(COMPACT)("[T]", "[/T]", "", "", ""), source="here")
    assert "several tokens" in why_not_vllm(spelled, Prompts({"a": [9]}))


@pytest.mark.parametrize("tags", [("<think>", "</think>"), ("[T]", "[/T]")])
def test_a_block_is_cut_at_any_budget(tiny_student, tags, rng):
    chat = ChatFormat(load_subject(tiny_student).chat.tokenizer, type(COMPACT)(*tags, "", "", ""), source="here")
    ids = lambda text: next(chat.encode([text]))  # noqa: E731
    thinking = "".join(rng.choice(list("abc 0123"), int(rng.integers(1, 30))))
    opening, closing, n = ids(tags[0]), ids(tags[1]), len(ids(thinking))
    for before in ("", "so "):
        closed = [*ids(before), *opening, *ids(thinking), *closing, *ids("17")]
        for budget in range(n + 2):
            for output in (closed, [*ids(before), *opening, *ids(thinking)]):
                cut = cut_thinking(chat, output, budget, opened=False)
                if budget >= n:
                    assert cut is None
                else:
                    assert cut == [*ids(before), *opening, *ids(thinking)[:budget], *closing]
    opened = [*ids(thinking), *closing, *ids("17")]
    assert cut_thinking(chat, opened, n, opened=True) is None
    assert cut_thinking(chat, opened, n - 1, opened=True) == [*ids(thinking)[: n - 1], *closing]
    assert cut_thinking(chat, ids("17"), 0, opened=False) is None
    parts = take_apart(chat, opened, opened=True)
    assert (parts.thinking, parts.answer, parts.closed) == (thinking.strip(), "17", True)


# ---------------------------------------------------------------------------------------------- summaries


def made(question, sample, answer, correct, *, budget=None, finished=True, thought=True):
    return Answer(
        problem_id=question, task="t", prompt="", gold="", token_ids=[], thinking="", answer=answer, prompt_tokens=1,
        thinking_tokens=4 * thought, answer_tokens=2, thought=thought, finished=finished, finish_reason="stop",
        correct=correct, seconds=0.0, sample=sample, budget=budget,
    )  # fmt: skip


def test_unfinished_answers_have_no_vote_and_equal_answers_agree():
    answers = [
        made("a", 0, "(B)", True), made("a", 1, "the answer is B", True), made("a", 2, "C", False),
        made("b", 0, "A", True, finished=False), made("b", 1, "C", False), made("b", 2, "A", False, finished=False),
    ]  # fmt: skip
    samples = further_grades(answers, "choice")["samples"]
    assert samples["majority_at_3"]["value"] == pytest.approx(0.5)
    numbers = [made("a", 0, "1,080.0", True), made("a", 1, "It is 1080", True), made("a", 2, "7", False)]
    assert further_grades(numbers, "open")["samples"]["majority_at_3"]["value"] == 1.0


def test_answers_with_and_without_thinking_are_shown_apart():
    answers = [made(str(i), 0, "A", i < 3, thought=i % 2 == 0) for i in range(6)]
    parts = further_grades(answers, "choice")["by_thinking"]
    assert (parts["thought"]["n_answers"], parts["thought"]["n_correct"]) == (3, 2)
    assert (parts["did_not"]["n_correct"], parts["did_not"]["tokens_per_answer"]["thinking"]) == (1, 0)
    assert not further_grades([a for a in answers if a.thought], "choice")


def test_the_headline_is_the_largest_budget():
    answers = [made("a", 0, "A", True, budget=b) for b in (64, 256)]
    assert {a.budget for a in headline(answers)} == {256}
    assert {a.budget for a in headline([*answers, made("a", 0, "A", True)])} == {None}


# ---------------------------------------------------------------------------------------------- interrupted


RUN = (
    "import sys; from pathlib import Path; from distill.evaluation.evaluate import evaluate; "
    "from distill.evaluation.server import Serving; from distill.evaluation.settings import EvaluateSettings; "
    "from distill.serve import Endpoint; "
    "evaluate(EvaluateSettings.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), "
    "Serving(lambda: Endpoint(*sys.argv[4:7])))"
)


def test_ctrl_c_ends_it_within_seconds_and_keeps_what_is_there(trained_server, trained_student, tmp_path):
    out, endpoint = tmp_path / "e", trained_server.endpoint
    many = settings(count=400, samples=8, temperature=1.0)
    arguments = [many.model_dump_json(), str(trained_student), str(out)]
    arguments += [endpoint.base_url, endpoint.model, endpoint.api_key]
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments], env=child_environment(1), stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not (out / JOURNAL).exists() or not (out / JOURNAL).stat().st_size:
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be interrupted"
        time.sleep(0.01)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    # Two seconds when nothing else runs; what is asked is that the other thousands of answers are not waited for.
    assert time.monotonic() - start < 30 and process.returncode != 0
    with Journal(out / JOURNAL) as journal:
        assert 0 < len(journal.outputs) < 3200
    assert not (out / "manifest.json").exists()

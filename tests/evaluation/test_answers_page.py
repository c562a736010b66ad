"""The page of graded answers: it counts as the grades do, shows hostile text as text, stays small, and filters."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from distill import artifact
from distill.errors import InputError
from distill.evaluation import page
from distill.evaluation.answer_file import KIND, write_answers
from distill.evaluation.answers import Answer
from distill.evaluation.compare import compare, show
from distill.evaluation.grading import grade, summarise
from distill.evaluation.page import Arm, contrasts, render
from distill.evaluation.questions import Asked
from distill.evaluation.samples_and_budgets import further_grades
from distill.process import child_environment
from distill.report.text import visible
from distill.tasks import get_task

HOSTILE = (
    "</pre></script></title><script>document.title = 'pwned'</script><img src=x onerror=\"document.title='pwned'\">"
    "' onmouseover='x' ]]> <!-- {{ 7*7 }} &lt; \u2028\u2029 \u202eabc\u2066 \x00\x1b[31m \ufeff javascript:1 <base href=//x>"
)


def an_answer(rng, number, task="add", **changes):
    finished = rng.random() < 0.8
    thought = rng.random() < 0.7
    values = {
        "problem_id": f"{task}/{number:016x}",
        "task": task,
        "prompt": f"{task} {number}",
        "gold": str(number),
        "token_ids": [1, 2],
        "thinking": "word " * int(rng.integers(1, 90)) if thought else "",
        "answer": str(rng.integers(10)),
        "prompt_tokens": 5,
        "thinking_tokens": int(rng.integers(1, 5000)) if thought else 0,
        "answer_tokens": int(rng.integers(1, 90)),
        "thought": thought,
        "finished": finished,
        "finish_reason": "stop" if finished else "length",
        "correct": finished and rng.random() < 0.6,
        "seconds": float(rng.random()),
    }
    return Answer(**(values | changes))


def some_answers(rng, count, tasks=("add", "max"), **changes):
    return [an_answer(rng, i, task, **changes) for task in tasks for i in range(count)]


def an_evaluation(folder, answers, recipe=None, grades=None):
    with artifact.workspace(folder, KIND, recipe or {"settings": folder.name}) as work:
        write_answers(work.path / "answers.parquet", answers)
        work.commit(grades or {})
    return folder


class Tags(HTMLParser):
    """The start tags, the text outside of scripts, and the rows of tables."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.rows, self.inside = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "small" and self.rows:
            self.handle_data(" ")

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if "script" not in self.inside:
            self.text.append(data)
        if "td" in self.inside or "th" in self.inside:
            self.rows[-1][-1] += data


def entries_of(html):
    return [attributes for tag, attributes in Tags(html).tags if tag == "article" and "data-values" in attributes]


def number(text):
    return float(text.replace(",", "").replace("−", "-"))


def test_the_scores_are_those_of_the_grades(rng):
    names = ("add", "max")
    asked = [Asked(get_task(n), get_task(n).problems("test", int(rng.integers(20, 60)), 1)) for n in names]
    samples = int(rng.integers(1, 4))
    answers = []
    for a in asked:
        for problem in a.problems:
            for sample in range(samples):
                # The first of a task is right whatever is drawn, and the second wrong: a mean of nothing is no number.
                right = {a.problems[0]: True, a.problems[1]: False}.get(problem, rng.random() < 0.5)
                texts = {"prompt": problem.prompt, "gold": problem.gold, "answer": problem.gold if right else "?"}
                made = an_answer(rng, 0, problem.task, problem_id=problem.id, sample=sample, correct=False, **texts)
                answers.append(replace(made, finished=True) if problem in a.problems[:2] else made)
    answers = grade(asked, answers)
    grades = summarise(asked, answers, None)
    rows = {row[0]: row for row in Tags(render([Arm("", answers, {})], kicker="k")).rows}
    for name in names:
        wanted, row = grades[name], [[number(n) for n in re.findall(r"−?\d[\d.,]*", cell)] for cell in rows[name]]
        mine = [a for a in answers if a.task == name]
        assert row[1][0] == pytest.approx(100 * wanted["metrics"]["accuracy"], abs=0.051)
        assert row[1][1] <= row[1][0] <= row[1][2]
        assert row[2] == [wanted["n_questions"], *([len(mine)] if samples > 1 else []), wanted["n_correct"]]
        assert row[3][0] == pytest.approx(100 * wanted["unfinished_rate"], abs=0.051)
        assert row[4][0] == pytest.approx(100 * wanted["think_rate"], abs=0.051)
        tokens = wanted["tokens_per_answer"]
        assert row[5] == pytest.approx([tokens["total"], tokens["thinking"], tokens["answer"]], abs=0.051)
        by_grade = [wanted["tokens_by_grade"][grade]["total"] for grade in ("right", "wrong", "wrong_finished")]
        assert [*row[6], *row[7]] == pytest.approx(by_grade, abs=0.051)


def test_every_thinking_budget_is_scored_as_in_the_curve(rng):
    answers = [an_answer(rng, i, sample=s, budget=b) for i in range(30) for s in range(2) for b in (64, 512, None)]
    curve = further_grades(answers, "open")["curve"]
    rows = {row[0]: row for row in Tags(render([Arm("", answers, {})], kicker="k")).rows if len(row) == 8}
    for point in curve:
        row = rows[f"budget {'none' if point['budget'] is None else point['budget']}"]
        assert number(re.search(r"([\d,]+) right", row[2])[1]) == point["n_correct"]
        shares = [100 * point["accuracy"][name] for name in ("value", "low", "high")]
        assert [number(n) for n in row[1].replace("to", "").split()] == pytest.approx(shares, abs=0.051)


def test_differences_are_of_the_same_questions(rng):
    first = some_answers(rng, 60)
    second = [an_answer(rng, i, task) for task in ("max", "add") for i in reversed(range(60))]  # in another order
    found = {c.task: c for c in contrasts([Arm("a", first, {}), Arm("b", second, {})])}
    right = [{a.problem_id: a.correct for a in some} for some in (first, second)]
    for task in ("add", "max"):
        keys = [key for key in right[0] if key.startswith(task)]
        only_b = sum(right[1][key] and not right[0][key] for key in keys)
        only_a = sum(right[0][key] and not right[1][key] for key in keys)
        c = found[task]
        assert (c.only_treatment, c.only_control) == (only_b, only_a)
        assert c.difference.value == pytest.approx((only_b - only_a) / 60)
        assert c.difference.low <= c.difference.value <= c.difference.high
        # Of single answers the test by flipped signs is McNemar's exact one.
        p_value = binomtest(only_b, only_a + only_b).pvalue if only_a + only_b else 1.0
        assert c.p_value == pytest.approx(p_value)
        # With 80 % power: 2.80 standard errors of a mean of differences, each arm's half answers of Agresti & Min added.
        differences = np.array([right[1][key] * 1.0 - right[0][key] for key in keys])
        square = (np.sum(differences**2) + 1) / 62
        error = np.sqrt((square - (differences.sum() / 62) ** 2) / 62)
        assert c.detectable == pytest.approx((1.959964 + 0.841621) * error, rel=1e-5)
    # Holm's: the smaller p counts twice, the larger is at least that.
    small, large = sorted(found.values(), key=lambda c: c.p_value)
    assert small.p_holm == pytest.approx(min(1, 2 * small.p_value))
    assert large.p_holm == pytest.approx(max(small.p_holm, large.p_value))
    one = contrasts([Arm(n, [a for a in some if a.task == "add"], {}) for n, some in (("a", first), ("b", second))])
    assert [c.p_holm for c in one] == [c.p_value for c in one] == [found["add"].p_value]


def all_text(text):
    texts = {
        name: text
        for name in ("problem_id", "prompt", "gold", "thinking", "answer", "finish_reason", "task", "verdict")
    }
    texts["scores"] = {text: 0.5}
    common = {"token_ids": [], "prompt_tokens": 1, "thinking_tokens": 2, "answer_tokens": 3, "seconds": 0.1}
    one = Answer(**texts, **common, thought=True, finished=True, correct=True)
    many = [one, replace(one, sample=1, correct=False), replace(one, sample=2, finished=False, correct=False)]
    return [Arm(text, many, {text: text}), Arm(text, [*many, replace(one, budget=7)], {"x": text})]


def test_nothing_that_a_model_wrote_is_markup():
    html, plain = (render(all_text(text), kicker=text, notices=[text]) for text in (HOSTILE, "Zebra"))
    found, wanted = Tags(html), Tags(plain)
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in wanted.tags]
    assert [sorted(attributes) for _, attributes in found.tags] == [sorted(attributes) for _, attributes in wanted.tags]
    assert "".join(found.text).count(visible(HOSTILE)) >= 30
    assert not set("\x00\x1b\u202e\u2066\u2028\u2029\ufeff") & set(html)


def test_only_the_pages_own_script_may_run(rng):
    html = render([Arm("", some_answers(rng, 3), {})], kicker="k")
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert re.search(r"script-src ([^;]*);", policy)[1] == f"'sha256-{digest}'" and "default-src 'none'" in policy
    for word in ("innerHTML", "eval", "Function", "fetch", "XMLHttpRequest", "localStorage", "document.write"):
        assert word not in script


def test_equal_answers_give_equal_bytes_in_every_process(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "ENTRIES", 50)
    answers = some_answers(rng, 40)
    slower = [replace(answer, seconds=answer.seconds + 1) for answer in answers]  # nothing timed is on the page
    write_answers(tmp_path / "a.parquet", slower)
    program = (
        "import sys; from distill.evaluation.answer_file import read_answers; from distill.evaluation import page;"
        "from pathlib import Path; page.ENTRIES = 50; answers = read_answers(Path(sys.argv[1]));"
        "sys.stdout.buffer.write(page.render([page.Arm('', answers, {'b': 1, 'a': 2})], kicker='k').encode())"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.parquet")]
    made = subprocess.run(command, env=child_environment(1), capture_output=True, check=True, timeout=120).stdout
    assert made.decode() == render([Arm("", answers, {"a": 2, "b": 1})], kicker="k") and len(made) > 10_000


def test_of_too_many_the_instructive_are_shown_first(rng, monkeypatch):
    monkeypatch.setattr(page, "ENTRIES", 200)
    for count in (40, 190, 600):
        arms = [Arm(name, some_answers(rng, count, tasks=("add",)), {}) for name in ("a", "b")]
        pairs = {a.problem_id: (a.correct, b.correct) for a, b in zip(*(arm.answers for arm in arms), strict=True)}
        html = render(arms, kicker="k")
        shown = re.findall(r'<p class="kicker">(add/[0-9a-f]+)</p>', html)
        assert shown == [key for key in pairs if key in set(shown)]  # in their order
        assert len(shown) == min(count, 200)
        faults = {key for key, right in pairs.items() if not all(right)}
        assert len(faults & set(shown)) == min(len(faults), max(150, 200 - (count - len(faults))))
        assert ("are on this page" in html) == (count > 200)
        if count > 200:
            for n, what in (
                (sum(a != b for a, b in pairs.values()), "on which the arms disagree"),
                (sum(a and b for a, b in pairs.values()), "that every arm has right"),
                (sum(not a and not b for a, b in pairs.values()), "that no arm has right"),
            ):
                assert f"{n} {what}: " in html


@pytest.mark.parametrize("character", ["x", "<", "\x1b", "\U0001f600", "\n", " "])
def test_a_page_is_of_bounded_size_and_says_what_it_hides(rng, monkeypatch, character):
    monkeypatch.setattr(page, "CHARACTERS", 300_000)
    long = [1_000_000, *rng.integers(1, 60_000, size=40).tolist()]
    texts = {"thought": True, "finished": False, "correct": False}
    answers = [an_answer(rng, i, thinking="A" + n * character + "Z", answer="", **texts) for i, n in enumerate(long)]
    html = render([Arm("", answers, {})], kicker="k")
    assert len(html.encode()) < 4 * 300_000 + 100_000
    shown = re.findall(r'<p class="kicker">add/([0-9a-f]+)</p>', html)
    assert len(shown) >= 20
    whole = re.findall(r"<small>([\d,]+) characters</small>", html)
    assert {number(n) for n in whole} <= {n + 2 for n in long}
    cut = [int(number(n)) for n in re.findall(r"Cut here: ([\d,]+) characters are left out", html)]
    assert cut and all(0 < n < 1_000_002 for n in cut)


def test_a_page_of_ten_thousand_long_answers_is_small(rng):
    words = ["so 7+5 is 12 ", "carry <1> ", "then\n"]
    texts = ["".join(rng.choice(words, size=n)) for n in rng.integers(10, 3000, size=50)]
    answers = [an_answer(rng, i, thinking=texts[rng.integers(50)]) for i in range(10_000)]
    html = render([Arm("", answers, {})], kicker="k")
    assert len(entries_of(html)) >= 1000 and len(html.encode()) < 30_000_000


def test_why_an_answer_has_its_grade_stands_under_it(rng):
    ended = {"finished": True, "correct": False, "thinking_tokens": 1234, "answer_tokens": 5, "finish_reason": "stop"}
    answers = [
        an_answer(rng, 0, verdict="read <7>, expected 8", scores={"f1": 0.25, "em": 0.0}, **ended),
        an_answer(rng, 1, failure="time", verdict="no verdict in 5 s", budget=None, **ended),
        an_answer(rng, 2, think="on", verdict="unfinished", **(ended | {"finished": False})),
        an_answer(rng, 3, **(ended | {"finished": False, "finish_reason": "length"})),
    ]
    tokens = "1,234 thinking + 5 answer tokens · finish reason"
    html = render([Arm("", answers, {})], kicker="k")
    assert [unescape(note) for note in re.findall(r'<p class="muted note">(.*?)</p>', html)] == [
        f"read <7>, expected 8 · em 0 · f1 0.25 · {tokens} stop",
        f"no verdict in 5 s · the checker came to no end (time) · {tokens} stop",
        f"{tokens} stop · its thinking was never closed · a think block was opened for it",
        f"{tokens} length",
    ]


def test_samples_and_budgets_stand_beside_each_other(rng):
    answers = [
        an_answer(rng, i, sample=sample, budget=budget)
        for i in range(5)
        for budget in (512, None, 64)
        for sample in (1, 0)
    ]
    html = render([Arm("student", answers, {})], kicker="k")
    assert re.findall(r'<p class="kicker">(add/\w+, sample \d)</p>', html) == [
        f"add/{i:016x}, sample {sample}" for i in range(5) for sample in (1, 2)
    ]
    names = re.findall(r"<strong>(.*?)</strong>", html)
    assert names == ["student, budget 64", "student, budget 512", "student, budget none"] * 10


def test_compare_reads_finished_evaluations(rng, tmp_path, capsys):
    first, second = some_answers(rng, 30), some_answers(rng, 30)
    one = an_evaluation(tmp_path / "ift.evaluation", first)
    two = an_evaluation(tmp_path / "[red]b", [*second, an_answer(rng, 99)])
    out = tmp_path / "below" / "page.html"
    found = compare([str(one), f"new={two}"], out)
    html = out.read_text()
    assert found["questions"] == 60 and len(found["differences"]) == 2
    assert found["left_out"] == ["new: 1 of its 61 questions were not asked of all, and are left out."]
    assert found["left_out"][0] in html and f"{0x63:016x}" not in html
    assert found["differences"][0]["treatment"] == "new" and found["differences"][0]["control"] == "ift"
    json.dumps(found)
    capsys.readouterr()
    show(found)
    said = capsys.readouterr()
    assert found["left_out"][0] in said.err and str(out) in said.out
    for line in said.out.splitlines():
        assert len(line) <= 100 or str(out) in line
    # What it says is what it gives: each arm's accuracy, and what the second one has more.
    right = {s["task"]: 100 * s["accuracy"]["value"] for s in found["scores"] if s["arm"] == "new"}
    more = {c["task"]: 100 * c["difference"]["value"] for c in found["differences"]}
    rows = [line for line in said.out.splitlines() if " new " in line]
    read = [[number(n) for n in re.findall(r"[+−]?[\d,.]+", row)] for row in rows]
    assert [n[0] for n in read] == pytest.approx([right[t] for t in ("add", "max")], abs=0.051)
    assert [n[5] for n in read] == pytest.approx([more[t] for t in ("add", "max")], abs=0.051)
    least = {c["task"]: 100 * c["detectable"] for c in found["differences"]}
    assert [n[8] for n in read] == pytest.approx([least[t] for t in ("add", "max")], abs=0.051)
    corrected = {c["task"]: c["p_holm"] for c in found["differences"]}
    assert [n[9] for n in read] == pytest.approx([corrected[t] for t in ("add", "max")], rel=0.06, abs=1e-4)
    assert "p is Holm's, for 2 comparisons." in said.err and "p is Holm's, for 2 comparisons." in unescape(html)
    assert compare([str(one), f"new={two}"], out) == found and out.read_text() == html  # its own page is made again
    without = compare([str(one), str(two)])
    assert without["page"] is None and without["scores"] == [
        s | {"arm": s["arm"].replace("new", "[red]b")} for s in found["scores"]
    ]
    show(without)
    assert "[red]b" in capsys.readouterr().out


def test_further_metrics_are_those_of_the_grades_unless_questions_are_left_out(rng, tmp_path):
    value, low, high = sorted(rng.random(3))[1], 0.001, 0.999
    grades = {
        "add": {
            "metrics": {"accuracy": 0.5, "<macro>": value},
            "intervals": {"<macro>": {"low": low, "high": high}},
        }
    }
    answers = some_answers(rng, 8, tasks=("add",))
    rows = [row for row in Tags(render([Arm("", answers, {}, grades)], kicker="k")).rows if row[0] == "<macro>"]
    assert rows == [["<macro>", f"{100 * value:.1f} 0.1 to 99.9"]]
    one = an_evaluation(tmp_path / "one", answers, grades=grades)
    for left_out in (0, 1):
        two = an_evaluation(tmp_path / f"two{left_out}", answers[left_out:], grades=grades)
        compare([str(one), str(two)], tmp_path / "page.html")
        found = [row for row in Tags((tmp_path / "page.html").read_text()).rows if row[0] == "<macro>"]
        assert len(found) == (0 if left_out else 1)


def test_compare_refuses_in_one_line(rng, tmp_path):
    answers = some_answers(rng, 5)
    one = an_evaluation(tmp_path / "one", answers)
    same = an_evaluation(tmp_path / "below" / "one", answers)
    other = an_evaluation(tmp_path / "other", some_answers(rng, 5, tasks=("record",)))
    gold = an_evaluation(tmp_path / "gold", [replace(a, gold="x" * 999 + a.gold) for a in answers])
    old = an_evaluation(tmp_path / "old", answers)
    table = pq.read_table(old / "answers.parquet").drop_columns(["scores"])
    shutil.rmtree(old)
    with artifact.workspace(old, KIND, {}) as work:
        pq.write_table(table, work.path / "answers.parquet")
        work.commit({})
    notes = tmp_path / "notes.html"
    notes.write_text("mine")
    out = tmp_path / "out.html"
    for evaluations, target, message in (
        ([one], out, "found one evaluation, expected two or more"),
        ([one, same], out, "a second evaluation named 'one'; name it: NAME="),
        ([one, other], out, "no question that all were asked"),
        ([one, gold], out, "gold answer of add/0000000000000000 is 'xxx.*…', but in .*one it is '0'"),
        ([one, tmp_path / "nowhere"], out, "nowhere: no such folder; expected evaluation made by `distill evaluate`"),
        ([one, tmp_path], out, "has no manifest.json"),
        ([one, old], out, "answers.parquet: has no column scores; made by another version"),
        ([one, gold], notes, "exists and is no page of `distill compare`"),
        ([one, gold], tmp_path, "is a folder; expected a file"),
    ):
        with pytest.raises(InputError, match=message) as error:
            compare([str(folder) for folder in evaluations], target)
        assert "\n" not in str(error.value)
    assert notes.read_text() == "mine" and not out.exists()


# In a real browser.


@pytest.fixture(scope="module")
def shown(chromium, tmp_path_factory):
    """(browser with the page of two arms open, the answers of both): one question is hostile, one answer is 1 MB."""
    rng = np.random.default_rng()
    arms = [some_answers(rng, 80), some_answers(rng, 80)]
    for answers in arms:
        # Every value of every filter is there, whatever is drawn.
        for i, (finished, correct) in enumerate(((True, True), (True, False), (False, False))):
            answers[i] = replace(answers[i], finished=finished, correct=correct, thought=i > 0)
        answers[7] = replace(answers[7], prompt=HOSTILE, gold=HOSTILE, thinking=HOSTILE, answer=HOSTILE)
        answers[8] = replace(answers[8], thinking="9" * 1_000_000, answer="<b>" * 5_000)
    arms[1][0] = replace(arms[1][0], correct=False)
    folder = tmp_path_factory.mktemp("answers")
    html = render([Arm(f"arm {name}", a, {}) for name, a in zip("AB", arms, strict=True)], kicker="distill compare")
    (folder / "page.html").write_text(html, encoding="utf-8")
    with chromium(folder) as browser:
        browser.address = (folder / "page.html").as_uri()
        yield browser, arms


def open_page(browser, width=1200, scheme="light", media="screen"):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(browser.address)


def visible_entries(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('.entries > article')].filter(e => e.checkVisibility())"
        ".map(e => e.querySelector('.kicker').textContent)"
    )


def values_of(pair):
    """The values that a question has in each filter, by another way than the page's."""
    right = [a.correct for a in pair]
    grades = ["right" if a.correct else "wrong" if a.finished else "unfinished" for a in pair]
    return {
        "Task": {pair[0].task},
        **{f"arm {name}": {grade} for name, grade in zip("AB", grades, strict=True)},
        "Arms": {"disagree" if right[0] != right[1] else "all right" if right[0] else "none right"},
        "Thinking": {
            f"arm {name}: {'thought' if a.thought else 'did not think'}" for name, a in zip("AB", pair, strict=True)
        },
    }


def expected(arms, chosen, wanted=""):
    """Ids of the questions that a reader who chose {filter: value} and searched for `wanted` should see."""
    return [
        pair[0].problem_id
        for pair in zip(*arms, strict=True)
        if all(value in values_of(pair)[name] for name, value in chosen.items())
        and (
            not wanted
            or any(wanted in visible(t).lower() for a in pair for t in (a.prompt, a.thinking[:900], a.answer))
        )
    ]


def assert_shows(browser, arms, chosen, wanted=""):
    """The entries, the number of them, and beside every value how many choosing it would show."""
    ids = expected(arms, chosen, wanted)
    assert visible_entries(browser) == ids
    status = browser.execute_script("return document.querySelector('[role=status]').textContent")
    assert status == f"{len(ids)} of {len(arms[0])} shown"
    options = browser.execute_script(
        "return [...document.querySelectorAll('select')].flatMap(s => [...s.options].slice(1).map(o =>"
        " [s.parentElement.firstChild.textContent.trim(), o.textContent]))"
    )
    for name, text in options:
        value, counted = re.fullmatch(r"(.*) \((\d+)\)", text).groups()
        assert int(counted) == len(expected(arms, chosen | {name: value}, wanted)), (name, value)


def test_filters_by_mouse(shown):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    browser, arms = shown
    open_page(browser)
    selects = {
        s.find_element(By.XPATH, "..").text.splitlines()[0]: s for s in browser.find_elements(By.TAG_NAME, "select")
    }
    assert set(selects) == {"Task", "arm A", "arm B", "Arms", "Thinking"}
    assert_shows(browser, arms, {})
    for chosen in (
        {"arm A": "wrong"},
        {"arm A": "unfinished", "Task": "max"},
        {"Arms": "disagree"},
        {"arm B": "right", "Thinking": "arm B: did not think", "Task": "add"},
        {"arm A": "right", "Arms": "none right"},
    ):
        for name, value in chosen.items():
            Select(selects[name]).select_by_value(
                next(o.get_attribute("value") for o in Select(selects[name]).options if o.text.startswith(value))
            )
        assert_shows(browser, arms, chosen)
        browser.find_element(By.CSS_SELECTOR, ".filters button").click()
        assert_shows(browser, arms, {})
    assert browser.find_element(By.CSS_SELECTOR, "input[type=search]") == browser.switch_to.active_element


def test_filters_by_keyboard(shown):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser, arms = shown
    open_page(browser)
    press = lambda *keys: ActionChains(browser).send_keys(*keys).perform()  # noqa: E731
    active = lambda script: browser.execute_script(f"return document.activeElement{script}")  # noqa: E731
    for _ in range(12):
        press(Keys.TAB)
        if active(".tagName") == "SELECT":
            break
    press("m")
    assert_shows(browser, arms, {"Task": "max"})
    press(Keys.TAB, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert_shows(browser, arms, {"Task": "max", "arm A": "wrong"})
    press(Keys.ARROW_UP)
    assert_shows(browser, arms, {"Task": "max", "arm A": "right"})
    press(Keys.TAB, Keys.TAB, Keys.TAB, Keys.TAB)
    assert active(".type") == "search"
    press("MAX 1")
    assert_shows(browser, arms, {"Task": "max", "arm A": "right"}, "max 1")
    press(Keys.ENTER, Keys.TAB, Keys.ENTER)
    assert_shows(browser, arms, {})
    press("u+202e")  # as it is shown
    assert_shows(browser, arms, {}, "u+202e")
    press(Keys.TAB, Keys.TAB)
    assert browser.get_log("browser") == []


def test_nothing_is_requested_logged_or_executed(shown):
    browser, _ = shown
    browser.get_log("performance")
    open_page(browser)
    assert browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true; return 1") == 1
    visible_entries(browser)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    urls = {r["request"]["url"] for r in requests if not r["documentURL"].startswith("chrome")}
    assert {url for url in urls if not url.startswith("data:")} == {browser.address}
    assert browser.get_log("browser") == []
    assert "pwned" not in browser.title
    assert browser.execute_script("return [document.scripts.length, document.images.length]") == [1, 0]


def test_without_scripts_everything_is_there(shown):
    browser, arms = shown
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        open_page(browser)
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert visible_entries(browser) == expected(arms, {})
    assert browser.execute_script("return document.querySelector('.filters').checkVisibility()") is False


@pytest.mark.parametrize(
    "width, scheme, media", [(360, "dark", "screen"), (1200, "light", "screen"), (800, "dark", "print")]
)
def test_it_fits_phones_paper_and_both_themes(shown, width, scheme, media):
    browser, arms = shown
    open_page(browser, width, scheme, media)
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    outside = """return [...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, option')
        && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert browser.execute_script(outside) == []
    # Contrast of every text that is not large with what is behind it.
    worst = """
    const rgb = c => c.match(/[\\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => { const f = v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
      return .2126 * f(r) + .7152 * f(g) + .0722 * f(b); };
    const paper = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
    return Math.min(...[...document.querySelectorAll('label, select, button, .shown, summary, small, pre, .note, strong')].map(
      e => { const a = luminance(rgb(getComputedStyle(e).color)), b = luminance(paper(e));
        return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); }))"""
    assert browser.execute_script(worst) >= 4.5
    filters = browser.execute_script("return document.querySelector('.filters').checkVisibility()")
    assert filters == (media == "screen")
    assert visible_entries(browser) == expected(arms, {})

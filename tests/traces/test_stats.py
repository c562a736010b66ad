"""Statistics of a trace set: the same numbers as counting pair by pair, intervals that hold, a page that shows them."""

import json
import math
import statistics
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats as scipy_stats
from typer.testing import CliRunner

from distill import artifact
from distill.cli import app
from distill.errors import InputError
from distill.tasks.problem import Problem
from distill.traces.generate import generate
from distill.traces.settings import GenerateSettings
from distill.traces.stats.columns import Names
from distill.traces.stats.numbers import histogram, lengths, project, share, wilson
from distill.traces.stats.page import render, write_page
from distill.traces.stats.stats import stats
from distill.traces.stats.text import show_stats
from distill.traces.store import Rejected, pair_at, read_pairs, write_pairs
from distill.traces.trace import MODES, Pair, Trace

HOSTILE = "</pre><script>document.title='pwned'</script><img src=x onerror=alert(1)> [bold]x[/] \u202e\x07\x00 $x$ `|"


def write(folder, rows):
    with artifact.workspace(folder, "traces", {"rows": len(rows)}) as space:
        return space.commit(write_pairs(folder, rows))


def pair(prompt="add 12", answer="3", place=0, sample=0, answer_format="open", **changes):
    return Pair(
        Problem("add", prompt, "3", answer_format),
        Trace("reasoning", "1:1,2:3", answer, "stop", "t", **changes),
        Trace("ift", "", "3", "stop", "t", **changes),
        place,
        sample,
    )


def random_rows(rng, n, *, tokens=True):
    """Rows of about n / 2 questions: several samples, some set aside, some counts, costs and labels unknown."""

    def maybe(value, share=0.9):
        return value if rng.random() < share else None

    def trace(mode, finish):
        words = int(rng.integers(0, 60)) if mode == "reasoning" else 0
        label = maybe(bool(rng.random() < 0.6), 0.8)
        return Trace(
            mode,
            "ü " * words,
            str(rng.choice(["7", "7.0", " 7 ", "8", "\\boxed{7}", "a;b", "B)", "b, A"])),
            finish,
            str(rng.choice(["one", "two"])),
            maybe(int(rng.integers(1, 99))),
            maybe(words, 0.9 if tokens else 1),
            maybe(int(rng.integers(1, 9)), 0.9 if tokens else 1),
            cost_usd=maybe(float(rng.random())),
            verified=label,
            verdict=None if label is None else f"number: {int(rng.integers(99))} is {'' if label else 'not '}right",
        )

    rows = []
    for place in range(n // 2):
        problem = Problem("add", f"q{place // 2}", "7", str(rng.choice(["open", "choice", "labels", "extraction"])))
        for sample in range(int(rng.integers(1, 4))):
            kind = rng.random()
            if kind < 0.7:
                rows.append(Pair(problem, trace("reasoning", "stop"), trace("ift", "stop"), place, sample))
            elif kind < 0.8:
                rows.append(Rejected("malformed", None, place=place, sample=sample))
            elif kind < 0.9:
                cut, whole = trace("reasoning", "length"), trace("ift", "stop")
                rows.append(Rejected("truncated", "reasoning", "", "", problem, cut, whole, place, sample))
            else:
                rows.append(Rejected("refused", "ift", "", "", problem, None, trace("ift", "stop"), place, sample))
    return rows


def naive_lengths(values):
    if not values:
        return None
    found = {"total": sum(values), "mean": statistics.fmean(values)}
    ordered = sorted(values)
    percentiles = {}
    for p in (5, 25, 50, 75, 95, 99, 100):
        at = p / 100 * (len(ordered) - 1)
        low = math.floor(at)
        high = min(low + 1, len(ordered) - 1)
        percentiles[f"p{p}"] = ordered[low] + (at - low) * (ordered[high] - ordered[low])
    return found | {"percentiles": percentiles}


def same_lengths(found, values):
    expected = naive_lengths(values)
    if expected is None:
        assert found is None
        return
    assert found["total"] == expected["total"] and found["mean"] == pytest.approx(expected["mean"])
    assert found["percentiles"] == pytest.approx(expected["percentiles"])
    edges, counts = found["histogram"]["edges"], found["histogram"]["counts"]
    assert counts == [sum(a <= v < b for v in values) for a, b in pairwise(edges)]
    assert sum(counts) == len(values) and counts[0] and counts[-1]


@pytest.mark.parametrize(
    ("teachers", "title"),
    [
        (["imported", "imported"], "2 imported pairs"),
        (["Qwen<3>", "imported"], "2 pairs by Qwen&lt;3&gt;, imported"),
        (["imported, reasoning removed", "imported"], "2 imported pairs"),
    ],
)
def test_the_page_is_called_after_who_wrote_the_answers(tmp_path, teachers, title):
    """Those that nobody claims are imported ones. Samples are told from questions, and rows that are none from both."""
    problem, ift = Problem("add", "add 12", "3", "open"), Trace("ift", "", "3", "stop", "imported")
    reasoning = [Trace("reasoning", "r", "3", "stop", teacher) for teacher in teachers]
    rows = [Pair(problem, trace, ift, 0, sample) for sample, trace in enumerate(reasoning)]
    write(tmp_path / "t", [*rows, Rejected("malformed", None, place=9)])
    found = stats(tmp_path / "t")
    assert (found["questions"], found["rows"]) == (1, 3)
    page = render(tmp_path / "t", found)
    assert title in page and "1 question, 2 samples of each, and 1 row that gave none." in page


def test_numbers_are_those_of_counting_pair_by_pair(tmp_path, rng):
    rows = random_rows(rng, 300)
    write(tmp_path / "t", rows)
    found = stats(tmp_path / "t")
    json.dumps(found, allow_nan=False)
    pairs = [row for row in rows if isinstance(row, Pair)]
    rejected = [row for row in rows if isinstance(row, Rejected)]
    asked = [row for row in rows if row.problem]
    assert (found["rows"], found["pairs"], found["questions"]) == (len(rows), len(pairs), len({r.place for r in asked}))
    assert found["distinct_prompts"] == len({p.problem.prompt for p in pairs})
    samples = Counter(Counter(row.place for row in asked).values())
    assert found["samples_per_question"] == {str(k): v for k, v in samples.items()}
    kept = Counter(p.place for p in pairs)
    expected = Counter(kept[place] for place in {row.place for row in asked})
    assert found["pairs_per_question"] == {str(k): v for k, v in expected.items()}
    assert found["rejected"]["total"] == len(rejected)
    assert found["rejected"]["by_reason"] == Counter(row.reason for row in rejected)
    table = Counter((row.reason, row.mode or "row") for row in rejected)
    flat = {(r, m): n for r, modes in found["rejected"]["by_reason_and_mode"].items() for m, n in modes.items()}
    assert flat == table
    assert found["teachers"] == sorted({t.teacher for r in rows for t in (r.reasoning, r.ift) if t})
    names = {
        (True, True): "both",
        (True, False): "only_reasoning",
        (False, True): "only_ift",
        (False, False): "neither",
    }
    judged = [(p.reasoning.verified, p.ift.verified) for p in pairs]
    right = Counter(names[flags] for flags in judged if None not in flags)
    assert found["right"] == {name: right[name] for name in names.values()}
    for verdict, flag in (("verified", True), ("not_verified", False)):
        values = [len(p.reasoning.reasoning) for p in pairs if p.reasoning.verified is flag]
        assert found["reasoning_length"]["unit"] == "characters"  # some token counts are unknown
        same_lengths(found["reasoning_length"][verdict], values)
    everything = []
    for mode in MODES:
        side, traces = found["modes"][mode], [p.trace(mode) for p in pairs]
        unused = [t for row in rejected if (t := getattr(row, mode))]
        everything += traces + unused
        cut = sum(t.finish_reason == "length" for t in traces + unused)
        assert side["answers"] == len(traces) + len(unused) == side["truncated"]["of"]
        assert side["truncated"]["count"] == cut
        assert side["refused"] == sum(r.reason == "refused" and r.mode == mode for r in rejected)
        same_lengths(side["characters"]["reasoning"], [len(t.reasoning) for t in traces])
        same_lengths(side["characters"]["output"], [len(t.reasoning) + len(t.answer) for t in traces])
        counted = [t for t in traces if None not in (t.reasoning_tokens, t.answer_tokens)]
        assert side["tokens"]["unknown"] == len(traces) - len(counted)
        same_lengths(side["tokens"]["reasoning"], [t.reasoning_tokens for t in counted])
        same_lengths(side["tokens"]["answer"], [t.answer_tokens for t in counted])
        same_lengths(side["tokens"]["prompt"], [t.prompt_tokens for t in traces if t.prompt_tokens is not None])
        paid = sum((t.reasoning_tokens or 0) + (t.answer_tokens or 0) for t in traces + unused)
        assert side["tokens"]["all"] == {
            "prompt": sum(t.prompt_tokens or 0 for t in traces + unused),
            "output": paid,
        }
        flags = [t.verified for t in traces if t.verified is not None]
        assert (side["verified"]["count"], side["verified"]["of"]) == (sum(flags), len(flags))
        kinds = Counter((f"number: # is {'' if t.verified else 'not '}right", t.verified) for t in traces if t.verdict)
        assert {(v["verdict"], v["verified"]): v["count"] for v in side["verdicts"]} == kinds
        order = sorted(range(len(traces)), key=lambda i: len(traces[i].reasoning) + len(traces[i].answer))
        assert side["shortest"][0]["row"] == order[0] and side["shortest"][0]["id"] == pairs[order[0]].problem.id
        assert side["longest"][0]["length"] == len(traces[order[-1]].reasoning) + len(traces[order[-1]].answer)
        costs = [t.cost_usd for t in traces + unused]
        assert side["cost_usd"]["total"] == pytest.approx(sum(filter(None, costs)))
        assert side["cost_usd"]["unknown"] == costs.count(None)
    total = sum(t.cost_usd or 0 for t in everything)
    assert found["cost_usd"]["total"] == pytest.approx(total)
    assert found["cost_usd"]["per_pair"] == pytest.approx(total / len(pairs))


def test_sets_larger_than_a_batch_and_a_pair_by_its_number(tmp_path, rng):
    rows = [pair(f"add {i}", place=i, reasoning_tokens=i, answer_tokens=1) for i in range(2500)]
    write(tmp_path / "t", rows)
    found = stats(tmp_path / "t")
    assert found["distinct_prompts"] == 2500
    assert found["modes"]["reasoning"]["tokens"]["reasoning"]["total"] == sum(range(2500))
    assert [entry["row"] for entry in found["modes"]["ift"]["longest"]] == [2499, 2498, 2497, 2496, 2495]
    for number in {0, 1023, 1024, 2499, int(rng.integers(2500))}:
        assert pair_at(tmp_path / "t", number) == rows[number]
    with pytest.raises(IndexError):
        pair_at(tmp_path / "t", 2500)


def test_agreement_reads_answers_as_their_format_says(tmp_path):
    same = {"open": "3.00 apples", "choice": "x", "labels": "x", "extraction": "3 "}
    rows = [pair(f"q{name}", answer, place=i, answer_format=name) for i, (name, answer) in enumerate(same.items())]

    def with_ift(answer_format, one, other, place):
        problem = Problem("add", f"q{place}", "", answer_format)
        return Pair(problem, Trace("reasoning", "r", one, "stop", "t"), Trace("ift", "", other, "stop", "t"), place, 0)

    rows += [
        with_ift("choice", "The answer is B.", "(B)", 10),
        with_ift("choice", "A", "B", 11),
        with_ift("labels", "tech, Risk", "risk; tech", 12),
        with_ift("labels", "tech", "risk; tech", 13),
        with_ift("extraction", "nova corp", "Nova corp", 14),
        with_ift("open", "\\boxed{x y}", "x  y", 15),
        with_ift("open", "9**9**9**9", "9**9**9**8", 16),
    ]
    write(tmp_path / "t", rows)
    found = stats(tmp_path / "t")["agreement"]
    assert {name: (v["count"], v["of"], v["same_text"]) for name, v in found["by_format"].items()} == {
        "open": (2, 3, 1),
        "choice": (1, 3, 0),
        "labels": (1, 3, 0),
        "extraction": (1, 2, 1),
    }
    assert (found["count"], found["of"]) == (5, 11)


def test_a_share_of_single_samples_has_wilsons_interval(rng):
    for _ in range(50):
        n = int(rng.integers(1, 400))
        flags = rng.random(n) < rng.random()
        expected = scipy_stats.binomtest(int(flags.sum()), n).proportion_ci(0.95, method="wilson")
        found = share(flags, rng.permutation(n))
        assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert found["low"] <= found["value"] <= found["high"]
    assert share(np.zeros(0, bool), np.zeros(0, int)) == {"value": None, "low": None, "high": None, "count": 0, "of": 0}


def test_samples_that_repeat_their_question_count_once(rng):
    questions, samples = int(rng.integers(60, 200)), int(rng.integers(2, 9))
    flags = rng.random(questions) < 0.5
    flags[:2] = True, False
    places = np.repeat(np.arange(questions), samples)
    found = share(np.repeat(flags, samples), places)
    # The variance between questions has questions - 1 degrees of freedom: one question less.
    expected = wilson(flags.mean(), questions - 1)
    assert (found["low"], found["high"]) == pytest.approx(expected, abs=1e-12)
    all_right = share(np.ones(questions * samples, bool), places)
    assert all_right["low"] == pytest.approx(wilson(1.0, questions)[0])
    independent = share(rng.random(questions * samples) < 0.5, places)
    assert independent["high"] - independent["low"] < found["high"] - found["low"]


@pytest.mark.long
def test_the_interval_holds_the_share_as_often_as_it_says(rng):
    """300 sets of 60 questions with 4 samples each, whose questions differ: of 95 % intervals about 285 hold."""
    held = 0
    for _ in range(300):
        easy = rng.beta(2, 2, 60)
        found = share((rng.random((60, 4)) < easy[:, None]).ravel(), np.repeat(np.arange(60), 4))
        held += found["low"] <= 0.5 <= found["high"]
    assert held >= 262  # a binomial of 300 and 0.95 is less than that once in 10^7


def test_lengths_of_any_size():
    for values in ([0], [0, 0, 1], [1], [2**40, 3], [2**62, 2**62], list(range(200))):
        same_lengths(lengths(np.array(values, dtype=np.int64)), values)
    assert histogram(np.array([5, 5])) == {"edges": [5, 6], "counts": [2]}


def test_a_projection_is_the_mean_and_holds_what_comes(tmp_path, rng):
    q, n = 200, int(rng.integers(50, 5000))
    totals = np.stack([rng.gamma(2, 50, q), np.full(q, 2.0)], axis=1)
    expected, low, high = project(totals, n)
    assert expected == pytest.approx(n * totals.mean(0))
    # Of a sum over n new ones, from q: both are chance.
    wide = 1.96 * n * totals[:, 0].std() * math.sqrt(1 / q + 1 / n)
    assert (high[0] - low[0]) / 2 == pytest.approx(wide, rel=0.15)
    assert (low[1], high[1]) == pytest.approx((2 * n, 2 * n))
    many = np.tile(totals, (150, 1))  # more than are drawn one by one
    narrow = 1.96 * n * totals[:, 0].std() * math.sqrt(1 / len(many) + 1 / n)
    _, low, high = project(many, n)
    assert (high[0] - low[0]) / 2 == pytest.approx(narrow, rel=0.15)

    rows = [
        pair(f"a{i}", place=i, prompt_tokens=3, reasoning_tokens=0, answer_tokens=i % 3, cost_usd=0.5) for i in range(9)
    ]
    cut = Trace("reasoning", "r", "", "length", "t", 3, 4, 0, cost_usd=1.0)
    rows.append(Rejected("truncated", "reasoning", problem=Problem("add", "x", "", "open"), reasoning=cut, place=9))
    rows.append(Rejected("not_asked", None, problem=Problem("add", "y", "", "open"), place=10))
    write(tmp_path / "t", rows)
    found = stats(tmp_path / "t", projected_questions=100)["projection"]
    assert (found["questions"], found["from_questions"]) == (100, 10)
    assert found["pairs"]["value"] == pytest.approx(90)
    assert found["prompt_tokens"]["value"] == pytest.approx(100 * (9 * 6 + 3) / 10)
    assert found["output_tokens"]["value"] == pytest.approx(100 * (2 * 9 + 4) / 10)
    assert found["cost_usd"]["value"] == pytest.approx(100)
    assert all(found[name]["low"] <= found[name]["value"] <= found[name]["high"] for name in ("pairs", "cost_usd"))
    with pytest.raises(InputError, match="found 0 questions, expected at least 1"):
        stats(tmp_path / "t", projected_questions=0)


@pytest.mark.parametrize("gold", ["answer", "shown"])
def test_given_answers_take_no_tokens_and_leave_the_others_known(tmp_path, teacher, rng, gold):
    """A teacher that reasons towards labels is asked once a question: what that comes to is what is projected."""
    n = int(rng.integers(5, 20))
    questions = [{"prompt": f"question {i} {rng.integers(10**9)}", "answer": "5"} for i in range(n)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    data = {"mine": {"path": tmp_path / "q.jsonl", "answer": "answer"}}
    prices = {"usd_per_million_input": 1.0, "usd_per_million_output": 10.0}
    who = {"url": teacher.url, "model": "fake", "concurrency": 4} | prices
    generate(GenerateSettings(data=data, gold=gold, teacher=who), tmp_path / "t")
    found = stats(tmp_path / "t", projected_questions=1000)
    pairs = read_pairs(tmp_path / "t")
    assert teacher.requests == n == len(pairs)
    output = sum(p.reasoning.reasoning_tokens + p.reasoning.answer_tokens for p in pairs)
    prompt = sum(p.reasoning.prompt_tokens for p in pairs)
    for name, value in (("output_tokens", output), ("prompt_tokens", prompt), ("pairs", n)):
        assert found["projection"][name]["value"] == pytest.approx(1000 * value / n)
    assert found["projection"]["cost_usd"]["value"] == pytest.approx(1000 * (prompt + 10 * output) / 1e6 / n)
    assert found["modes"]["ift"]["answers"] == found["modes"]["ift"]["truncated"]["of"] == 0
    assert found["modes"]["reasoning"]["answers"] == n
    render(tmp_path / "t", found)


def test_what_is_not_known_is_none(tmp_path):
    write(tmp_path / "free", [pair(cost_usd=0.0)])
    write(tmp_path / "unknown", [pair()])
    write(tmp_path / "nothing", [Rejected("malformed", None, place=i) for i in range(3)])
    assert stats(tmp_path / "free")["cost_usd"] == {"total": 0.0, "unknown": 0, "per_pair": 0.0}
    unknown = stats(tmp_path / "unknown", projected_questions=10)
    assert unknown["modes"]["ift"]["cost_usd"] == {"total": None, "unknown": 1}
    assert unknown["modes"]["ift"]["tokens"] is None and unknown["modes"]["ift"]["verified"]["value"] is None
    assert unknown["projection"]["cost_usd"] is None
    assert unknown["projection"]["pairs"] == {"value": 10.0, "low": None, "high": None}  # one question has no variance
    nothing = stats(tmp_path / "nothing", projected_questions=5)
    assert (nothing["pairs"], nothing["rows"], nothing["modes"]["reasoning"]["characters"]) == (0, 3, None)
    for name in ("free", "unknown", "nothing"):
        found = stats(tmp_path / name, projected_questions=5)
        json.dumps(found, allow_nan=False)
        show_stats(found)
        assert render(tmp_path / name, found)


def test_names_beyond_a_thousand_are_others():
    import pyarrow as pa

    names = Names()
    codes = names.codes(pa.array([*(f"n{i}" for i in range(1500)), None]))
    assert codes[999] == 999 and set(codes[1000:1500]) == {1000} and codes[1500] == -1
    assert names.texts[1000] == "(other)"


def test_a_tokenizer_counts_instead_of_the_teacher(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # every character
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path / "tokenizer")
    cut = Trace("ift", "", "12345", "length", "t")
    rows = [pair("a", "33", reasoning_tokens=1, answer_tokens=1), pair("b", "444", place=1)]
    rows.append(Rejected("truncated", "ift", ift=cut, place=2))
    write(tmp_path / "t", rows)
    found = stats(tmp_path / "t", str(tmp_path / "tokenizer"))
    for mode in MODES:
        side = found["modes"][mode]
        assert {part: side["tokens"][part] for part in side["characters"]} == side["characters"]
    assert found["modes"]["ift"]["tokens"]["all"]["output"] == 1 + 1 + 5
    with pytest.raises(InputError, match="tokenizer"):
        stats(tmp_path / "t", str(tmp_path / "none"))


def test_the_command(tmp_path):
    write(tmp_path / "t", [pair(f"q{i}", place=i, reasoning_tokens=i, answer_tokens=1) for i in range(5)])

    def run(*arguments):
        return CliRunner().invoke(app, ["traces", "stats", str(tmp_path / "t"), *arguments])

    page = tmp_path / "new" / "page.html"
    found = json.loads(run("--json", "--html", str(page), "--project", "10").stdout)
    assert found == stats(tmp_path / "t", projected_questions=10) and found["schema"] == "distill-trace-stats/2"
    written = page.read_bytes()
    assert run("--html", str(page), "--project", "10").exit_code == 0 and page.read_bytes() == written
    assert "10 further questions" in run("--project", "10").stdout
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(InputError, match="is no page of"):
        write_page(tmp_path / "t", tmp_path / "mine.html", found)
    assert (tmp_path / "mine.html").read_text() == "mine"
    with pytest.raises(InputError, match="is a folder"):
        write_page(tmp_path / "t", tmp_path, found)


def hostile_rows(rng):
    rows = []
    for row in random_rows(rng, 60, tokens=False):
        if isinstance(row, Pair):
            problem = Problem(HOSTILE, f"{HOSTILE} {row.place}", HOSTILE, row.problem.answer_format)
            traces = (
                Trace(
                    mode,
                    (HOSTILE * int(rng.integers(1, 300))) if mode == "reasoning" else "",
                    HOSTILE,
                    "stop",
                    HOSTILE,
                    9,
                    10 ** int(rng.integers(1, 5)) if mode == "reasoning" else 0,
                    7,
                    verified=bool(rng.integers(2)),
                    verdict=HOSTILE,
                )
                for mode in MODES
            )
            row = Pair(problem, *traces, row.place, row.sample)
        rows.append(row)
    return rows


def test_nothing_that_a_model_wrote_is_markup(tmp_path, rng, capsys):
    write(tmp_path / "t", hostile_rows(rng))
    found = stats(tmp_path / "t", projected_questions=1000)
    html = render(tmp_path / "t", found)
    assert "<script" not in html and "<img" not in html and "\u202e" not in html and "\x07" not in html
    assert "&lt;script&gt;" in html
    show_stats(found)
    printed = capsys.readouterr().out
    assert "\u202e" not in printed and "\x07" not in printed and "\x00" not in printed


def test_the_page_in_a_browser(chromium, tmp_path, rng):
    """No request, no message, no script, no sideways scrolling on a phone; readable in light and in dark."""
    write(tmp_path / "t", hostile_rows(rng))
    write_page(tmp_path / "t", tmp_path / "page.html", stats(tmp_path / "t", projected_questions=1000))
    address = (tmp_path / "page.html").as_uri()
    with chromium(tmp_path) as browser:
        for width, scheme in ((360, "dark"), (1200, "light")):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": features})
            metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            browser.get(address)
            assert browser.get_log("browser") == []
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            assert browser.execute_script("return document.scripts.length + document.images.length") == 0
            assert len(browser.execute_script("return [...document.querySelectorAll('.panel svg')]")) >= 3
            ink, paper = browser.execute_script(
                "return ['--ink', '--paper'].map(n => getComputedStyle(document.documentElement).getPropertyValue(n))"
            )
            assert (ink > paper) == (scheme == "dark")
            assert browser.title != "pwned"
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        requests = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        urls = {r["request"]["url"] for r in requests if not r["documentURL"].startswith("chrome")}
        assert {url for url in urls if not url.startswith("data:")} <= {address}

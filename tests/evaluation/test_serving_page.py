"""The pages of a profile and of a comparison: numbers as measured, hostile names as text, no wider than a phone."""

import copy
import re
from html.parser import HTMLParser

import pytest

from distill.evaluation.serving.cost import Price
from distill.evaluation.serving.page import compare_page, profile_page
from distill.evaluation.serving.rounds import level
from distill.serve.load.shapes import ClosedLoop, OpenLoop
from distill.tasks.task import ACCURACY

HOSTILE = (
    "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\"> \u202eabc\x1b[31m"
)
LOADS = (ClosedLoop(concurrency=1), ClosedLoop(concurrency=8))
PRICE = {
    "hardware": "cpu-2core",
    "devices": 1,
    "threads": 1,
    "usd_per_hour_of_a_device": 0.08,
    "usd_per_second": 1e-5,
    "illustrative": True,
    "answers_per_month": 1e4,
    "months": 1.0,
    "fixed_usd": {"training": 1.0, "teacher": None, "given": 3.0},
}
CLIENT = {"processes": 1, "concurrency": 8, "tokens": 5, "measured": {"tokens_per_s": 1e4, "answers_per_s": 2e3}}


def kept(rng, ids, tokens, right):
    n, correct = len(ids), (rng.random(len(ids)) < right).astype(int).tolist()
    rate = float(rng.uniform(500, 2000))
    return {
        "requests": n + 1,
        "errors": {HOSTILE: 1},
        "rate": {"value": rate, "low": 0.9 * rate, "high": 1.1 * rate, "window_s": 1.0, "tokens": 100},
        "energy": {"reason": "not measurable here"},
        "energy_tokens": 0,
        "server": {"queue_s_mean": 0.001, "preemptions": 2.0},
        "answers": {
            "question": ids,
            "prompt": [5] * n,
            "output": rng.integers(1, tokens, n).tolist(),
            "thinking": [0] * n,
            "correct": correct,
            "unfinished": [False] * n,
            **{name: rng.uniform(0.001, 1, n).tolist() for name in ("ttft_s", "ttfat_s", "tpot_s", "e2e_s")},
        },
        "metrics": {"accuracy": {"correct": [float(c) for c in correct]}},
    }


def a_comparison(rng, names, task="add", right=0.7):
    levels = []
    for load in LOADS:
        rounds = []
        for number in range(3):
            ids = [f"q{number}-{i}" for i in range(20)]
            rounds.append({name: kept(rng, ids, 300 if i == 0 else 30, right) for i, name in enumerate(names)})
        price = Price(1e-5, fixed_usd=4.0, answers_per_month=1e4)
        levels.append(level(load, rounds, dict.fromkeys(names, price), names[-1], {"accuracy": ACCURACY}))
    return {
        "settings": {"rounds": 3, "note": HOSTILE},
        "reference": names[-1],
        "contenders": [{"name": n, "student": f"out/{n}", "thinking_budget": None, "price": PRICE} for n in names],
        "tasks": {task: {"levels": levels, "objective": None}},
        "client": CLIENT,
        "machine": {"processor": "x86", "cores": 2, "gpu": None},
    }


def a_profile(rng, task="add"):
    found = a_comparison(rng, ["one", "other"])["tasks"]["add"]
    levels = [
        one["contenders"]["one"] | {"load": one["load"], "concurrency": one["concurrency"]} for one in found["levels"]
    ]
    at_rate = copy.deepcopy(levels[0]) | {"load": {"name": "3 requests/s", **OpenLoop(rate=3).model_dump()}}
    empty = copy.deepcopy(at_rate) | {"concurrency": None, "completed": 0, "failed": 21}
    empty["tokens"] = {"per_answer": {"output": None, "thinking": None, "answer": None}}
    nothing = ("output_tokens_per_s", "answers_per_s", "ttft_s", "ttfat_s", "tpot_s", "e2e_s", "cost", "server")
    empty["measured"] |= dict.fromkeys(nothing)
    saturation = {"concurrency": 8, "answers_per_s": 3.0, "output_tokens_per_s": 90.0, "reached": True}
    search = {"saturation": saturation, "highest_rate": {"rate": 2.0, "goodput": 2.0, "failed_at": 2.2}, "ended": None}
    result = {"levels": [*levels, at_rate, empty], "settings": {"note": HOSTILE}, "client": CLIENT, "found": search}
    return {"threads": 1, "price": PRICE, "tasks": {task: result | {"stopped": HOSTILE}}}


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def test_a_comparison_says_what_was_measured(rng):
    result = a_comparison(rng, ["reasoning", "reasoning, budget 64", "ift"])
    page = Tags(compare_page(result, kicker="k"))
    for one in result["tasks"]["add"]["levels"]:
        factor = one["factors"]["reasoning"]["token_factor"]["value"]
        assert f"At {one['load']['name']}: reasoning's answers are {factor:.1f}x [" in page.text
    assert "script" not in page.tags and page.tags.count("svg") > 5
    assert "Energy: not measurable here." in page.text and "Joules" not in page.text
    assert "(illustrative)" in page.text and "$, all costs" in page.text


def test_nobody_is_right(rng):
    text = Tags(compare_page(a_comparison(rng, ["a", "b"], right=0.0), kicker="k")).text
    assert "at least" in text and "a correct one" not in text


@pytest.mark.parametrize("page", ["compare", "profile"])
def test_names_and_errors_are_text(rng, page):
    if page == "compare":
        html = compare_page(a_comparison(rng, [HOSTILE, "b"], task=HOSTILE), kicker=HOSTILE)
    else:
        html = profile_page(a_profile(rng, HOSTILE), student=HOSTILE, kicker=HOSTILE)
    tags = Tags(html)
    assert "script" not in tags.tags and "img" not in tags.tags
    assert "\u202e" not in html and "\x1b" not in html and re.search(r"nan\b", tags.text) is None


def test_a_profile_says_what_was_measured(rng):
    result = a_profile(rng)
    text = Tags(profile_page(result, student="student", kicker="k")).text
    assert "student: what an answer costs" in text and "3 requests/s" in text
    assert "Saturated by 90 tokens a second, 3 answers a second, at concurrency 8." in text
    assert "The objective: 2 requests a second keep it; 2.2 do not." in text
    result["tasks"]["add"]["found"]["highest_rate"] = {
        "rate": None,
        "goodput": None,
        "failed_at": None,
    }  # none was tried
    assert "The objective: " not in Tags(profile_page(result, student="student", kicker="k")).text
    assert "21 of 63 requests failed" in text and "The server was gone before the end" in text


def rows_of(html):
    """The cells of every row of every table, as counts: [[of a table]]."""
    return [
        [
            len(re.findall(r"<t[hd][ >]", row))
            for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)
            if "colspan" not in row
        ]
        for table in re.findall(r"<table.*?</table>", html, re.DOTALL)
    ]


def test_every_row_has_a_cell_for_every_column(rng):
    judged = a_profile(rng)
    for one in judged["tasks"]["add"]["levels"][:2]:
        one["measured"]["goodput"] = {"objective": {"e2e_s": 1.0}, "share": 0.5, "answers_per_s": 2.0}
    pages = [compare_page(a_comparison(rng, ["a", "b"]), kicker="k")]
    pages += [profile_page(result, student="s", kicker="k") for result in (a_profile(rng), judged)]
    for html in pages:
        tables = rows_of(html)
        assert len(tables) >= 4 and all(len(set(rows)) == 1 for rows in tables), tables
    assert (
        "the objective is E2E 1 s" in pages[2]
        and "50.0" in Tags(pages[2]).text
        and "Within the objective" not in pages[1]
    )


def test_what_no_server_says_has_no_column(rng):
    result = a_profile(rng)
    text = Tags(profile_page(result, student="s", kicker="k")).text
    assert "Queue" in text and "Preemptions" in text and "MFU" not in text and "KV cache" not in text
    result["tasks"]["add"]["levels"][0]["measured"]["server"]["kv_cache_usage"] = {"mean": 0.25, "max": 0.5}
    assert "KV cache" in Tags(profile_page(result, student="s", kicker="k")).text


def test_it_says_what_answered_and_whether_the_clients_kept_up(rng):
    result = a_profile(rng) | {"engine": "vllm 0.32.0", "machine": {"cores": 2, "gpu": None}, "dtype": "float32"}
    text = Tags(profile_page(result, student="s", kicker="k")).text
    assert "vllm 0.32.0" in text and "float32" in text and "sent 5" not in text
    assert "10,000 a month, 1 month" in text and "1 months" not in text
    result["tasks"]["add"]["levels"][2]["measured"]["late_s"] = {"mean": 1, "p50": 0.5, "p90": 1, "p99": 1, "count": 9}
    there = result | {"endpoint": {"url": "http://there/v1", "model": HOSTILE}, "engine": None, "machine": None}
    html = profile_page(there, student="s", kicker="k")
    assert "3 requests/s: half of the requests were sent 500 ms late or more" in Tags(html).text
    assert "http://there/v1" in html and "script" not in Tags(html).tags


def test_in_a_browser(rng, chromium, tmp_path):
    """No wider than a phone, in both themes; nothing is asked for, nothing runs."""
    pages = {
        "compare": compare_page(a_comparison(rng, [HOSTILE, "a" * 80, "b"]), kicker="k"),
        "profile": profile_page(a_profile(rng), student="s", kicker="k"),
    }
    with chromium(tmp_path) as browser:
        for name, html in pages.items():
            (tmp_path / f"{name}.html").write_text(html)
            browser.get((tmp_path / f"{name}.html").as_uri())
            assert browser.title != "pwned"
            paper = set()
            for theme in ("light", "dark"):
                media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
                browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
                for width in (360, 1280):
                    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
                    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                    wide = (
                        "return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre')"
                        f" && e.getBoundingClientRect().right > {width} + 1).map(e => e.outerHTML.slice(0, 120))"
                    )
                    assert browser.execute_script(wide) == []
                    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
                paper.add(browser.execute_script("return getComputedStyle(document.documentElement).backgroundColor"))
            assert len(paper) == 2
        said = [entry["message"] for entry in browser.get_log("browser")]
        assert not said, said

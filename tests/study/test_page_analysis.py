"""The report of a large study with everything in it, and of one with any of it missing.

The results are made up here: 5 sizes x 9 arms, mixed and sequential, x 18 tasks; none of them ever existed.
"""

import copy
import csv
import io
import json
import random
import re
import time
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from distill.errors import InputError
from distill.study.page import render, render_markdown
from distill.study.page.recommended import recommended
from distill.study.page.threats import checks
from distill.study.report import write_report

HOSTILE = "</script><img src=x onerror=\"document.title='pwned'\"> | `a` *b* [c](javascript:d) \u202e\x07"
SIZES = {"0.5b": 5e8, "1.5b": 1.5e9, "3b": 3e9, "7b": 7e9, "14b": 14e9}
ARMS = ["ift", "reasoning", *(f"{order}:{R}" for order in ("mixed", "sequential") for R in (0.25, 0.5, 0.75))]
DOMAINS = {"general": 6, "math": 6, "law": 2, "code": 2, "physics": 2}
PAIRS = [("reasoning", "ift"), ("sequential0.25", "ift"), ("reasoning", "ift-flops_matched")]
KINDS = ("teacher", "base", "majority", "router", "oracle")


def interval(value: float, half: float, low: float = -1e9, high: float = 1e9) -> dict:
    return {"value": value, "low": max(low, value - half), "high": min(high, value + half)}


def arm_name(arm: str) -> str:
    return arm.replace(":", "")


def large_results(seed: int = 0, *, tasks: int = 18) -> dict:
    rng = random.Random(seed)
    domains = [domain for domain, n in DOMAINS.items() for _ in range(n)][:tasks]
    names = [f"benchmark-{domain}-{i}" for i, domain in enumerate(domains)]
    formats = [("open", "choice")[i % 2] for i in range(tasks)]
    hard = {name: rng.uniform(0.3, 0.9) for name in names}

    def score(task: str, size: str, ratio: float) -> float:
        strength = 0.12 * list(SIZES).index(size)
        return min(
            0.97, max(0.02, hard[task] * (0.45 + strength) + 0.25 * ratio * (strength - 0.1) + rng.uniform(-0.02, 0.02))
        )

    cells = []
    for size, parameters in SIZES.items():
        for arm in [*ARMS, "ift-flops_matched"]:
            ratio = (
                {"ift": 0.0, "reasoning": 1.0, "ift-flops_matched": 0.0}.get(arm)
                if ":" not in arm
                else float(arm.split(":")[1])
            )
            seeds = [0, 1, 2] if parameters < 2e9 else [0]
            of_tasks = {}
            for name in names:
                value, thinking = score(name, size, ratio), 1500.0 * ratio * rng.uniform(0.5, 1.5)
                tokens = {"prompt": 150.0, "thinking": thinking, "answer": 120.0, "total": 270.0 + thinking}
                flops = 2 * parameters * tokens["total"]
                of_tasks[name] = {
                    "metrics": {"accuracy": interval(value, 0.03, 0, 1) | {"per_seed": [value] * len(seeds)}},
                    "n_questions": 1000,
                    "unfinished_rate": 0.02 * ratio,
                    "think_rate": ratio,
                    "accuracy_finished": value,
                    "tokens_per_answer": tokens,
                    "inference": {"flops_per_answer": flops, "flops_per_correct": flops / value},
                }
            cells.append(
                {
                    "id": f"{size}-{arm_name(arm)}",
                    "arm": arm.removesuffix("-flops_matched"),
                    "size": size,
                    "match": "flops" if arm.endswith("matched") else "samples",
                    "answers": "teacher",
                    "traces": "general",
                    "seeds": seeds,
                    "parameters": parameters,
                    "learning_rate": 1e-5,
                    "folder": f"students/{size}-{arm_name(arm)}-seed0-0123456789ab",
                    "training": {"flops": 6 * parameters * 1e9, "tokens": 1e9, "examples": 10**6, "steps": 40000},
                    "tasks": of_tasks,
                    "serving": [],
                }
            )

    def derived(kind: str, size: str | None, of: dict) -> dict:
        entry = {"id": f"{size}-{kind}" if size else kind, "kind": kind, "size": size, "model": "a model", "seeds": []}
        entry |= {"arm": "ift"} if kind == "majority" else {}
        entry |= {"thinks": f"{size}-reasoning", "direct": f"{size}-ift"} if kind in ("router", "oracle") else {}
        entry["tasks"] = copy.deepcopy(of["tasks"])
        for task in entry["tasks"].values():
            lift = {"teacher": 0.2, "base": -0.1, "majority": 0.03, "router": 0.04, "oracle": 0.15}[kind]
            value = min(0.99, max(0.01, task["metrics"]["accuracy"]["value"] + lift))
            task["metrics"]["accuracy"] = interval(value, 0.03, 0, 1) | {"per_seed": [value]}
            if kind in ("router", "oracle"):
                task["routing"] = {
                    "thinks_rate": 0.4,
                    "over_always_points": interval(1, 2),
                    "over_never_points": interval(5, 2),
                }
        return entry

    by_id = {cell["id"]: cell for cell in cells}
    comparators = [derived("teacher", None, by_id["14b-reasoning"])]
    comparators += [
        derived(kind, size, by_id[f"{size}-{'reasoning' if kind == 'router' else 'ift'}"])
        for size in SIZES
        for kind in KINDS[1:]
    ]

    contrasts = []
    for treatment, control in PAIRS:
        for size in SIZES:
            for name in names:
                sides = [by_id[f"{size}-{side}"]["tasks"][name] for side in (treatment, control)]
                value = 100 * (sides[0]["metrics"]["accuracy"]["value"] - sides[1]["metrics"]["accuracy"]["value"])
                verdict = "pays" if value > 5 else "does not pay" if value < 1 else "cannot tell"
                contrasts.append(
                    {
                        "id": f"{name}/{size}/accuracy/{treatment}-vs-{control}",
                        "task": name,
                        "size": size,
                        "metric": "accuracy",
                        "treatment": f"{size}-{treatment}",
                        "control": f"{size}-{control}",
                        "matched_on": "flops" if control.endswith("matched") else "samples",
                        "difference_points": interval(value, 3),
                        "p_value": 0.01,
                        "p_holm": 0.2,
                        "detectable_points": 4.0,
                        "per_seed": [value],
                        "n_seeds": 1,
                        "n_questions": 1000,
                        "token_factor": 8.0,
                        "flops_factor": 7.0,
                        "training_tokens_factor": 5.0,
                        "verdict": verdict,
                        "sentence": f"On {name}, in these trained students, {value:+.1f} points of accuracy: {verdict}.",
                        "primary": size == "7b" and (treatment, control) == PAIRS[0],
                    }
                )
    verdicts = [
        {"task": c["task"], "verdict": c["verdict"], "sentence": c["sentence"], "contrast": c["id"]}
        for c in contrasts
        if c["primary"]
    ]
    results = {
        "schema": "distill-results/1",
        "title": "a large study (made up)",
        "question": "When does reasoning matter?",
        "distill_version": "0.1.0",
        "command": "distill study run presets/large.yaml --out out/large",
        "preset": {
            "published": "when-does-reasoning-matter",
            "traces": [{"name": "general", "import": {"file": "general.jsonl"}}],
            "students": [{"name": s, "student": f"org/{s}"} for s in SIZES],
            "training": {},
        },
        "environment": {"python": "3.11"},
        "hardware": {"name": "h200", "price_usd_per_hour": 3.0},
        "margin_points": 2.0,
        "confidence": 0.95,
        "teacher": {
            "name": "big",
            "cost_usd": 1234.5,
            "note": "",
            "sets": [
                {
                    "name": "general",
                    "by": "big",
                    "pairs": 10**6,
                    "output_tokens": {"reasoning": 2 * 10**9, "ift": 10**8},
                    "cost_usd": 1234.5,
                }
            ],
        },
        "tasks": [
            {
                "name": n,
                "answer_format": f,
                "metrics": ["accuracy"],
                "questions": 1000,
                "distinct_prompts": 1000,
                "description": "",
            }
            for n, f in zip(names, formats, strict=True)
        ],
        "cells": cells,
        "comparators": comparators,
        "contrasts": contrasts,
        "verdicts": verdicts,
        "examples": [],
        "failures": [],
    }
    return results | {
        "analysis": made_up_analysis(
            results, dict(zip(names, domains, strict=True)), dict(zip(names, formats, strict=True))
        )
    }


def made_up_analysis(results: dict, domains: dict[str, str], formats: dict[str, str]) -> dict:
    scored = [*results["cells"], *results["comparators"]]
    names = [task["name"] for task in results["tasks"]]
    frontiers = []
    for task in [*names, "all"]:
        for cost in ("tokens", "flops"):
            points = []
            for entry in scored:
                of = [entry["tasks"][name] for name in (names if task == "all" else [task])]
                spent = sum(
                    t["tokens_per_answer"]["total"] if cost == "tokens" else t["inference"]["flops_per_answer"]
                    for t in of
                ) / len(of)
                right = sum(t["metrics"]["accuracy"]["value"] for t in of) / len(of)
                points.append(
                    {
                        "id": entry["id"],
                        "kind": entry.get("kind") or "cell",
                        "size": entry.get("size"),
                        "arm": entry.get("arm"),
                        "think": None,
                        "mode": None,
                        "thinking_budget": None,
                        "cost": interval(spent, 0.05 * spent),
                        "accuracy": interval(right, 0.03, 0, 1),
                        "on_frontier": False,
                        "stability": 0.5,
                    }
                )
            steps, best = {"id": [], "cost": [], "accuracy": [], "low": [], "high": []}, -1.0
            for p in sorted((p for p in points if p["kind"] != "oracle"), key=lambda p: p["cost"]["value"]):
                if p["accuracy"]["value"] > best:
                    best = p["accuracy"]["value"]
                    p["on_frontier"] = True
                    for key, value in zip(
                        steps, (p["id"], p["cost"]["value"], best - 0.01, best - 0.03, best + 0.02), strict=True
                    ):
                        steps[key].append(value)
            frontiers.append(
                {
                    "task": task,
                    "cost": cost,
                    "points": points,
                    "frontier": steps,
                    "left_out": ["silent-teacher"] if cost == "flops" else [],
                }
            )
    pairs = {}
    for c in results["contrasts"]:
        key = (c["treatment"].removeprefix(f"{c['size']}-"), c["control"].removeprefix(f"{c['size']}-"))
        pairs.setdefault(key, {}).setdefault(c["task"], []).append(c)

    def by_kind(field: str, kinds: dict[str, str]) -> list[dict]:
        found = []
        for (treatment, control), of in pairs.items():
            for size in SIZES:
                for kind in dict.fromkeys(kinds.values()):
                    tasks = [name for name in names if kinds[name] == kind]
                    value = sum(
                        c["difference_points"]["value"] for t in tasks for c in of[t] if c["size"] == size
                    ) / len(tasks)
                    found.append(
                        {
                            field: kind,
                            "size": size,
                            "treatment": treatment,
                            "control": control,
                            "tasks": tasks,
                            "difference_points": interval(value, 2),
                        }
                    )
        return found

    priced = {"usd_per_correct": interval(0.0021, 0.001), "pays": "above", "reason": None, "at_least_usd": None}
    once = {"training": {"treatment": 900.0, "control": 200.0}, "teacher": {"treatment": 1100.0, "control": 134.5}}
    spread = [{"answers": N} | priced for N in (1_000, 10_000, 100_000, 1_000_000, 10_000_000)]
    outcomes = [
        {
            "measured": priced
            | {
                "usd_per_answer": {"treatment": 0.0004, "control": 0.00005},
                "one_off_usd": once,
                "with_training": spread,
                "with_training_and_teacher": spread,
            },
            "reason": None,
        },
        {"measured": None, "reason": "an answer of one of both has no price"},
        {
            "measured": {
                "usd_per_correct": None,
                "pays": None,
                "reason": "the difference in accuracy may be nothing",
                "at_least_usd": 0.003,
            },
            "reason": None,
        },
        {
            "measured": {
                "usd_per_correct": None,
                "pays": "never",
                "reason": "right less often and no cheaper",
                "at_least_usd": None,
            },
            "reason": None,
        },
    ]
    return {
        "frontier": frontiers,
        "equal_cost": [
            {
                "task": task,
                "id": cell["id"],
                "cost": cost,
                "at": 1e6,
                "between": ["0.5b-ift", "1.5b-ift"],
                "control_accuracy": 0.5,
                "difference_points": interval(2, 3),
                "beyond": False,
                "reason": None,
            }
            for task in [*names, "all"]
            for cell in results["cells"]
            if cell["arm"] != "ift"
            for cost in ("tokens", "flops", "training_flops")
        ],
        "scaling": [
            {
                "task": task,
                "treatment": treatment,
                "control": control,
                "sizes": [
                    {"size": c["size"], "parameters": SIZES[c["size"]], "difference_points": c["difference_points"]}
                    for c in of[task]
                ],
                "per_doubling_points": interval(3, 1),
                "pays_from_parameters": interval(2e9, 1e9) if i % 2 else None,
                "reason": None if i % 2 else "the gain may not grow with size",
            }
            for (treatment, control), of in pairs.items()
            for i, task in enumerate(names)
        ],
        "by_format": by_kind("format", formats),
        "by_domain": by_kind("domain", domains),
        "by_suite": by_kind("suite", {name: f"{domains[name]}/{formats[name]}" for name in names}),
        "lengths": [
            {
                "cell": cell["id"],
                "task": task,
                "right": {"n": 700, "mean": 900.0, "p50": 800.0, "p90": 2000.0},
                "wrong": {"n": 300, "mean": 1500.0, "p50": 1400.0, "p90": 4000.0},
                "ratio": interval(1.7, 0.2),
                "ratio_finished": interval(1.5, 0.2),
            }
            for cell in results["cells"]
            for task in names
        ],
        "seed_sd": [
            {
                "cell": cell["id"],
                "task": task,
                "n_seeds": 3,
                "sd_points": {"value": 1.5, "low": 0.8, "high": 9.4},
                "of_questions_points": 0.9,
                "think_rate_per_seed": [0.2, 0.3, 0.9],
            }
            for cell in results["cells"]
            if len(cell["seeds"]) > 1
            for task in [*names, "all"]
        ],
        "seed_sd_of_kinds": [
            {
                "kind": kind,
                "task": "all",
                "cells": [c["id"] for c in results["cells"] if c["arm"].startswith(start) and len(c["seeds"]) > 1],
                "freedom": 12,
                "sd_points": interval(sd, 0.4),
                "of_questions_points": 0.9,
                "over_pure": None if kind == "pure" else interval(sd / 1.2, 0.2),
            }
            for kind, start, sd in (
                ("pure", ("ift", "reasoning"), 1.2),
                ("mixed", "mixed", 2.4),
                ("sequential", "seq", 1.3),
            )
        ],
        "break_even": [
            {"task": task, "size": size, "treatment": treatment, "control": control} | copy.deepcopy(outcomes[i % 4])
            for (treatment, control) in pairs
            for size in SIZES
            for i, task in enumerate(names)
        ],
        "interactions": [
            {
                "task": names[0],
                "metric": "accuracy",
                "treatment": "reasoning",
                "control": "ift",
                "students": ["0.5b", "7b"],
                "difference_points": interval(-9, 3),
                "p_value": 0.01,
                "p_holm": 0.02,
                "n_seeds": 1,
                "n_questions": 1000,
                "sentence": "Reasoning against ift gains less in 0.5b than in 7b.",
            }
        ],
    }


@pytest.fixture(scope="module")
def rendered() -> tuple[str, float]:
    started = time.process_time()
    return render(large_results()), time.process_time() - started


@pytest.fixture(scope="module")
def html(rendered) -> str:
    return rendered[0]


@pytest.fixture(scope="module")
def made_in(rendered) -> float:
    return rendered[1]


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without their pictures, which take a second or two to draw."""
    from markupsafe import Markup

    from distill.report import bars, factors, forest, lines, scatter
    from distill.report.blocks import Panel

    for module in (bars, factors, forest, lines, scatter):
        monkeypatch.setattr(
            module, "draw", lambda paint, *, title, description, height: Panel(Markup("<svg/>"), title, description)
        )


class Elements(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def data(html: str) -> dict[str, list[dict]]:
    links = {a["download"]: a["href"] for tag, a in Elements(html).tags if tag == "a" and "download" in a}
    return {name: list(csv.DictReader(io.StringIO(unquote(href.split(",", 1)[1])))) for name, href in links.items()}


def test_a_large_study_stays_small_and_keeps_its_order(html):
    assert len(html) < 5_000_000
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", html)
    assert headings == [
        "Verdict",
        "Frontier",
        "What to serve",
        "Where it gains",
        "As published",
        "What it costs",
        "Numbers",
        "How it was made",
        "Threats to validity",
    ]
    assert 10 < html.count('class="panel"') < 40  # pictures, not walls of them
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    text = " ".join(Elements(re.sub(r"<style.*?</style>", "", html, flags=re.S)).text)
    assert "None" not in text and "nan" not in text
    for cell in large_results()["cells"]:
        assert cell["id"] in text


def test_what_a_large_study_does_not_draw_is_in_its_data(html):
    results, found = large_results(), data(html)
    assert set(found) == {
        "contrasts.csv",
        "frontier.csv",
        "frontier_tokens.csv",
        "tokens.csv",
        "cost_factors.csv",
        "scaling.csv",
        "published.csv",
    }
    assert len(found["contrasts.csv"]) == len(results["contrasts"])
    scored = len(results["cells"]) + len(results["comparators"])
    assert len(found["tokens.csv"]) == 18 * scored
    for name, cost in (("frontier.csv", "flops"), ("frontier_tokens.csv", "tokens")):
        entries = {e["task"]: e for e in results["analysis"]["frontier"] if e["cost"] == cost}
        assert len(entries) == 19
        for task, entry in entries.items():
            of_task = [row for row in found[name] if row["task"] == task]
            points = {row["cell"]: row for row in of_task if row["row"] == "point"}
            assert len(points) == scored
            for p in entry["points"]:
                row = points[p["id"]]
                assert (
                    float(row[f"{cost}_per_answer"]) == p["cost"]["value"]
                    and float(row["value"]) == p["accuracy"]["value"]
                )
                assert row["on_frontier"] == str(p["on_frontier"])
                assert row["comparator"] == ("" if p["kind"] == "cell" else p["kind"])
            steps = [(float(row[f"{cost}_per_answer"]), float(row["low"])) for row in of_task if row["row"] != "point"]
            assert steps == list(zip(entry["frontier"]["cost"], entry["frontier"]["low"], strict=True))


def test_a_page_stands_without_any_part_of_the_analysis(undrawn):
    results = large_results(tasks=4)
    for part in results["analysis"]:
        for empty in ({}, {part: None}, {part: []}, {part: [{}]}, {part: [None]}):
            analysis = {name: value for name, value in results["analysis"].items() if name != part} | empty
            render(results | {"analysis": analysis})
    for analysis in (None, {}, [], "none"):
        html = render(results | {"analysis": analysis})
        assert "Accuracy against the cost of an answer" in html and "What to serve" in html
    for name in ("comparators", "verdicts", "contrasts", "cells", "teacher", "preset", "margin_points"):
        render(results | {name: None})
    render({name: value for name, value in results.items() if name != "analysis"})


@pytest.mark.parametrize("again", range(4))
def test_nulls_anywhere_in_the_analysis_are_dashes(undrawn, again):
    seed = random.getrandbits(32)
    print(f"seed {seed}")  # shown when it fails
    rng, results = random.Random(seed), large_results(seed, tasks=rng_tasks(seed))

    def prune(value):
        for key in list(value):
            if key in ("id", "task", "cell", "kind"):
                continue
            if rng.random() < 0.1:
                value[key] = None
            elif isinstance(value[key], dict):
                prune(value[key])
            elif isinstance(value[key], list):
                for item in value[key]:
                    if isinstance(item, dict):
                        prune(item)

    for entries in results["analysis"].values():
        for entry in entries:
            prune(entry)
    html = render(results)
    text = "".join(Elements(re.sub(r"<details class=.code.*?</details>|<style.*?</style>", "", html, flags=re.S)).text)
    assert not re.search(r"\bnan\b|\binf\b", text)


def rng_tasks(seed: int) -> int:
    return 2 + seed % 9


def test_hostile_names_stay_text(undrawn):
    def poison(value):
        if isinstance(value, dict):
            kept = {
                "schema",
                "metric",
                "arm",
                "match",
                "task",
                "verdict",
                "answer_format",
                "kind",
                "cost",
                "published",
                "pays",
            }
            return {k: v if k in kept else poison(v) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return f"{value}{HOSTILE}" if isinstance(value, str) else value

    results = large_results(tasks=3)
    results["analysis"] = poison(results["analysis"])
    for result in (results, poison(large_results(tasks=3))):
        html = render(result)
        assert not {tag for tag, _ in Elements(html).tags} & {"script", "img"}
        assert "document.title" in html and "\u202e" not in html and "\x07" not in html
        markdown = render_markdown(result)
        assert not re.search(r"(?<!\\)<|\u202e|\x07", re.sub(r"^```.*?^```$", "", markdown, flags=re.S | re.M))


def test_what_others_published_stands_beside_what_has_the_same_names(undrawn):
    results = large_results()
    rows = data(render(results))["published.csv"]
    assert len(rows) == 40
    (row,) = (r for r in rows if (r["corpus"], r["suite"], r["size"]) == ("general", "Math-MC", "7B"))
    assert (row["published_ift"], row["published_reasoning"]) == ("63.9", "85.7")
    tasks = [t["name"] for t in results["tasks"] if "-math-" in t["name"] and t["answer_format"] == "choice"]
    cells = {cell["id"]: cell for cell in results["cells"]}
    for arm in ("ift", "reasoning"):
        scores = [cells[f"7b-{arm}"]["tasks"][task]["metrics"]["accuracy"]["value"] for task in tasks]
        assert float(row[arm]) == pytest.approx(100 * sum(scores) / len(scores))
    (tested,) = (
        e
        for e in results["analysis"]["by_suite"]
        if (e["suite"], e["size"], e["treatment"], e["control"]) == ("math/choice", "7b", "reasoning", "ift")
    )
    assert float(row["low"]) == tested["difference_points"]["low"]
    assert all(r["reasoning"] == "" for r in rows if r["corpus"] == "math")  # no arm here saw that corpus
    # Of other sizes nothing maps, and another publication than the known ones says nothing.
    for cell in results["cells"]:
        cell["size"] = f"{cell['size']}-other"
    assert "its figures stand alone" in render(results)
    assert "As published" not in render(results | {"preset": {"published": "another paper"}})
    one_size = render(large_results(tasks=3) | {"preset": {"published": "reason-or-not"}})
    assert "30.0 → 77.0" in one_size and "published.csv" not in one_size


def test_recommended_is_the_cheapest_within_the_margin(undrawn):
    results = large_results(tasks=2)
    task = results["tasks"][1]["name"]
    results["verdicts"] = [{"task": task, "verdict": "pays", "sentence": "", "contrast": ""}]

    def point(name, cost, accuracy, kind="cell"):
        return {"id": name, "kind": kind, "size": "3b", "cost": {"value": cost}, "accuracy": {"value": accuracy}}

    points = [point("3b-ift", 1.0, 0.5), point("3b-reasoning", 5.0, 0.89), point("7b-reasoning", 9.0, 0.9)]
    points += [point("7b-ift", 4.0, 0.871), point("0.5b-router", 2.0, 0.95, "router")]
    results["analysis"]["frontier"] = [{"task": task, "cost": "flops", "points": points, "frontier": None}]
    results["cells"] = [c | {"folder": f"students/it's {c['id']}"} for c in results["cells"]]
    html = "".join(Elements(render(results)).text)
    assert "vllm serve 'students/it'\"'\"'s 3b-reasoning' --served-model-name 3b-reasoning" in html
    assert "whose verdict is “pays”" in html
    results["margin_points"] = 3.0
    assert "--served-model-name 7b-ift" in "".join(Elements(render(results)).text)
    results["preset"]["training"] = {"lora_rank": 48}
    served = "".join(Elements(render(results)).text)
    assert "vllm serve org/7b --enable-lora --lora-modules '7b-ift=students/it" in served
    assert "--max-lora-rank 64" in served  # the least that vLLM takes and that is enough
    results["preset"]["students"][3]["training"] = {"merge": True}
    assert "--enable-lora" not in render(results)
    for cell in results["cells"]:
        del cell["folder"]
    assert "vllm serve" not in render(results) and recommended(results)


def test_prices_of_right_answers_are_sentences_with_one_unit(undrawn):
    results = large_results(tasks=4)
    said = " ".join(Elements(render(results)).text)
    names = [task["name"] for task in results["tasks"]]
    for sentence in (
        f"On {names[0]} at 7b, reasoning pays against ift where right answers are worth more than $2.10 a thousand (95\u00a0% "
        "interval $1.10 to $3.10), training and teacher left out.",
        f"On {names[1]} at 7b, there is no break-even price: an answer of one of both has no price.",
        "the difference in accuracy may be nothing; if it pays, then where right answers are worth more than $3.00 a thousand.",
        "reasoning never pays against ift: it is right less often and no cheaper.",
    ):
        assert sentence in said


def test_the_cost_of_a_verdicts_treatment_comes_apart_into_factors(undrawn):
    results = large_results(tasks=3)
    cells = {cell["id"]: cell for cell in results["cells"]}
    for i, cell in enumerate(results["cells"]):
        cell["training"]["measured"] = {"usd": 1.0 + i}
        for task in cell["tasks"].values():
            task["inference"]["measured"] = {
                "usd_per_1000_answers": 2.0 + i,
                "usd_per_1000_correct": None,
                "seconds_per_answer": 0.0,
            }
    rows = data(render(results))["cost_factors.csv"]
    found = {(row["task"], row["factor"]): float(row["value"]) for row in rows}
    for contrast in (c for c in results["contrasts"] if c["primary"]):
        task, sides = contrast["task"], [cells[contrast[side]] for side in ("treatment", "control")]
        paid = [side["tasks"][task]["inference"]["measured"]["usd_per_1000_answers"] for side in sides]
        trained = [side["training"]["measured"]["usd"] for side in sides]
        assert found.pop((task, "price")) == paid[0] / paid[1]
        assert found.pop((task, "training price")) == trained[0] / trained[1]
        for name in ("token", "flops", "training_tokens"):
            label = {"token": "output tokens", "flops": "FLOPs", "training_tokens": "training tokens"}[name]
            assert found.pop((task, label)) == contrast[f"{name}_factor"]
    assert not found  # what is not known, or nothing, is no factor


def test_what_a_router_does_is_said_where_verdicts_are_read(undrawn):
    results = large_results(tasks=3)
    text = " ".join(Elements(render(results)).text)
    for task in results["tasks"]:
        assert f"On {task['name']}, 7b-router thinks about 40\u00a0% of the questions" in text
    assert "+5.0 points [+3.0, +7.0] against never thinking, +1.0 points [−1.0, +3.0] against always." in text
    assert "of 7b-reasoning and 7b-ift" in text
    assert "what its answers cost in FLOPs is not known: silent-teacher." in text


def test_wrong_values_in_the_analysis_are_drawn_or_refused_in_one_line(tmp_path, undrawn):
    seed = random.getrandbits(32)
    print(f"seed {seed}")  # shown when it fails
    rng, results = random.Random(seed), large_results(tasks=2)
    for _ in range(15):
        broken = results | {"analysis": copy.deepcopy(results["analysis"])}
        holder = broken["analysis"]
        while True:
            key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
            if not isinstance(holder[key], dict | list) or not holder[key] or rng.random() < 0.2:
                break
            holder = holder[key]
        holder[key] = rng.choice([None, 7, -1.5, "text", [], {}, [[]], {"a": []}, True])
        (tmp_path / "results.json").write_text(json.dumps(broken))
        try:
            write_report(tmp_path)
        except InputError as error:
            assert "\n" not in str(error)


def test_threats_say_what_the_teacher_wrote_and_what_was_not_checked():
    results = large_results(tasks=2)
    found = {check.title: check for check in checks(results)}
    assert (
        "1,000,000 pairs by big, 2 G tokens of reasoning and 100 M tokens of ift for $1,234.50"
        in found["The teacher"].text
    )
    assert found["Contamination"].concern and "distill traces check" in found["Contamination"].text
    assert "pretrained students" in found["Contamination"].text
    own = results | {"preset": {"traces": None, "students": [{"name": "tiny", "student": "tiny"}]}}
    (found_own,) = (check for check in checks(own) if check.title == "Contamination")
    assert not found_own.concern and "none is both" in found_own.text and "pretrained" not in found_own.text


def test_declared_interactions_stand_among_the_verdicts(undrawn):
    results = large_results(tasks=2)
    html = render(results)
    said = results["analysis"]["interactions"][0]["sentence"]
    assert 0 < html.index(said) < html.index("Differences behind the verdicts")


def test_contrasts_that_are_not_drawn_are_counted(undrawn):
    results = large_results(tasks=1)
    results["contrasts"] += [c | {"id": f"{c['id']}-again", "primary": False} for c in results["contrasts"]]
    left = 2 * 15 - 12  # three contrasts in five sizes, twice
    assert f"The other {left} contrasts are in the data" in "".join(Elements(render(results)).text)


def test_students_of_one_size_have_no_scaling(undrawn):
    results = large_results(tasks=2)
    for cell in results["cells"]:
        cell["parameters"] = 1e9
    text = "".join(Elements(render(results)).text)
    assert "Gain by student" in text and "0.5bpoints [interval]" in text.replace("\n", "").replace("  ", "")
    for said in ("Gain by size", "The gain by size of the student", "Per doubling", "From which size on"):
        assert said not in text
    assert "Gain by answer format" not in text  # of one task each: the same again


def test_what_is_spent_once_is_said_with_the_teacher_and_without(undrawn):
    results = large_results(tasks=rng_tasks(5))
    text = " ".join("".join(Elements(render(results)).text).split())
    assert text.count("Over 10,000 answers") == 2 and text.count("with training and teacher") == 2
    assert "The teachertreatment; control" in text
    for entry in results["analysis"]["break_even"]:
        if entry["measured"] and "one_off_usd" in entry["measured"]:
            entry["measured"]["one_off_usd"]["teacher"] = {"treatment": 0.0, "control": 0.0}
    text = " ".join("".join(Elements(render(results)).text).split())
    assert "with training and teacher" not in text and "The teachertreatment" not in text


def test_how_far_seeds_fall_apart_is_on_the_page(undrawn):
    results = large_results(tasks=rng_tasks(6))
    text = " ".join("".join(Elements(render(results)).text).split())
    assert "How far training seeds fall apart" in text and "20, 30, 90" in text
    (found,) = (check for check in checks(results) if check.title == "Stability of mixed arms")
    assert (
        found.concern
        and "of mixed arms differ with a standard deviation of 2.4 [2.0, 2.8] points, 2.0× [1.80, 2.2]" in found.text
    )
    (mixed,) = (e for e in results["analysis"]["seed_sd_of_kinds"] if e["kind"] == "mixed")
    mixed["over_pure"] = interval(1.1, 0.3)
    (found,) = (check for check in checks(results) if check.title == "Stability of mixed arms")
    assert not found.concern
    results["analysis"].pop("seed_sd_of_kinds")
    for cell in results["cells"]:
        cell["seeds"] = [0]
    (found,) = (check for check in checks(results) if check.title == "Stability of mixed arms")
    assert found.concern and "is not known" in found.text


def test_graders_that_disagree_are_a_threat():
    results = large_results(tasks=2)
    said = {"checker": "exact", "no_end": 0, "second_checker": "normalised", "n_answers": 200, "n_disagree": 0}
    said |= {"only_second_right": 0, "judged": 0, "unanimous": None}
    for entry in [*results["cells"], *results["comparators"]]:
        for task in entry["tasks"].values():
            task["grading"] = dict(said)
    n = 2 * 200 * len([*results["cells"], *results["comparators"]])
    graders = lambda: next(check for check in checks(results) if check.title == "Graders")  # noqa: E731
    assert not graders().concern and f"disagrees with 0 of {n:,} grades" in graders().text
    cell = results["cells"][1]
    name = results["tasks"][1]["name"]
    cell["tasks"][name]["grading"] |= {"n_disagree": 30, "only_second_right": 20}
    assert (
        graders().concern
        and f"calls 20 right that were graded wrong; the most is 15.0\u00a0% ({cell['id']} on {name})" in graders().text
    )
    for entry in [*results["cells"], *results["comparators"]]:
        entry["tasks"][name]["grading"] |= {"n_answers": 0, "n_disagree": 0, "second_checker": None}
    assert not graders().concern and f"Of {name} one checker's word is all there is." in graders().text
    cell["tasks"][name]["grading"] |= {"judged": 50, "unanimous": 0.8, "no_end": 3}
    assert (
        graders().concern
        and "80.0\u00a0%" in graders().text
        and "On 3 answers the checker came to no end" in graders().text
    )


def test_what_is_corrected_and_what_is_not_is_said():
    results = large_results(tasks=2)
    looks = lambda: next(check for check in checks(results) if check.title == "How many comparisons")  # noqa: E731
    for contrast in results["contrasts"]:
        contrast["p_holm"] = 0.01
    assert not looks().concern and f"{len(results['contrasts'])} were declared, of which 2 decide" in looks().text
    held = results["contrasts"][0]
    held.update(p_holm=0.08, verdict="cannot tell", difference_points=interval(20, 3))
    assert looks().concern and f"It turned “pays” into “cannot tell” in {held['id']}." in looks().text


def test_learning_rates_that_seeds_chose_themselves(undrawn):
    results = large_results(tasks=1)
    results["cells"][0]["learning_rate"] = [1e-5, 3e-5, 1e-5]
    assert "1e−5 / 3e−5" in "".join(Elements(render(results)).text)
    (found,) = (check for check in checks(results) if check.title == "Learning rates")
    assert f"3e−5: {results['cells'][0]['id']}" in found.text


def test_the_report_is_written_as_markdown_too(tmp_path, undrawn):
    results = large_results(tasks=3)
    (tmp_path / "results.json").write_text(json.dumps(results))
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# When does reasoning matter?\n") and "<svg" not in text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings[0] == "## Verdict" and headings[-1] == "## Threats to validity"
    for verdict in results["verdicts"]:
        assert verdict["sentence"].split(":")[0].replace("-", "") in text.replace("\\", "").replace("-", "").replace(
            "−", ""
        )
    columns = None
    for line in text.splitlines():
        if not line.startswith("|"):
            columns = None
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        columns = columns or cells
        assert cells == columns, line


def test_a_large_page_is_made_in_seconds(html, made_in):
    assert made_in < 30  # of this process; some 3 on an idle core


def test_a_large_page_fits_a_phone(chromium, html, tmp_path):
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    with chromium(tmp_path) as browser:
        for width in (360, 1200):
            metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            browser.get((tmp_path / "report.html").as_uri())
            browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            outside = """return [...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, pre, svg')
                && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
            assert browser.execute_script(outside) == []
            small = """return Math.min(...[...document.querySelectorAll('.panel svg text')].map(e =>
                parseFloat(getComputedStyle(e).fontSize) * e.ownerSVGElement.getScreenCTM().a))"""
            assert browser.execute_script(small) >= 9
        assert browser.get_log("browser") == []

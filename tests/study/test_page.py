"""The study's report page: complete, safe, deterministic, standing when parts are missing, and sound in a browser.

The results are made up here; the students, numbers and answers in them never existed.
"""

import base64
import copy
import csv
import io
import json
import os
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from distill.cli import app
from distill.errors import InputError
from distill.process import child_environment, distill_command
from distill.study.page import render
from distill.study.page.reading import typeset
from distill.study.page.threats import checks
from distill.study.report import write_report

HOSTILE = [
    "</script><script>document.title='pwned'</script>",
    "<img src=x onerror=\"document.title='pwned'\">",
    "</pre></div><style>body{display:none}</style>",
    "'\"><svg onload=document.title='pwned'>",
    "{{ 7 * 7 }}{% for x in y %}",
    "right-to-left \u202egnp.exe\u202c, null \x00, escape \x1b[31m, zero width \u200b, surrogate \ud800, BOM \ufeff",
    "&lt;b&gt; & -->]]><!--",
]
CELLS = [  # id, arm, size, match, seeds, parameters, learning rate, accuracy on add / max / record, thinking tokens
    ("tiny-base", "base", "tiny", "samples", [0], 132288, None, (0.01, 0.24, 0.0), 0.0),
    ("tiny-ift", "ift", "tiny", "samples", [0, 1, 2], 132288, 3e-3, (0.70, 0.997, 0.92), 0.0),
    ("tiny-reasoning", "reasoning", "tiny", "samples", [0, 1, 2], 132288, 3e-3, (0.91, 1.0, 0.94), 24.0),
    ("tiny-ift-tokens", "ift", "tiny", "tokens", [0, 1, 2], 132288, 3e-3, (0.83, 1.0, 0.95), 0.0),
    ("tiny-mixed:0.25", "mixed:0.25", "tiny", "samples", [0, 1, 2], 132288, 3e-3, (0.41, 0.99, 0.93), 5.5),
    ("tiny-sequential:0.25", "sequential:0.25", "tiny", "samples", [0], 132288, 3e-3, (0.18, 0.98, 0.78), 24.0),
    ("small-ift", "ift", "small", "samples", [0], 610304, 2e-3, (0.58, 1.0, 0.87), 0.0),
    ("small-reasoning", "reasoning", "small", "samples", [0], 610304, 2e-3, (0.98, 1.0, 0.91), 24.2),
    ("small-ift-tokens", "ift", "small", "tokens", [0], 610304, 2e-3, (0.84, 1.0, 0.97), 0.0),
]
TASKS = [
    ("add", "open", ["accuracy"], "Sums of 2 to 8 digits, harder as they get longer."),
    ("max", "choice", ["accuracy"], "The largest of four numbers; the direct answer suffices."),
    ("record", "extraction", ["accuracy", "macro_f1", "rouge_l"], "A business record in, labels and attributes out."),
]


def made_up_results(seed: int = 0) -> dict:
    rng = random.Random(seed)

    def score(value, seeds):
        half = 1.96 * (value * (1 - value) / 300) ** 0.5 + (0.015 if len(seeds) > 1 and 0.02 < value < 0.98 else 0.0)
        per_seed = [min(1.0, max(0.0, value + rng.uniform(-half, half))) for _ in seeds]
        return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half), "per_seed": per_seed}

    cells = []
    for name, arm, size, match, seeds, parameters, rate, scores, thinking in CELLS:
        tasks = {}
        for (task, _, metrics, _), value, answer in zip(TASKS, scores, (2.9, 2.0, 7.3), strict=True):
            cut = 0.06 if name == "tiny-sequential:0.25" else 0.0
            tokens = {"prompt": 11.0, "thinking": thinking, "answer": answer, "total": 11.0 + thinking + answer}
            flops = 2.0 * parameters * tokens["total"] * rng.uniform(1.0, 1.1)
            seconds = tokens["total"] * 2.1e-4 * (parameters / 132288) ** 0.3
            tasks[task] = {
                "metrics": {m: score(min(1.0, value + 0.03 * i), seeds) for i, m in enumerate(metrics)},
                "n_questions": 300,
                "unfinished_rate": cut,
                "think_rate": 1.0 if thinking > 20 else 0.25 if thinking else 0.0,
                "accuracy_finished": min(1.0, value / (1 - cut)) if value else None,
                "tokens_per_answer": tokens,
                "inference": {
                    "flops_per_answer": flops,
                    "flops_per_correct": flops / value if value else None,
                    "measured": {
                        "seconds_per_answer": seconds,
                        "usd_per_1000_answers": seconds * 0.0139,
                        "seconds_per_correct": seconds / value if value else None,
                        "usd_per_1000_correct": seconds * 0.0139 / value if value else None,
                    },
                },
            }
        tokens = 1_000_000 if thinking > 20 or match == "tokens" else 450_000
        training = {
            "flops": 6.0 * parameters * tokens,
            "tokens": tokens,
            "supervised_tokens": int(tokens * 0.62),
            "examples": 24000,
            "steps": 980,
            "measured": {
                "seconds": 70 * parameters / 132288,
                "usd": 0.00097,
                "tokens_per_second": 14_000.0,
                "supervised_tokens_per_second": 8_700.0,
                "mfu": 0.083,
                "peak_rss_bytes": 1_240_000_000,
            },
        }
        latency = {"p50": 4.2, "p90": 9.1, "p99": 14.8}
        serving = [
            {
                "task": "add",
                "concurrency": concurrency,
                "failed": 0,
                "n_requests": 64,
                "measured": {
                    "ttft_ms": {p: v * concurrency for p, v in latency.items()},
                    "tpot_ms": latency,
                    "e2e_ms": {p: v * 12 for p, v in latency.items()},
                    "output_tokens_per_second": 190.0 * concurrency,
                },
            }
            for concurrency in (1, 8)
        ]
        cells.append(
            {
                "id": name,
                "arm": arm,
                "size": size,
                "match": match,
                "answers": "teacher",
                "seeds": seeds,
                "parameters": parameters,
                "learning_rate": rate,
                "training": None if arm == "base" else training,
                "tasks": tasks,
                "serving": serving if name in ("tiny-ift", "tiny-reasoning") else [],
            }
        )

    def contrast(task, size, treatment, control, matched, value, half, verdict, seeds, primary, tokens):
        subject = "reasoning" if seeds >= 3 else "these trained students"
        return {
            "id": f"{task}/{size}/accuracy/{treatment}-vs-{control}",
            "task": task,
            "size": size,
            "metric": "accuracy",
            "treatment": f"{size}-{treatment}",
            "control": f"{size}-{control}",
            "matched_on": matched,
            "difference_points": {"value": value, "low": value - half, "high": value + half},
            "p_value": 0.0004 if abs(value) > half else 0.2,
            "p_value_students": 0.01,
            "p_holm": 0.0016 if abs(value) > half else 0.2,
            "detectable_points": 1.43 * half,
            "per_seed": [value + half * s for s in (-0.9, 0.1, 0.8)[:seeds]],
            "n_seeds": seeds,
            "n_questions": 300,
            "subject": subject,
            "token_factor": tokens,
            "flops_factor": tokens * 0.29,
            "training_tokens_factor": 2.2 if matched == "samples" else 1.0,
            "verdict": verdict,
            "sentence": f"On {task}, {subject} {'gains' if value > 0 else 'changes'} {value:+.1f} points "
            f"[{value - half:+.1f}, {value + half:+.1f}] at {tokens:.1f} times the tokens per answer: {verdict}.",
            "primary": primary,
        }

    no = "does not pay"
    contrasts = [
        contrast("add", "tiny", "reasoning", "ift", "samples", 21.0, 4.6, "pays", 3, True, 9.3),
        contrast("add", "tiny", "reasoning", "ift-tokens", "tokens", 8.1, 3.9, "pays", 3, False, 9.3),
        contrast("add", "small", "reasoning", "ift", "samples", 40.0, 5.8, "pays", 1, False, 9.3),
        contrast("max", "tiny", "reasoning", "ift", "samples", 0.3, 0.5, no, 3, True, 13.0),
        contrast("max", "tiny", "reasoning", "ift-tokens", "tokens", 0.0, 0.4, no, 3, False, 13.0),
        contrast("max", "small", "reasoning", "ift", "samples", 0.0, 0.3, no, 1, False, 13.1),
        contrast("record", "tiny", "reasoning", "ift", "samples", 1.9, 3.4, "cannot tell", 3, True, 4.3),
        contrast("record", "tiny", "reasoning", "ift-tokens", "tokens", -1.1, 2.9, no, 3, False, 4.3),
        contrast("record", "small", "reasoning", "ift", "samples", 4.0, 4.4, "cannot tell", 1, False, 4.3),
    ]
    return {
        "schema": "distill-results/1",
        "title": "embedded (made up for a test)",
        "question": "When is training on reasoning traces worth what it costs?",
        "distill_version": "0.1.0",
        "command": "distill study run presets/embedded.yaml --out out/demo",
        "preset": {
            "title": "embedded",
            "sizes": ["tiny", "small"],
            "seeds": {"tiny": [0, 1, 2], "small": [0]},
            "n": HOSTILE[0],
        },
        "environment": {
            "python": "3.11.2",
            "torch": "2.13.0",
            "transformers": "5.19.0",
            "vllm": None,
            "cpu": "a processor",
            "cores": 2,
            "os": "Linux",
            "device": "cpu",
        },
        "hardware": {
            "name": "cpu-2",
            "price_usd_per_hour": 0.05,
            "description": "two virtual cores",
            "power_watts": None,
            "illustrative": True,
            "source": "made up",
            "date": "2026-01-01",
        },
        "margin_points": 2.0,
        "confidence": 0.95,
        "teacher": {"name": "solver", "cost_usd": 0.0, "note": "a procedural solver wrote the traces"},
        "tasks": [
            {
                "name": task,
                "answer_format": answer_format,
                "metrics": metrics,
                "questions": 300,
                "distinct_prompts": 10**6,
                "description": description,
            }
            for task, answer_format, metrics, description in TASKS
        ],
        "cells": cells,
        "contrasts": contrasts,
        "verdicts": [
            {"task": c["task"], "verdict": c["verdict"], "sentence": c["sentence"], "contrast": c["id"]}
            for c in contrasts
            if c["primary"]
        ],
        "examples": [
            _example("add", "add 7523", "17", "7:7,5:12,2:14,3:17", "17", "16"),
            _example("max", "max A3 B9 C5 D1", "B", "A3:A3,B9:B9,C5:B9,D1:B9", "B", "B"),
            _example(
                "record",
                "rec nova corp plan pro late 21 says please no cancel crash our",
                HOSTILE[1],
                "\n".join(HOSTILE),
                HOSTILE[2],
                "",
            ),
        ],
        "failures": [],
    }


def _example(task, prompt, gold, thinking, answer, direct):
    def one(cell, thinking, answer, finished=True):
        return {
            "cell": cell,
            "seed": 0,
            "thinking": thinking,
            "answer": answer,
            "correct": answer == gold,
            "finished": finished,
            "thinking_tokens": len(thinking),
            "answer_tokens": len(answer),
        }

    answers = [one("tiny-ift", "", direct), one("tiny-reasoning", thinking, answer, finished=answer != HOSTILE[2])]
    return {"task": task, "prompt": prompt, "gold": gold, "answers": answers}


class Elements(HTMLParser):
    """The tags of a page with their attributes, and its visible text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def html() -> str:
    return render(made_up_results())


@pytest.fixture(scope="module")
def page(html) -> Elements:
    return Elements(html)


def test_the_verdicts_come_first_with_their_sentences(html):
    results = made_up_results()
    main = html[html.index("<main") :]
    at = [main.index(part) for part in ("Pays", "Accuracy against the cost", ">Numbers<", ">How it was made<")]
    assert at == sorted(at)
    text = " ".join(Elements(html).text)
    for verdict in results["verdicts"]:
        assert verdict["sentence"].replace(" -", " −").replace("[-", "[−") in text


def test_every_student_contrast_and_setting_is_on_the_page(page):
    text = " ".join(page.text)
    results = made_up_results()
    for name in [c["id"] for c in results["cells"] + results["contrasts"]] + [results["command"], "132,288", "13.0×"]:
        assert name in text


def test_figures_can_be_downloaded_as_csv_with_their_numbers(page):
    links = {a["download"]: a["href"] for tag, a in page.tags if tag == "a" and "download" in a}
    assert set(links) == {"contrasts.csv", "frontier.csv", "cost_factors.csv", "tokens.csv"}
    rows = list(csv.DictReader(io.StringIO(unquote(links["frontier.csv"].split(",", 1)[1]))))
    cells = {cell["id"]: cell for cell in made_up_results()["cells"]}
    assert len(rows) == 27
    for row in rows:
        result = cells[row["cell"]]["tasks"][row["task"]]
        assert float(row["value"]) == result["metrics"]["accuracy"]["value"]
        assert float(row["flops_per_answer"]) == result["inference"]["flops_per_answer"]


def test_model_text_is_only_ever_text(html, page):
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "iframe", "object", "embed", "form", "base"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert sum(tag == "style" for tag, _ in page.tags) == 1
    text = "".join(page.text)
    for payload in HOSTILE[:5] + HOSTILE[6:]:
        assert payload in text
    for code in ("202E", "0000", "001B", "200B", "D800", "FEFF"):
        assert f"⟨U+{code}⟩" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u200b\u202a-\u202e\ud800-\udfff\ufeff]", html)
    html.encode()


def test_hostile_strings_in_every_string_of_the_results():
    def poison(value, rng):
        if isinstance(value, dict):
            # Keys, ids and enumerations tie the document together; ids get a payload of their own below.
            kept = {"schema", "metric", "arm", "size", "match", "task", "verdict", "answer_format"}
            return {k: v if k in kept else poison(v, rng) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(item, rng) for item in value]
        return rng.choice(HOSTILE) if isinstance(value, str) and value not in kept_names else value

    kept_names = {"accuracy", "macro_f1", "rouge_l", "add", "max", "record"}
    html = render(poison(made_up_results(), random.Random()))
    tags = {tag for tag, _ in Elements(html).tags}
    assert not tags & {"script", "img", "iframe"}
    assert "document.title" in html and "<script" not in html and "<img" not in html
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    html.encode()


def test_long_answers_are_cut_with_a_note():
    results = made_up_results()
    results["examples"][0]["answers"][1]["thinking"] = "wait " * 200_000
    html = render(results)
    assert len(html) < 600_000
    assert "Cut here: 980,000 more characters." in html


def test_same_results_give_the_same_bytes_in_another_process():
    program = (
        "import json, sys, hashlib; from distill.study.page import render;"
        "print(hashlib.sha256(render(json.load(sys.stdin)).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(made_up_results()),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env={"PATH": "", "PYTHONHASHSEED": seed, "PYTHONSAFEPATH": "1", "HOME": "/nonexistent"},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_no_two_elements_share_an_id_and_every_reference_resolves(html, page):
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    used = re.findall(r"url\(#([^)]*)\)", html)
    used += [a["href"][1:] for _, a in page.tags if (a.get("href") or "").startswith("#")]
    used += [a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a]
    assert used and set(used) <= set(ids)


def test_pictures_and_tables_can_be_read_aloud(page):
    pictures = [a for tag, a in page.tags if tag == "svg" and a.get("aria-hidden") != "true"]
    assert len(pictures) == 12
    assert all(a["role"] == "img" and len(a["aria-label"]) > 40 for a in pictures)
    assert all(a.get("scope") in ("col", "row", "rowgroup") for tag, a in page.tags if tag == "th")


def test_any_part_may_be_missing():
    results = made_up_results()
    results["tasks"] = results["tasks"][:1]
    results["cells"] = results["cells"][:3]
    for key in results.keys() - {"schema"}:
        render({k: v for k, v in results.items() if k != key} | random.choice([{}, {key: None}]))
    render({"schema": "distill-results/1"})


@pytest.mark.parametrize("seed", range(3))
def test_nulls_anywhere_below_a_cell_or_contrast_are_dashes(seed):
    rng = random.Random(seed)
    results = made_up_results()
    names = {"id", "arm", "size", "task", "verdict"}

    def prune(value):
        for key in list(value):
            if key in names:
                continue
            if rng.random() < 0.15:
                value[key] = None
            elif isinstance(value[key], dict):
                prune(value[key])

    for entry in results["cells"] + results["contrasts"]:
        prune(entry)
    html = render(results)
    assert "None" not in "".join(Elements(re.sub(r"<details.*?</details>", "", html, flags=re.S)).text)
    assert "nan" not in html.replace("nanmean", "")


def beside(results: dict, *, capped: bool) -> list[dict]:
    """A majority of tiny-ift, a teacher whose FLOPs are known and one whose are not, a base."""
    ift = {cell["id"]: cell["tasks"] for cell in results["cells"]}["tiny-ift"]
    of = lambda tasks, **more: {name: copy.deepcopy(task) | more for name, task in tasks.items()}  # noqa: E731
    votes = {"k": 10, "affordable": 14 if capped else 10, "drawn": 10, "capped": capped}
    majority = {"id": "tiny-majority", "kind": "majority", "size": "tiny", "arm": "ift", "of": "tiny-ift"}
    majority |= {"matched": "tiny-reasoning", "seeds": [0, 1, 2], "tasks": of({"add": ift["add"]}, votes=votes)}
    teacher = {"id": "teacher", "kind": "teacher", "size": None, "model": HOSTILE[1], "seeds": [], "tasks": of(ift)}
    base = {
        "id": "small-base",
        "kind": "base",
        "size": "small",
        "model": "m",
        "seeds": [],
        "tasks": of(ift, few_shot=5),
    }
    silent = copy.deepcopy(teacher) | {"id": "teacher-without-flops"}
    for task in silent["tasks"].values():
        task["inference"] |= {"flops_per_answer": None, "flops_per_correct": None}
    return [majority, teacher, base, silent]


@pytest.mark.parametrize("capped", [False, True])
def test_what_stands_beside_the_arms_has_marks_of_its_own_and_says_what_it_is(capped):
    results = made_up_results()
    results["cells"][1]["tasks"]["max"]["samples"] = {"n": 7, "majority": {"value": 0.875, "low": 0.8, "high": 0.9}}
    results["comparators"] = beside(results, capped=capped)
    page = Elements(render(results))
    text = " ".join(page.text)
    for said in (
        "majority vote",
        "untrained, few-shot",
        "majority of 10 of tiny-ift",
        "m, 5-shot",
        "majority of 7: 87.5",
    ):
        assert said in text
    assert ("of 14 that the tokens pay for" in text) == ("More votes could do better" in text) == capped
    links = {a["download"]: a["href"] for tag, a in page.tags if tag == "a" and "download" in a}
    read = lambda name: list(csv.DictReader(io.StringIO(unquote(links[name].split(",", 1)[1]))))  # noqa: E731
    drawn = {(row["task"], row["cell"]) for row in read("frontier.csv") if row["comparator"]}
    tasks = ("add", "max", "record")
    assert drawn == {("add", "tiny-majority"), *((t, name) for t in tasks for name in ("teacher", "small-base"))}
    assert {row["cell"] for row in read("tokens.csv")} >= {"teacher-without-flops", "tiny-majority"}


@pytest.mark.parametrize("seed", range(3))
def test_nulls_anywhere_below_a_comparator_are_dashes(seed):
    rng = random.Random(seed)
    results = made_up_results()
    results["comparators"] = beside(results, capped=bool(seed % 2))

    def prune(value):
        for key in list(value):
            if rng.random() < 0.15 and key not in ("id", "kind"):
                value[key] = None
            elif isinstance(value[key], dict):
                prune(value[key])

    for entry in results["comparators"]:
        prune(entry)
    html = render(results)
    assert "None" not in "".join(Elements(re.sub(r"<details.*?</details>", "", html, flags=re.S)).text)


def test_a_failed_cell_is_named_and_its_absence_harms_nothing():
    results = made_up_results()
    results["cells"] = [c for c in results["cells"] if c["id"] != "small-reasoning"]
    results["cells"].append({"id": "small-reasoning", "arm": "reasoning", "size": "small"})
    results["failures"] = [{"cell": "small-reasoning", "stage": "train", "reason": "killed: out of <memory>"}]
    text = "".join(Elements(render(results)).text)
    assert "small-reasoning, train: killed: out of <memory>" in text


def test_a_study_of_which_a_stage_failed_ends_in_1(tmp_path, monkeypatch):
    out, commands = tmp_path / "a folder", []
    out.mkdir()
    monkeypatch.setattr("distill.study.run.run", lambda *_, command, **__: commands.append(command) or out)
    failure = {"cell": "small-reasoning", "stage": "train", "reason": "killed: out of memory"}
    preset = Path(__file__).parents[2] / "presets" / "embedded.yaml"
    for failures in ([], [failure]):
        (out / "results.json").write_text(json.dumps(made_up_results() | {"failures": failures}))
        for flags in ([], ["--json"]):
            ended = CliRunner().invoke(app, ["study", "run", str(preset), "--out", str(out), *flags])
            assert ended.exit_code == len(failures)
    assert set(commands) == {f"distill study run {preset} --out '{out}'"}


def test_another_schema_is_refused_in_one_line():
    with pytest.raises(InputError, match="expected 'distill-results/1', found 'distill-results/9'"):
        render({"schema": "distill-results/9"})


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([], "found 'list'"),
        (None, "found 'NoneType'"),
        ({"schema": "distill-results/1"}, "field tasks: expected a list, found NoneType"),
        (made_up_results() | {"verdicts": 3}, "field verdicts: expected a list, found int"),
        (made_up_results() | {"verdicts": [{}]}, "field verdicts.0.task: expected text, found NoneType"),
        (made_up_results() | {"cells": ["a"]}, "field cells.0.id: expected text, found NoneType"),
        (made_up_results() | {"comparators": [{}]}, "field comparators.0.id: expected text, found NoneType"),
        (made_up_results() | {"failures": [{"cell": 1, "stage": "train", "reason": ""}]}, "field failures.0.cell"),
        (made_up_results() | {"margin_points": "two"}, "a value is not of its kind"),
    ],
)
def test_results_of_another_shape_are_refused_in_one_line(tmp_path, results, said):
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(InputError) as caught:
        write_report(tmp_path)
    assert said in str(caught.value) and "results.json" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_the_command_refuses_results_without_a_traceback(tmp_path):
    (tmp_path / "results.json").write_text("[]")
    run = subprocess.run(
        distill_command("study", "report", str(tmp_path)), capture_output=True, text=True, env=child_environment(1)
    )
    assert run.returncode == 2 and run.stdout == "" and run.stderr.count("\n") == 1


def test_wrong_values_anywhere_are_drawn_or_refused_but_never_a_traceback(tmp_path):
    seed = random.getrandbits(32)
    print(f"seed {seed}")  # shown when it fails
    rng = random.Random(seed)
    for _ in range(25):
        results = copy.deepcopy(made_up_results())
        places = []

        def collect(value, places=places):
            for key in value if isinstance(value, dict) else range(len(value)):
                places.append((value, key))
                if isinstance(value[key], dict | list):
                    collect(value[key])

        collect(results)
        holder, key = rng.choice(places)
        holder[key] = rng.choice([None, 7, -1.5, "text", [], {}, [[]], {"a": []}, True])
        (tmp_path / "results.json").write_text(json.dumps(results))
        try:
            write_report(tmp_path)
        except InputError as error:
            assert "\n" not in str(error)


def concerns(results: dict) -> dict[str, bool]:
    html = render(results)
    found = re.findall(r'<li class="(concern|clear)">.*?<h3>(.*?)</h3>', html, flags=re.S)
    return {title: state == "concern" for state, title in found}


def test_threats_follow_from_what_was_measured():
    bad, good = made_up_results(), made_up_results()
    for cell in good["cells"]:
        cell["learning_rate"] = 3e-3
        for result in cell["tasks"].values():
            result["unfinished_rate"] = 0.0
            result["metrics"]["accuracy"]["value"] = min(0.9, result["metrics"]["accuracy"]["value"])
    for contrast in good["contrasts"]:
        contrast.update(n_seeds=3, per_seed=[1.0, 2.0, 3.0], verdict="pays", training_tokens_factor=1.0)
    good["teacher"] = {"name": "a served model", "cost_usd": 1.5, "note": ""}
    found = concerns(bad)
    unmatched = copy.deepcopy(good)
    unmatched["contrasts"][0].update(primary=True, matched_on="nothing")
    assert concerns(unmatched)["What the arms were matched on"]
    for title in ("Unfinished answers", "Training seeds", "Seeds that disagree", "Margin and power", "The teacher"):
        assert found[title]
    assert found["What the arms were matched on"] and found["Learning rates"] and found["Too easy or too hard"]
    assert not any(concerns(good).values())
    # A reasoning student that answers without thinking, and one whose answers have another origin.
    stray = copy.deepcopy(good)
    stray["cells"][2]["tasks"]["add"]["think_rate"] = 0.8
    stray["cells"][2]["answers"] = "gold"
    assert {title for title, concern in concerns(stray).items() if concern} == {
        "Students that leave their format",
        "Where the answers come from",
    }


def test_a_task_without_room_for_the_margin_is_a_threat():
    results = made_up_results()  # a margin of 2 points
    of_cells = {cell["id"]: cell["tasks"] for cell in results["cells"]}

    def said(treatment: float, control: float) -> str:
        for arm, value in (("reasoning", treatment), ("ift", control)):
            of_cells[f"tiny-{arm}"]["max"]["metrics"]["accuracy"]["value"] = value
        return next(check.text for check in checks(results) if check.title == "Too easy or too hard")

    assert "no gain of the margin is possible: max (98.1\u00a0%)" in said(0.5, 0.981)
    assert "leaves room" in said(0.5, 0.979) and "leaves room" in said(0.021, 0.0)
    assert "Neither side is right on as much as the margin: max." in said(0.019, 0.0)


def test_sentences_are_typeset():
    said = "On f1-x, -0.8 points (95% interval -2.9 to +1.3) at 2.6x the tokens of qwen-2.5x-3; [-1, 2]."
    assert (
        typeset(said)
        == "On f1-x, −0.8 points (95\u00a0% interval −2.9 to +1.3) at 2.6× the tokens of qwen-2.5x-3; [−1, 2]."
    )


@pytest.mark.parametrize(
    ("matched", "said", "concern"),
    [
        ("samples", "saw the same examples, with answers of different length, and up to 2.2", True),
        ("steps", "took as many optimizer steps, with answers of different length, and up to 2.2", True),
        ("tokens", "read as many training tokens: the arm with shorter answers", False),
        ("flops", "took as many training FLOPs: the arm with shorter answers", False),
        ("nothing", "neither examples nor steps, training tokens or FLOPs", True),
    ],
)
def test_the_threat_of_matching_says_what_was_held_equal(matched, said, concern):
    results = made_up_results()
    for contrast in results["contrasts"]:
        if contrast["primary"]:
            contrast.update(matched_on=matched, training_tokens_factor=2.2)
    (found,) = (check for check in checks(results) if check.title == "What the arms were matched on")
    assert said in found.text and found.concern == concern


def test_p_values_and_what_could_be_seen_are_on_the_page():
    text = "".join(Elements(render(made_up_results())).text)
    assert "<0.001" in text and "0.002" in text  # of a contrast, and after Holm's correction
    assert "Differences under 6.6 points could not be relied on to be seen" in text  # 1.43 x 4.6, the worst


@pytest.mark.parametrize("matched", ["tokens", "flops"])
def test_a_contrast_at_matched_work_stands_beside_one_at_matched_samples(matched):
    results = made_up_results()
    for contrast in results["contrasts"]:
        if not contrast["primary"]:
            contrast["matched_on"] = matched
    (found,) = (check for check in checks(results) if check.title == "What the arms were matched on")
    assert "add/tiny/accuracy/reasoning-vs-ift-tokens pays" in found.text


def test_matplotlib_is_imported_only_when_drawing():
    program = "import sys, distill.study.page; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


# In a real browser.


@pytest.fixture(scope="module")
def browser(chromium, html, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "report.html").write_text(html, encoding="utf-8")
    with chromium(folder) as browser:
        browser.address = (folder / "report.html").as_uri()
        yield browser


def show(browser, width: int = 1200, scheme: str = "light", media: str = "screen") -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(browser.address)


def test_nothing_is_requested_logged_or_executed(browser):
    show(browser)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    # The browser's own start page asks for things too.
    urls = {r["request"]["url"] for r in requests if not r["documentURL"].startswith("chrome")}
    assert {url for url in urls if not url.startswith("data:")} == {browser.address}
    assert browser.get_log("browser") == []
    assert "pwned" not in browser.title
    assert browser.execute_script("return document.scripts.length + document.images.length") == 0


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_the_page_never_scrolls_sideways(browser, width):
    show(browser, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    # Nothing sticks out unseen either: what is wider than the page scrolls in a frame of its own.
    outside = """return [...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, pre, svg')
        && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert browser.execute_script(outside) == []
    small = """return Math.min(...[...document.querySelectorAll('.panel svg text')].map(e =>
        parseFloat(getComputedStyle(e).fontSize) * e.ownerSVGElement.getScreenCTM().a))"""
    assert browser.execute_script(small) >= 9


CONTRASTS = """
const rgb = c => c.match(/[\\d.]+/g).map(Number);
const luminance = ([r, g, b]) => { const f = v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  return .2126 * f(r) + .7152 * f(g) + .0722 * f(b); };
const paper = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
  if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
const worst = {};
for (const e of document.querySelectorAll('h1, h2, h3, p, a:not(.skip), li, dt, dd, th, td, small, caption, pre, summary, svg text')) {
  if (!e.textContent.trim()) continue;
  const style = getComputedStyle(e), ink = luminance(rgb(e.tagName == 'text' ? style.fill : style.color));
  const back = luminance(paper(e)), ratio = (Math.max(ink, back) + .05) / (Math.min(ink, back) + .05);
  worst[e.tagName] = Math.min(worst[e.tagName] ?? 99, ratio);
}
return [worst, luminance(paper(document.querySelector('h1')))];
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_is_readable_in_both_themes(browser, scheme):
    show(browser, scheme=scheme)
    worst, paper = browser.execute_script(CONTRASTS)
    assert "text" in worst and min(worst.values()) >= 4.5, worst
    assert (paper < 0.1) == (scheme == "dark")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Where screenshots go: the folder that DISTILL_SCREENSHOTS names, to look at them, which are then of whole pages."""
    folder = Path(os.environ.get("DISTILL_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("width", [360, 1200])
def test_screenshots_show_a_page_in_the_theme_that_is_preferred(browser, pictures, width):
    brightness = {}
    for scheme in ("light", "dark"):
        show(browser, width, scheme)
        height = browser.execute_script("return document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": width, "height": height if "DISTILL_SCREENSHOTS" in os.environ else 800}
        how = {"format": "png", "clip": clip | {"scale": 1}, "captureBeyondViewport": True}
        taken = base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", how)["data"])
        (pictures / f"report-{width}-{scheme}.png").write_bytes(taken)
        with Image.open(io.BytesIO(taken)) as image:
            assert image.size == (width, clip["height"])
            grey = np.asarray(image.convert("L")) / 255
        brightness[scheme] = np.median(grey)  # of the paper
        # Words and lines stand on it, as many in one theme as in the other.
        assert 0.02 < np.mean(np.abs(grey - brightness[scheme]) > 0.25) < 0.5
    assert brightness["dark"] < 0.2 and brightness["light"] > 0.9


def test_paper_holds_what_the_screen_folds(browser, pictures):
    """Tables that are folded, and the settings; rows and panels are not cut in two."""
    folded = """return [...document.querySelectorAll('details.fold > :not(summary), details.code > :not(summary)')]
        .map(e => e.checkVisibility())"""
    show(browser)
    on_screen = browser.execute_script(folded)
    show(browser, media="print")
    assert on_screen and not any(on_screen) and all(browser.execute_script(folded))
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True, "preferCSSPageSize": True})
    pdf = base64.b64decode(printed["data"])
    (pictures / "report.pdf").write_bytes(pdf)
    assert pdf.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", pdf)) > 5
    whole = "return [...document.querySelectorAll('tbody tr, .panel')].map(e => getComputedStyle(e).breakInside)"
    assert set(browser.execute_script(whole)) == {"avoid"}


def test_paper_is_light_whatever_the_screen_prefers(browser):
    show(browser, scheme="dark", media="print")
    assert browser.execute_script(CONTRASTS)[1] > 0.9


def test_labels_of_a_plot_do_not_cover_each_other(browser):
    show(browser, 360)
    overlap = """
    const boxes = [...document.querySelectorAll('.panel svg')].map(s => [...s.querySelectorAll('text')].map(t =>
        [t.textContent, t.getBoundingClientRect()]));
    const found = [];
    for (const texts of boxes) for (let i = 0; i < texts.length; i++) for (let j = 0; j < i; j++) {
        const [a, b] = [texts[i][1], texts[j][1]];
        const w = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (w > 2 && h > 4) found.push([texts[i][0], texts[j][0]]);
    }
    return found"""
    assert browser.execute_script(overlap) == []


def test_figure_data_downloads_from_the_opened_page(browser, tmp_path):
    show(browser)
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    browser.execute_script("document.querySelector('a[download=\"tokens.csv\"]').click()")
    target = Path(tmp_path / "tokens.csv")
    for _ in range(50):
        if target.exists():
            break
        browser.execute_async_script("setTimeout(arguments[0], 100)")
    assert len(list(csv.DictReader(target.open()))) == 27

"""`distill study report`: results.json to report.html and report.md."""

from pathlib import Path
from typing import Any

from distill.artifact import read_json, write_atomic
from distill.errors import InputError
from distill.study.page import SCHEMA, render, render_markdown

# What is read by name and must be there; any other part of a result may be missing (docs/results-schema.md).
_TEXTS = {
    "tasks": ("name",),
    "cells": ("id", "arm", "size"),
    "comparators": ("id", "kind"),  # came later: results without them have none
    "contrasts": ("id", "task"),
    "verdicts": ("task", "verdict", "sentence", "contrast"),
    "failures": ("cell", "stage", "reason"),
}


def read_results(study: Path) -> dict[str, Any]:
    """The results of a study. Raises InputError when there are none, of another schema, or not of their shape."""
    path = study / "results.json"
    results = read_json(path)
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        found = results.get("schema") if isinstance(results, dict) else type(results).__name__
        raise InputError(f"{path}: expected an object with schema {SCHEMA!r}, found {found!r}")
    for name, texts in _TEXTS.items():
        entries = results.get(name, [] if name == "comparators" else None)
        if not isinstance(entries, list):
            raise InputError(f"{path}: field {name}: expected a list, found {type(entries).__name__}")
        for i, entry in enumerate(entries):
            for text in texts:
                value = entry.get(text) if isinstance(entry, dict) else None
                if not isinstance(value, str):
                    raise InputError(f"{path}: field {name}.{i}.{text}: expected text, found {type(value).__name__}")
    return results


def write_report(study: Path) -> Path:
    """Write report.html and report.md beside results.json; returns the first. Raises InputError when the results cannot be read."""
    page, results = study / "report.html", read_results(study)
    try:
        html, text = render(results), render_markdown(results)
    except InputError:
        raise
    except Exception as error:  # a value of the wrong kind makes drawing raise almost anything; --debug shows it
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{study / 'results.json'}: cannot be drawn, a value is not of its kind ({what})") from error
    write_atomic(study / "report.md", text)
    write_atomic(page, html)
    return page

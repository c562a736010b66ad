"""`distill study report`: results.json to report.html."""

from pathlib import Path

from distill.artifact import read_json, write_atomic
from distill.study.page import render


def write_report(study: Path) -> Path:
    """Write report.html beside results.json. Raises InputError when there are no results, or of another schema."""
    page = study / "report.html"
    write_atomic(page, render(read_json(study / "results.json")))
    return page

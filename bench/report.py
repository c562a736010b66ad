"""`distill bench report`: the committed results of the benchmarks as docs/benchmarks.md, with plots.

The page is made of bench/results/ and of nothing else, so that every number on it has a file, a command, a machine and
versions. A section whose file is not there says so.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill.artifact import read_json, require_file_place, write_atomic
from distill.bench.report_page import Page
from distill.bench.report_sections import (
    compiled_section,
    evaluation_section,
    gap_section,
    gpu_section,
    kernels_section,
    packing_section,
    serving_section,
    traces_section,
    training_memory_section,
    training_section,
)
from distill.errors import InputError

_HEAD = """\
# Measured

Made by `distill bench report` from the files in `bench/results/`; [bench.md](bench.md) says what each benchmark does.
Ratios are geometric means over interleaved rounds with their 95 % interval.
"""


def render_report(results: Path) -> tuple[str, dict[str, str]]:
    """(markdown, {file name: SVG}). Raises InputError for a folder or file that cannot be read."""
    if not results.is_dir():
        raise InputError(f"{results}: is no folder; expected one with the JSON files of `distill bench`")
    page = Page(_HEAD)
    kernels, compiled = "Kernels on a CPU", "Kernels compiled for GPUs"
    _section(page, results / "kernels-cpu.json", kernels, kernels_section, "`distill bench kernels` measures them.")
    absent = "`distill bench kernels --compile-only` compiles them."
    _section(page, results / "kernels-compiled.json", compiled, compiled_section, absent)
    suites = sorted(results.glob("gpu-*.json"))
    if not suites:
        page.add("## Kernels on a GPU\n\nNothing has been measured on a GPU. `distill bench gpu --out FILE` does it.")
    for file in suites:
        _section(page, file, f"Kernels on a GPU: {file.stem}", gpu_section, "")
    _section(page, results / "packing-cpu.json", "Packing", packing_section, "`distill bench packing` does it.")
    training = "Training beside TRL"
    _section(page, results / "training-cpu.json", training, training_section, "`distill bench training` does it.")
    absent = "`distill bench training --memory` does it."
    _section(page, results / "training-memory-cpu.json", "Memory of training", training_memory_section, absent)
    _section(page, results / "gap-cpu.json", "What reasoning costs", gap_section, "`distill bench gap` does it.")
    _section(page, results / "traces-cpu.json", "Generating traces", traces_section, "`distill bench traces` does it.")
    absent = "`distill bench evaluation` does it."
    _section(page, results / "evaluation-cpu.json", "Evaluating", evaluation_section, absent)
    _section(page, results / "serving-cpu.json", "Serving", serving_section, "`distill bench serving` does it.")
    return page.text, page.images


def write_report(results: Path, out: Path) -> list[Path]:
    """Write the page and its plots; the files written. Raises InputError."""
    text, images = render_report(results)
    require_file_place(out)
    folder = out.parent / "images"
    if images:
        folder.mkdir(exist_ok=True)
    for name, svg in images.items():
        write_atomic(folder / name, svg)
    write_atomic(out, text)
    return [out, *(folder / name for name in images)]


def _section(page: Page, file: Path, title: str, fill: Callable[[Page, str, Any], None], absent: str) -> None:
    page.add(f"## {title}")
    if not file.is_file():
        page.add(f"Not measured. {absent}")
        return
    try:
        fill(page, file.stem, read_json(file))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: is not a result of its benchmark ({type(error).__name__}: {error})") from None

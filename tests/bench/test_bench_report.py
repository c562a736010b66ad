"""docs/benchmarks.md is what the committed results give, and nothing else."""

import json
import re
import shutil
from pathlib import Path

import pytest

from distill.bench.plots import Bar, bar_chart
from distill.bench.report import render_report, write_report
from distill.errors import InputError

ROOT = Path(__file__).parent.parent.parent
RESULTS, PAGE = ROOT / "bench" / "results", ROOT / "docs" / "benchmarks.md"


@pytest.fixture(scope="module")
def rendered():
    return render_report(RESULTS)


def test_the_committed_page_is_what_the_committed_results_give(rendered):
    text, images = rendered
    assert PAGE.read_text() == text, "run `distill bench report`"
    for name in images:
        assert (PAGE.parent / "images" / name).is_file(), name
    assert set(re.findall(r"\(images/([^)]+)\)", text)) == set(images)


def test_every_result_has_its_place(rendered):
    text, _ = rendered
    for file in RESULTS.glob("*.json"):
        assert f"[{file.name}](../bench/results/{file.name})" in text
    if not list(RESULTS.glob("gpu-*.json")):
        assert "Nothing has been measured on a GPU" in text


def test_numbers_on_the_page_are_those_of_the_files(rendered):
    text, _ = rendered
    training = json.loads((RESULTS / "training-cpu.json").read_text())
    for name, contender in training["contenders"].items():
        rate = f"{contender['measured']['supervised_tokens_per_second']:,.0f}"
        assert any(line.startswith(f"| `{name}` | {rate} |") for line in text.splitlines()), name


def test_an_empty_folder_says_what_is_missing(tmp_path):
    text, images = render_report(tmp_path)
    assert images == {} and text.count("Not measured.") == 9 and "Nothing has been measured on a GPU" in text


def test_the_same_results_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_report(RESULTS, tmp_path / name / "page.md")
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in tmp_path.iterdir()]
    assert files[0] == files[1]
    for path in (p for p in (tmp_path / "one").rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


@pytest.mark.parametrize("content", ["{}", "[]", '{"machine": 1}', "not json"])
def test_a_damaged_result_is_one_line(content, tmp_path):
    folder = shutil.copytree(RESULTS, tmp_path / "results")
    (folder / "training-cpu.json").write_text(content)
    with pytest.raises(InputError, match=r"training-cpu\.json") as error:
        write_report(folder, tmp_path / "page.md")
    assert "\n" not in str(error.value) and not (tmp_path / "page.md").exists()


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        render_report(tmp_path / "no")


def test_what_stands_in_a_result_cannot_break_a_table(tmp_path):
    training = json.loads((RESULTS / "training-cpu.json").read_text())
    training["contenders"]["a|b\nc"] = training["contenders"].pop("trl-padded")
    (tmp_path / "training-cpu.json").write_text(json.dumps(training))
    text, _ = render_report(tmp_path)
    assert "| `a\\|b c` |" in text


def test_bars_are_drawn_for_their_values():
    bars = [Bar("distill", 2.0, 1.9, 2.2, "2 ms", True), Bar("eager <&>", 4.0, 4.0, 4.0, "4 ms", False)]
    svg = bar_chart([("a group", bars)], "ms")
    assert svg == bar_chart([("a group", bars)], "ms")
    for text in ("a group", "distill", "eager &lt;&amp;&gt;", "2 ms", "4 ms"):
        assert text in svg

"""README.md of a student's folder: its model card, as the Hugging Face Hub reads it.

Made of settings, counts and losses alone: no clock and no path, so that the same training writes the same card.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from distill.artifact import write_atomic
from distill.hub import looks_like_hub_id
from distill.training.describe import MODE_NAMES, selection_text
from distill.training.settings import TrainSettings
from distill.training.sizes import SIZES

CARD = "README.md"


def write_card(folder: Path, settings: TrainSettings, summary: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Write the card of the student in `folder`. `summary` is metrics.json, `recipe` its recipe."""
    write_atomic(folder / CARD, render_card(settings, summary, recipe, summary["final_loss"]))


def render_card(settings: TrainSettings, summary: dict[str, Any], recipe: dict[str, Any], loss: float) -> str:
    """The card as Markdown; `loss` is that of the last step."""
    name, base = _name(settings.student), _base_model(settings.student)
    start = "random weights" if base is None else escape(name)
    what = "Adapters for" if settings.lora and not settings.merge else "A student that started from"
    parts = [
        _front_matter(settings, base),
        f"# {escape(name)}, {escape(settings.arm)}",
        f"{what} {start}, trained by `distill train` on {summary['pairs']:,} questions that a teacher answered with and "
        f"without its reasoning: {summary['trainable_parameters']:,} of {summary['parameters']:,} parameters, "
        f"{summary['steps']:,} steps, {summary['flops']:.3g} FLOPs.",
        "## Trained on",
        f"Arm {escape(settings.arm)} of the trace set with key `{recipe['traces']}`; {summary['dropped_pairs']:,} pairs "
        "were left out.",
        _table(["", "examples", "tokens", "supervised tokens"], _counts(summary)),
        *_selection(summary),
        "## Losses",
        "Means over supervised tokens, weighted as the settings say.",
        _table(["", "step", "loss"], _losses(summary, loss)),
        "## Settings",
        _table(["setting", "value"], [[n, _shown(v)] for n, v in _values(settings, name).items() if v is not None]),
        "## Made again",
        "With these lines as `student.yaml` and the same traces, machine and versions "
        f"({escape(', '.join(f'{n} {v}' for n, v in recipe['versions'].items() if v))}), to the byte:",
        _fenced(yaml.safe_dump(_changed(settings, name), sort_keys=False, allow_unicode=True), "yaml"),
        _fenced("distill train --config student.yaml --traces TRACES --out OUT\n", ""),
        "## Limits",
        "Nothing here says how well it answers: `distill evaluate` does. It learned from one teacher's answers, with the "
        "errors and habits of that teacher, on questions of the kind in the trace set and no others. Its reasoning was "
        "learned as text; nobody has checked that it is what leads to its answers.",
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$])", r"\\\1", " ".join(text.split()))


def _front_matter(settings: TrainSettings, base: str | None) -> str:
    adapters = settings.lora is not None and not settings.merge
    values: dict[str, Any] = {
        "library_name": "peft" if adapters else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["distill", "distillation", *(["lora"] if settings.lora else [])],
    }
    return f"---\n{yaml.safe_dump(({'base_model': base} if base else {}) | values, sort_keys=False)}---"


def _base_model(student: str) -> str | None:
    """None from scratch, or for a folder whose name the Hub would not take."""
    if student in SIZES:
        return None
    name = _name(student)
    return name if looks_like_hub_id(name) or re.fullmatch(r"\w[\w.-]{0,95}", name, re.ASCII) else None


def _name(student: str) -> str:
    """A folder's own name: where it lies is nobody's business."""
    return Path(student).resolve().name if student not in SIZES and Path(student).is_dir() else student


def _counts(summary: dict[str, Any]) -> list[list[str]]:
    columns = ("examples", "tokens", "supervised_tokens")
    shown = {MODE_NAMES[mode]: of_mode for mode, of_mode in summary["by_mode"].items() if of_mode["examples"]}
    return [[name, *(f"{of[column]:,}" for column in columns)] for name, of in (shown | {"all": summary}).items()]


def _selection(summary: dict[str, Any]) -> list[str]:
    """Which pairs have reasoning, where that was chosen; else nothing."""
    if "selection" not in summary:
        return []
    chosen = summary["selection"]
    said = "; ".join(selection_text(chosen))
    return [f"Which pairs have reasoning was chosen by `select: {chosen['select']}`: {said}."]


def _losses(summary: dict[str, Any], loss: float) -> list[list[str]]:
    rows = [["training, last step", f"{summary['steps']:,}", f"{loss:.4f}"]]
    if summary["validation"] is None:
        return rows
    pairs = f"{summary['validation']['pairs']:,} held-out pairs"
    for which, name in (("lowest", "validation, lowest"), ("kept", "validation, of these weights")):
        found = summary["validation"][which]
        rows.append([f"{name} ({pairs})", f"{found['step']:,}", f"{found['loss']:.4f}"])
    for entry in summary.get("grid", {}).get("candidates", []):
        shown = "diverged" if entry["diverged"] else f"{entry['loss']:.4f}"
        rows.append([f"validation, learning rate {entry['learning_rate']:g}", f"{entry['step'] or ''}", shown])
    return rows


def _values(settings: TrainSettings, name: str) -> dict[str, Any]:
    return settings.model_dump(mode="json") | {"student": name}


def _changed(settings: TrainSettings, name: str) -> dict[str, Any]:
    """The settings that say what this training is: those that are not the defaults. Phases stand for an arm."""
    values = _values(settings, name)
    default = TrainSettings(student=settings.student, lora_rank=settings.lora_rank).model_dump(mode="json")
    changed = {n: v for n, v in values.items() if n in ("student", "arm", "packed") or v != default[n]}
    if settings.phases:
        del changed["arm"]
    return changed


def _shown(value: Any) -> str:
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _fenced(text: str, language: str) -> str:
    """A block of code, fenced by more backticks than stand anywhere in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}{fence}"

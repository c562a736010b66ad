"""A training in a few lines for a person: before it what it would take, after it what was trained, on what, and what next."""

from pathlib import Path
from typing import Any

from distill import console
from distill.artifact import Artifact
from distill.report.numbers import compact, count, fixed, percent
from distill.report.text import visible
from distill.training.describe import selection_text

_GIB = 2.0**30


def show_student(made: Artifact, traces: Path) -> None:
    """Print a student trained on `traces` to standard output. Its metrics.json, and the JSON, have every number."""
    found = made.summary
    _say(f"{made.path}: {_what(found)}")
    _show_counts(found, traces)
    if "grid" in found:
        tried = ", ".join(_of_grid(one) for one in found["grid"]["candidates"])
        _say(f"  learning rate: {found['learning_rate']:g}, chosen by validation loss: {tried}")
    _say(f"  loss: {fixed(found['final_loss'], 4)} at the last step{_validation(found['validation'])}")
    measured = found["measured"]
    rates = [f"{count(measured['tokens_per_second'])} tokens/s", f"MFU {percent(measured['mfu'])} %"]
    _say(f"  time: {_seconds(measured['seconds'])}, {', '.join(rates)} on {_devices(measured)} in {measured['dtype']}")
    on_gpu = measured["peak_device_bytes"]
    held = f"{fixed(on_gpu / _GIB, 2)} GiB of each GPU, " if on_gpu else ""
    _say(f"  memory: {held}{fixed(measured['peak_rss_bytes'] / _GIB, 2)} GiB of the process at its peak")
    _say(f"  more: {made.path / 'README.md'} has the settings, metrics.json every number")
    _say(f"  next: distill evaluate {made.path} --tasks TASKS")


def show_estimate(found: dict[str, Any], traces: Path) -> None:
    """Print what `dry_run` found of a training on `traces`."""
    _say(f"not trained: {_what(found)}")
    _show_counts(found, traces)
    measured, devices = found["measured"], _devices(found["measured"] | {"ranks": found["ranks"]})
    if found["trainings"] > 1:
        _say(f"  {found['trainings']} trainings, one for each learning rate")
    work = ", ".join(f"{name.replace('_', ' ')} {compact(flops, 'FLOP')}" for name, flops in found["flops"].items())
    _say(f"  work: {work}")
    assumed = f"{compact(measured['peak_flops'], 'FLOP/s')} ({measured['peak_flops_source']})"
    _say(f"  time: about {_seconds(measured['seconds'])} on {devices} in {measured['dtype']}, at an assumed MFU of")
    _say(f"    {percent(measured['assumed_mfu'])} % of {assumed}")
    parts = {name: gib for name, gib in found["memory_gib"].items() if gib}
    parts |= {"the program": measured["program_gib"]} if measured["program_gib"] else {}
    largest = ", ".join(
        f"{name.replace('_', ' ')} {fixed(parts[name], 2)}" for name in sorted(parts, key=parts.get)[:-4:-1]
    )
    _say(f"  memory: {fixed(measured['total_gib'], 2)} of {fixed(measured['device_gib'], 1)} GiB; the most: {largest}")


def _what(found: dict[str, Any]) -> str:
    """`tiny, arm mixed:0.5, 116,928 parameters`."""
    parameters, trained = found["parameters"], found["trainable_parameters"]
    part = f"{count(trained)} of " if trained != parameters else ""
    return f"{found['student']}, arm {found['arm']}, {part}{count(parameters)} parameters"


def _show_counts(found: dict[str, Any], traces: Path) -> None:
    """What is trained on, each mode's share of it (of those there are), and what is left out."""
    filled = f" and {count(found['rows'])} rows, {percent(found['row_fill'])} % full" if found["row_fill"] else ""
    tokens = f"{count(found['tokens'])} tokens ({count(found['supervised_tokens'])} supervised)"
    _say(f"  trained on: {count(found['pairs'])} pairs of {traces} as {count(found['examples'])} examples, {tokens},")
    _say(f"    in {count(found['steps'])} steps{filled}")
    if found["matched"]:
        matched = found["matched"]
        wanted = f"{compact(matched['wanted'])} {matched['on']}"
        _say(f"  repeated up to {compact(matched['reached'])} {matched['on']}, to match {matched['to']} ({wanted})")
    if found["dropped_pairs"]:
        _say(f"  left out: {count(found['dropped_pairs'])} pairs too long for a row; --row-tokens N takes longer ones")
    if found.get("unverified"):
        kept = found["unverified"]
        _say(
            f"  left out: {count(kept['pairs'] - kept['kept'])} of {count(kept['pairs'])} pairs not verified in both modes"
        )
    if found.get("selection"):
        for line in selection_text(found["selection"]):
            _say(f"  select {found['selection']['select']}: {line}")
    for mode, share in found["shares"].items():
        if share["examples"]:
            parts = ", ".join(f"{percent(share[name])} % of {name}" for name in ("examples", "tokens", "loss"))
            _say(f"  {mode}: {parts}")


def _validation(found: dict[str, Any] | None) -> str:
    if not found:
        return ""
    kept, modes = found["kept"], ("ift", "reasoning")
    by_mode = ", ".join(f"{mode} {fixed(kept[f'loss_{mode}'], 4)}" for mode in modes if f"loss_{mode}" in kept)
    where = f"{count(found['pairs'])} held-out pairs after step {count(kept['step'])}"
    return f"; validation {fixed(kept['loss'], 4)} ({by_mode}) on {where}"


def _of_grid(candidate: dict[str, Any]) -> str:
    loss = "diverged" if candidate["diverged"] else fixed(candidate["loss"], 4)
    return f"{loss} at {candidate['learning_rate']:g}"


def _devices(measured: dict[str, Any]) -> str:
    """`2 cpu`, `NVIDIA H200`."""
    ranks = measured["ranks"]
    return f"{ranks} x {measured['device']}" if ranks > 1 else measured["device"]


def _seconds(seconds: float) -> str:
    """`0.14 s`, `93 s`, `5 min`, `3.2 h`."""
    if seconds < 120:
        return f"{fixed(seconds, 2 if seconds < 10 else 0)} s"
    return f"{fixed(seconds / 60, 0)} min" if seconds < 7200 else f"{fixed(seconds / 3600)} h"


def _say(line: str) -> None:
    console.out.print(visible(line), markup=False, soft_wrap=True)

"""`distill traces check`: what in a trace set could make an experiment mean something else, and a set without it."""

import importlib.metadata
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from distill import artifact
from distill.artifact import Artifact, require_file_place, write_atomic
from distill.errors import InputError, unknown_name
from distill.settings import Settings
from distill.traces.derive import deriving
from distill.traces.hygiene.duplicates import PERMUTATIONS, SEED, SHINGLE, SHORTEST, jaccard
from distill.traces.hygiene.evaluation_sets import EvaluationSet, evaluation_sets
from distill.traces.hygiene.examine import PARTS, Findings, examine
from distill.traces.hygiene.overlap import NGRAM, EvaluationIndex
from distill.traces.hygiene.report import report
from distill.traces.store import KIND, MADE_BY, Rejected
from distill.traces.trace import Mode, Pair

VERSION = 1  # part of the key: raise it when the same settings would remove other pairs
Kind = Literal["duplicates", "near", "contaminated", "outliers"]


class CheckSettings(Settings):
    """What is looked for, and what is removed for it."""

    against: tuple[str, ...] = ()  # evaluation sets, as evaluation_sets names them
    near: float = Field(0.8, ge=0.5, le=1)  # Jaccard similarity from which two questions are nearly the same
    contaminated: float = Field(0.5, gt=0, le=1)  # share of either question in shared runs of words
    remove: tuple[str, ...] = ()  # names of Kind

    @field_validator("remove")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in get_args(Kind):
                raise unknown_name("kind to remove", name, get_args(Kind))
        return tuple(sorted(set(names)))

    @model_validator(mode="after")
    def _has_sets(self) -> "CheckSettings":
        if "contaminated" in self.remove and not self.against:
            raise ValueError("'contaminated' needs the evaluation sets: --against")
        return self


def check(
    traces: Path, settings: CheckSettings, *, html: Path | None = None, out: Path | None = None
) -> dict[str, Any]:
    """The report on a trace set; written as a page to `html`, and the set without what `settings.remove` names to `out`.

    Raises InputError for a folder that is no finished trace set, an evaluation set that cannot be read, a place that
    cannot be written, and when no pair would be left.
    """
    if bool(settings.remove) != (out is not None):
        raise InputError("--remove says what is left out of the set that --out writes: give both or neither")
    made = artifact.read(traces, KIND, made_by=MADE_BY)
    if html is not None:
        require_file_place(html)
    sets = evaluation_sets(settings.against)
    index = EvaluationIndex(sets)
    pairs = int(made.summary.get("pairs", 0))

    def look() -> Findings:
        return examine(traces, pairs, index, settings.near, settings.contaminated)

    if out is None:
        found, removed = look(), None
    else:
        found, removed = _remove(traces, settings, sets, index, out, look)
    result = report(found, sets, index, settings, made.key)
    if removed is not None:
        result["removed"] = {"path": str(out), "key": removed.key, **removed.summary}
    if html is not None:
        from distill.traces.hygiene.page import render

        write_atomic(html, render(result))
    return result


def _remove(
    traces: Path, settings: CheckSettings, sets: list[EvaluationSet], index: EvaluationIndex, out: Path, look: Any
) -> tuple[Findings, Artifact]:
    step = {
        "step": "check",
        "check_version": VERSION,
        "remove": settings.remove,
        "near": {
            "threshold": settings.near,
            "shingle": SHINGLE,
            "shortest": SHORTEST,
            "permutations": PERMUTATIONS,
            "seed": SEED,
        },
        "contaminated": {"coverage": settings.contaminated, "ngram": NGRAM},
        "against": [{"name": one.name, "sha256": one.sha256} for one in sets],
        "versions": versions(),
    }
    with deriving(traces, out, step) as new:
        found = look()
        if new.finished:
            return found, new.finished
        gone = removals(found, index, settings)

        def change(number: int, pair: Pair) -> Pair | Rejected:
            if number not in gone:
                return pair
            reason, mode, detail = gone[number]
            return Rejected(reason, mode, detail, "", pair.problem, pair.reasoning, pair.ift, pair.place, pair.sample)

        return found, new.commit(change, {"checked": len(found.question_of)})


def versions() -> dict[str, str]:
    """Of what results depend on beside this project."""
    libraries = {name: importlib.metadata.version(name) for name in ("datasketch", "py3langid", "numpy")}
    return libraries | {"unicode": unicodedata.unidata_version}


def removals(
    found: Findings, index: EvaluationIndex, settings: CheckSettings
) -> dict[int, tuple[str, Mode | None, str]]:
    """Number of a pair -> (reason in FAULTS, mode, detail). Of questions that are the same, or nearly, the first that
    nothing else is wrong with stays."""
    gone: dict[int, tuple[str, Mode | None, str]] = {}
    remove: Sequence[str] = settings.remove
    if "contaminated" in remove:
        for hit in found.hits:
            if hit.coverage >= settings.contaminated:
                name, question = index.names[hit.evaluation]
                how = "the same" if hit.match is None else f"{hit.coverage:.0%} in shared runs of {NGRAM} words"
                for number in found.pairs[hit.question]:
                    gone.setdefault(number, ("contaminated", None, f"{name} {question}: {how}"))
        for leak in found.leaks:
            name, question = index.names[leak.evaluation]
            detail = f"{name} {question}: {leak.share:.0%} of it in the {leak.part}"
            gone.setdefault(leak.pair, ("contaminated", PARTS[leak.part], detail))
    if "outliers" in remove:
        for outlier in (*found.odd_language, *found.odd_length):
            gone.setdefault(outlier.pair, ("outlier", PARTS[outlier.part], outlier.detail))
    same: dict[int, int] = {}  # question of found.same_as -> the one that stays
    near: dict[int, int] = {}  # the same of found.near
    for question, (text, group) in enumerate(zip(found.same_as, found.near.first.tolist(), strict=True)):
        left = [number for number in found.pairs[question] if number not in gone]
        if not left:
            continue
        if "duplicates" in remove and text in same:
            why = ("duplicate", None, f"the same question as {_called(found, same[text])}")
        elif "near" in remove and group in near and found.same_as[near[group]] != text:
            kept = near[group]
            alike = jaccard(found.sets[text], found.sets[found.same_as[kept]])
            why = ("near_duplicate", None, f"similarity {alike:.2f} to {_called(found, kept)}")
        else:
            same.setdefault(text, question)
            near.setdefault(group, question)
            continue
        gone.update(dict.fromkeys(left, why))
    return gone


def _called(found: Findings, question: int) -> str:
    return f"{found.problems[question].id} (place {found.places[question]})"

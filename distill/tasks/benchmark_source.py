"""Where the rows of a split lie: on the Hub, in a file, or in a folder that holds several splits."""

import glob
import os
from pathlib import Path

from distill.errors import InputError
from distill.hub import looks_like_hub_id
from distill.tasks.benchmark import Benchmark
from distill.tasks.jsonl import printable

_SUFFIXES = (".jsonl", ".parquet", ".json")


def place_of(benchmark: Benchmark, rows: Path | None, split: str) -> Path:
    """A place for `open_source`: of the published rows, or of those that a user has at `rows`.

    Raises InputError when there is none.
    """
    source = benchmark.source
    if rows is None:
        if source is None:
            raise InputError(f"task {benchmark.name}: has no published rows; its name or file takes yours as NAME:PATH")
        return Path(f"{source.hub}:{source.config}:{split}")
    config = source.config if source else ""
    if looks_like_hub_id(str(rows)):
        return Path(f"{rows}:{config}:{split}")
    if os.path.isdir(rows) and not os.path.isfile(rows / "state.json"):
        return _in_folder(rows, config, split)
    if split != benchmark.question_split:
        raise InputError(
            f"task {benchmark.name}: its examples are of split {split!r}, and {printable(rows):.300} holds only the "
            "questions; give a folder with a file for each"
        )
    return rows


def _in_folder(folder: Path, config: str, split: str) -> Path:
    """A file named after the split, a data set saved under that name, or its Parquet file as the Hub has it."""
    files = [f"{split}{suffix}" for suffix in _SUFFIXES]
    try:
        found = [folder / name for name in (split, *files) if (folder / name).exists()]
        for part in dict.fromkeys(("", "data", config)):
            found += (folder / part).glob(f"{glob.escape(split)}-*.parquet")
    except OSError as error:
        raise InputError(f"{printable(folder)}: cannot be read ({error.strerror})") from None
    if len(found) != 1:
        several = f"{len(found)} places of" if found else "no"
        raise InputError(
            f"{printable(folder)}: {several} split {split!r} in this folder; expected one of {', '.join(files)}"
        )
    return found[0]

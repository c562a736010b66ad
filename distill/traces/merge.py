"""`distill traces merge`: the shards of one run as the trace set that the run without shards would have written.

A shard is an ordinary trace set of the questions whose hash falls into it. Put together in the order of their places, the
rows of all shards are those of the unsharded run with the same answers, to the byte; so the key is that run's as well.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge as merge_sorted
from pathlib import Path
from typing import Any

from distill import artifact
from distill.artifact import Artifact, canonical_json, workspace
from distill.errors import InputError
from distill.traces.bill import Bill
from distill.traces.generate import JOURNAL, from_partial
from distill.traces.store import KIND, MADE_BY, Rejected, iter_pairs, iter_rejected, write_pairs
from distill.traces.top_k import TopK, read_top_k, top_k_file, write_top_k
from distill.traces.trace import MODES, Mode, Pair


def merge(shards: Sequence[Path], out: Path) -> Artifact:
    """Write the trace set of all shards, given in any order, to the folder `out`.

    Raises InputError for a folder that is no shard, shards made with different settings, and missing or doubled ones.
    """
    made = _in_order(shards)
    recipe = {name: value for name, value in made[0].recipe.items() if name not in ("shard", "partial")}
    with workspace(out, KIND, recipe, goes_on=from_partial(out, recipe, merged=True)) as space:
        if space.finished:
            return space.finished
        if (space.path / JOURNAL).exists():
            raise InputError(f"{out}: holds answers of an unfinished run without shards; choose another --out")
        for shard in made:
            shard.verify()
        rows = _Rows(made)
        summary = write_pairs(space.files, rows)
        if not summary["pairs"]:
            raise InputError(f"{out}: no pair in any of {len(made)} shards")
        for shard in made:
            if failed := shard.summary.get("bill", {}).get("failed"):
                rows.bill.failed.add_sums(**failed)
        summary |= {"bill": rows.bill.to_json()} | _merge_top_k(made, space.files, rows.owners)
        partial = [shard.recipe.get("partial") for shard in made]
        if not any(partial):
            return space.commit(summary)
        digest = hashlib.sha256(canonical_json(partial).encode()).hexdigest()
        return space.commit(summary, part={"partial": digest})


def _in_order(folders: Sequence[Path]) -> list[Artifact]:
    """The shards by their numbers, all of one run and each there once."""
    if not folders:
        raise InputError("no shards; expected folders made by `distill traces generate --shard I/N`")
    found: dict[int, Artifact] = {}
    first: Artifact | None = None
    for folder in folders:
        shard = artifact.read(folder, KIND, made_by=MADE_BY)
        number, of = shard.recipe.get("shard", (0, 0))
        if not number:
            raise InputError(f"{folder}: not a shard; expected traces made by `{MADE_BY} --shard I/N`")
        first = first or shard
        differing = artifact.changes(_common(first), _common(shard))
        if differing:
            raise InputError(
                f"{folder}: made with other settings than {first.path} ({'; '.join(differing)}); only shards of one run "
                "can be merged"
            )
        if number in found:
            raise InputError(f"{folder}: shard {number} of {of}, and so is {found[number].path}")
        found[number] = shard
    missing = [number for number in range(1, of + 1) if number not in found]
    if missing:
        listed = ", ".join(map(str, missing[:20])) + (f" and {len(missing) - 20} more" if missing[20:] else "")
        who = f"shard {listed} of {of} is" if len(missing) == 1 else f"shards {listed} of {of} are"
        raise InputError(f"{who} missing; expected the folders of --shard 1/{of} to --shard {of}/{of}")
    return [found[number] for number in sorted(found)]


def _common(shard: Artifact) -> dict[str, Any]:
    """What all shards of a run have in common."""
    recipe = {name: value for name, value in shard.recipe.items() if name not in ("shard", "partial")}
    return recipe | {"shards": shard.recipe["shard"][1]}


@dataclass
class _Rows:
    """The rows of all shards in order, once. What is counted on the way is complete at the end."""

    shards: list[Artifact]
    bill: Bill = field(default_factory=Bill)
    owners: list[int] = field(default_factory=list)  # which shard each pair is from

    def __iter__(self) -> Iterator[Pair | Rejected]:
        streams = [
            _numbered(owner, rows)
            for owner, shard in enumerate(self.shards)
            for rows in (iter_pairs(shard.path), iter_rejected(shard.path))
        ]
        for owner, row in merge_sorted(*streams, key=lambda entry: (entry[1].place, entry[1].sample)):
            self.bill.add(row)
            if isinstance(row, Pair):
                self.owners.append(owner)
            yield row


def _numbered(owner: int, rows: Iterator[Pair | Rejected]) -> Iterator[tuple[int, Pair | Rejected]]:
    return ((owner, row) for row in rows)


def _merge_top_k(shards: list[Artifact], folder: Path, owners: list[int]) -> dict[str, Any]:
    """Both modes' files in the order of the pairs, if the shards have them. Returns what the summary says of them."""
    files: dict[int, dict[Mode, TopK]] = {}
    for owner, shard in enumerate(shards):
        if shard.summary["pairs"]:
            captured = read_top_k(shard.path)
            if captured is None:
                return {}
            files[owner] = captured
    temperatures = {file[mode].temperature for file in files.values() for mode in MODES}
    if len(temperatures) > 1:
        found = " and ".join(f"{t:g}" for t in sorted(temperatures))
        raise InputError(
            f"shards have log-probabilities captured at temperatures {found}; expected one --logprobs-mode"
        )
    about = files[owners[0]]["reasoning"]
    tokens = 0
    for mode in MODES:
        nexts = dict.fromkeys(files, 0)
        order = []
        for owner in owners:
            order.append((files[owner][mode], nexts[owner]))
            nexts[owner] += 1
        lengths = [int(file.offsets[pair + 1] - file.offsets[pair]) for file, pair in order]
        tokens += sum(lengths)
        write_top_k(
            top_k_file(folder, mode),
            lengths,
            (file.distributions(pair) for file, pair in order),
            k=about.k,
            temperature=about.temperature,
            vocabulary=about.vocabulary,
        )
    return {"top_k": {"k": about.k, "temperature": about.temperature, "tokens": tokens}}

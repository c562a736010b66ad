"""A stage's output on disk: a folder that is finished if and only if its manifest.json exists.

    folder/
      recipe.json      written first: kind, key and everything the result depends on
      ...              what the stage writes; a journal or checkpoints while it runs
      manifest.json    written last: the recipe, a summary, and size and SHA-256 of every file

The key is a hash of the recipe. A stage killed at any moment leaves a folder with a recipe and no manifest; the
same command finds it and goes on. A folder made by another recipe is never reused: the error lists what changed.
Of two processes that make the same folder one holds the lock and the other waits, then finds it done.

A finished folder may hold a part of what a recipe makes. It stays what it is while the whole, or more of it, is made in
.next, and is replaced by that at its commit.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import InputError

MANIFEST, RECIPE, LOCK, NEXT = "manifest.json", "recipe.json", ".lock", ".next"
MOST_CHANGES = 8  # of two recipes that an error lists


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_key(kind: str, recipe: dict[str, Any]) -> str:
    """32 hex digits that name the result of `recipe`."""
    return hashlib.sha256(canonical_json([kind, recipe]).encode()).hexdigest()[:32]


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_identity(folder: Path) -> dict[str, str]:
    """What loading a model's folder may depend on: its key where we made it, else SHA-256 of every file but logs."""
    if (folder / MANIFEST).is_file():
        return {"artifact": _record(folder / MANIFEST, key=str)["key"]}
    return {
        file.name: file_sha256(file)
        for file in sorted(folder.iterdir())
        if file.is_file() and not file.name.startswith(".") and file.suffix not in (".log", ".jsonl", ".md")
    }


def _require_text(path: Path) -> None:
    """What we write is read by libraries that take no other paths."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{str(path).encode(errors='replace').decode()}: expected a path that is UTF-8 text") from None


def require_file_place(path: Path) -> None:
    """Make the folder of `path`. Raises InputError when no file can be written there, before the work it is to hold."""
    _require_text(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected a file to write")
    parent = path.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{path}: cannot be written (in {parent})")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut. Raises OSError that names it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:  # that of a full disk does not say which file
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        part.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """A JSON file. Raises InputError that names the file and line."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from None


def _record(path: Path, **fields: type) -> dict[str, Any]:
    """These fields of a JSON object. Raises InputError naming the first that is not there or of another type."""
    value = read_json(path)
    for name, kind in fields.items():
        if not isinstance(value, dict) or not isinstance(value.get(name), kind):
            raise InputError(f"{path}: field {name!r} is missing or damaged; delete {path.parent} and run again")
    return {name: value[name] for name in fields}


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Artifact:
    """A finished folder."""

    path: Path
    kind: str
    key: str
    recipe: dict[str, Any]
    summary: dict[str, Any]
    files: dict[str, dict[str, Any]]  # name -> {"bytes": int, "sha256": str}

    def verify(self) -> None:
        """Compare every file with its recorded SHA-256. Raises InputError naming the first that differs."""
        for name, expected in self.files.items():
            file = self.path / name
            if not file.is_file():
                raise InputError(f"{file}: missing, but listed in {MANIFEST}")
            if file.stat().st_size != expected["bytes"] or file_sha256(file) != expected["sha256"]:
                raise InputError(
                    f"{file}: damaged (differs from the checksum in {MANIFEST}); delete {self.path} and run again"
                )


def read(path: Path, kind: str, *, made_by: str) -> Artifact:
    """The finished artifact at `path`. `made_by` is the command to name when there is none. Raises InputError."""
    _require_text(path)
    if not path.exists():
        raise InputError(f"{path}: no such folder; expected {kind} made by `{made_by}`")
    if not (path / MANIFEST).is_file():
        state = "not finished; run the same command again" if (path / RECIPE).exists() else f"not made by `{made_by}`"
        raise InputError(f"{path}: has no {MANIFEST} ({state})")
    manifest = _record(path / MANIFEST, kind=str, key=str, recipe=dict, summary=dict, files=dict)
    found = Artifact(path, **manifest)
    if found.kind != kind:
        raise InputError(f"{path}: holds {found.kind}, expected {kind} made by `{made_by}`")
    for name, expected in found.files.items():
        if not (path / name).is_file() or (path / name).stat().st_size != expected["bytes"]:
            raise InputError(f"{path / name}: missing or cut short; delete {path} and run `{made_by}` again")
    return found


def recipe_of(path: Path) -> dict[str, Any] | None:
    """What a folder was made or begun with; None where nothing was. Raises InputError for a damaged file."""
    found = next((path / name for name in (MANIFEST, RECIPE) if (path / name).is_file()), None)
    return found and _record(found, recipe=dict)["recipe"]


class Workspace:
    """A folder being made; `commit` finishes it. `finished` is the artifact when it was there already. Results go to
    `files`: the folder itself, or one inside it while a part of the same stands there."""

    def __init__(
        self, path: Path, kind: str, recipe: dict[str, Any], finished: Artifact | None, files: Path | None = None
    ):
        self.path, self.kind, self.recipe, self.finished = path, kind, recipe, finished
        self.key = content_key(kind, recipe)
        self.files = files or path

    def commit(
        self,
        summary: dict[str, Any],
        *,
        remove: tuple[str, ...] = (),
        part: dict[str, Any] | None = None,
        beside: tuple[str, ...] = (),
    ) -> Artifact:
        """Write the manifest over everything but the entries named in `remove` (journals, checkpoints), then delete those.

        In this order: what was paid for is gone only when its result is there. `part` is added to the recipe of what is
        only a part of it, from which `goes_on` can go on; `beside` names entries that stay in the folder and change
        after it is finished, such as the journal for that.
        """
        recipe = self.recipe | (part or {})
        key = content_key(self.kind, recipe)
        there = {file.relative_to(folder): file for folder in (self.path, self.files) for file in folder.rglob("*")}
        files = {}
        for name, file in sorted(there.items()):
            if (
                file.is_file()
                and file.name not in (LOCK, RECIPE, MANIFEST)
                and name.parts[0] not in (NEXT, *remove, *beside)
            ):
                if file.name.startswith(".") and file.name.endswith(".part"):  # of a process killed in write_atomic
                    file.unlink()
                    continue
                _sync(file)
                files[str(name)] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        if self.files != self.path:
            self._take_the_place_of_the_part()
        manifest = {"kind": self.kind, "key": key, "recipe": recipe, "summary": summary, "files": files}
        write_json(self.path / MANIFEST, manifest)
        for name in remove:
            entry = self.path / name
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
        self.finished = Artifact(self.path, self.kind, key, recipe, summary, files)
        return self.finished

    def _take_the_place_of_the_part(self) -> None:
        """From here to its manifest the folder is unfinished: killed in between, the same command makes it again."""
        (self.path / MANIFEST).unlink()
        for file in self.files.iterdir():
            os.replace(file, self.path / file.name)
        self.files.rmdir()


@contextmanager
def workspace(
    path: Path,
    kind: str,
    recipe: dict[str, Any],
    *,
    expendable: tuple[str, ...] = (),
    goes_on: Callable[[dict[str, Any]], bool] = lambda _: False,
) -> Iterator[Workspace]:
    """Open `path` to make the artifact that `recipe` describes, or to find it already made.

    Raises InputError when the folder holds something else, listing the settings that differ. If the body raises
    before anything but the recipe was written, the folder is left as it was found; entries named in `expendable` are
    soon made again and do not count. `goes_on` says of the recipe of a finished folder whether that is only a part of
    this one: then more of it is made, and until the commit the part stays what it is.
    """
    recipe = json.loads(canonical_json(recipe))
    key = content_key(kind, recipe)
    _require_text(path)
    if _is_foreign(path):
        raise InputError(f"{path}: exists and was not made by distill; choose another --out")
    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    with locked(path):
        is_part = (path / MANIFEST).is_file() and goes_on(_record(path / MANIFEST, recipe=dict)["recipe"])
        begun = next((path / name for name in (MANIFEST, RECIPE) if (path / name).is_file()), None)
        if begun is not None and not is_part:
            found = _record(begun, kind=str, key=str, recipe=dict)
            _require_same(path, kind, recipe, key, found, finished=begun.name == MANIFEST)
        is_finished = (path / MANIFEST).is_file() and not is_part
        finished = read(path, kind, made_by="the same command") if is_finished else None
        shutil.rmtree(path / NEXT, ignore_errors=True)  # of a process that was killed
        files = path / NEXT if is_part else path
        files.mkdir(exist_ok=True)
        try:
            if begun is None:
                write_json(path / RECIPE, {"kind": kind, "key": key, "recipe": recipe})
            yield Workspace(path, kind, recipe, finished, files)
        except BaseException:
            shutil.rmtree(path / NEXT, ignore_errors=True)
            if {entry.name for entry in path.iterdir()} <= {LOCK, RECIPE, *expendable}:
                for entry in (path / name for name in expendable):
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
                (path / RECIPE).unlink(missing_ok=True)
                (path / LOCK).unlink()  # last: from here on the folder is whoever's makes the next lock
                with suppress(OSError):
                    for folder in created:
                        folder.rmdir()
            raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Make the folder and hold its lock. Who waited for one that failed may hold a lock that is no longer in the
    folder, or the folder may be gone: then both are made again."""
    while True:
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = open(path / LOCK, "w")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            continue  # removed between the two
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as error:  # a network file system without locks
                raise InputError(f"{path}: cannot be locked ({error.strerror}); expected a disk with flock") from None
            current = False
            with suppress(FileNotFoundError):
                current = os.path.samestat(os.fstat(lock.fileno()), os.stat(path / LOCK))
            if current:
                yield
                return


def _is_foreign(path: Path) -> bool:
    """Whether there is something at `path` that we did not make."""
    try:
        names = {entry.name for entry in path.iterdir()}
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return path.exists()  # not where a part of the path is a file: that cannot be written, and is said so
    return bool(names) and not names & {MANIFEST, RECIPE, LOCK}


def _require_same(path: Path, kind: str, recipe: dict, key: str, found: dict, *, finished: bool) -> None:
    if found["key"] == key:
        return
    state = "already holds" if finished else "was started as"
    if found["kind"] != kind:
        raise InputError(f"{path}: {state} {found['kind']}, not {kind}; choose another --out")
    differing = changes(found["recipe"], recipe)
    if len(differing) > MOST_CHANGES:
        differing[MOST_CHANGES:] = [f"and {len(differing) - MOST_CHANGES} more"]
    raise InputError(
        f"{path}: {state} {kind} with other settings ({'; '.join(differing)}); choose another --out or delete it"
    )


def changes(old: Any, new: Any) -> list[str]:
    """What differs between two JSON values, leaf by leaf: ["contrasts.0.control ift -> (none)"]."""
    old, new = _leaves(old), _leaves(new)
    return [
        f"{name} {_short(old.get(name, '(none)'))} -> {_short(new.get(name, '(none)'))}"
        for name in sorted(old.keys() | new.keys())
        if name not in old or name not in new or old[name] != new[name]
    ]


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Every value that holds no others, by its path."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if parts is None:
        return {name: value}
    return {k: v for key, part in parts for k, v in _leaves(part, f"{name}.{key}" if name else str(key)).items()}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return text if len(text) <= 40 else text[:37] + "..."

"""Finished folders of a study in a storage that its machines share: any URL that fsspec knows, s3:// among them.

URL/
  preset.json, command, declared.json     as in the study's folder
  stages/<stage>-<asked for>.json         what a stage left, written once, after that
  failures/<stage>.json
  students/<name>/manifest.json           written last and once: what it says is all there, and stays
  students/<name>/files-<digest>/...      the files of that manifest, and of no other
  ...                                     traces, evaluations and profiles in the same way

The digest is the manifest's own, so that two machines that made the same folder at a time never write over each other's
files: the first manifest stands, and the other machine takes what it says. Files without a manifest are of an upload that
was cut short, which the same upload goes on with.

In the study's folder on a machine, .outlines/ has what says what a folder is without its weights or pairs.
"""

import fnmatch
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from distill import artifact
from distill.artifact import LOCK, MANIFEST, RECIPE
from distill.errors import InputError
from distill.study.declared import DECLARED
from distill.traces.store import KIND as PAIRS

OUTLINES, FAILURES = ".outlines", "failures"
PRESET, COMMAND = "preset.json", "command"
_TRIES = 3  # of a download that does not have its checksum: its like may just be written over it, byte for byte


class Storage:
    """`out` is the study's folder on this machine; names in the storage are paths relative to it. Every method raises
    InputError, with the URL and the storage's own reason, when that cannot be reached or refuses."""

    def __init__(self, url: str, out: Path):
        self.url, self.out = url, out.absolute()
        import fsspec

        try:
            self._fs, root = fsspec.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise InputError(f"--storage {url}: {error}") from None
        except ValueError as error:
            raise InputError(f"--storage {url}: expected a URL that fsspec knows ({error})") from None
        self._root = root.rstrip("/")

    # Finished folders.

    def keep(self, folder: Path) -> None:
        """Upload a finished folder. Where another machine was first, the folder is then what that one made."""
        name = self._name(folder)
        ours = (folder / MANIFEST).read_bytes()
        with self._reached():
            if self._manifest(name) is None:
                for file, expected in json.loads(ours)["files"].items():
                    self._put(folder / file, f"{self._files(name, ours)}/{file}", expected["bytes"])
                self._write_once(f"{self._root}/{name}/{MANIFEST}", ours)
            theirs = self._manifest(name)
        if theirs is None:
            raise InputError(f"{self.url}: {name}/{MANIFEST} was written and cannot be read")
        if theirs != ours:
            self._take_theirs(folder)

    def bring(self, folder: Path) -> bool:
        """Whether the folder is finished here, after it was fetched from the storage if it is there."""
        if (folder / MANIFEST).is_file():
            return True
        with self._reached():
            manifest = self._manifest(self._name(folder))
        if manifest is not None:
            self._fetch(manifest, self._name(folder), folder, lambda _: True)
        return manifest is not None

    def outline(self, folder: Path) -> Path:
        """Where on this machine that folder is, or everything of it but its weights, or but its pairs, which is enough to
        name what is made of it. The folder itself where the storage has it not."""
        if (folder / MANIFEST).is_file():
            return folder
        name = self._name(folder)
        place = self.out / OUTLINES / name
        if (place / MANIFEST).is_file():
            return place
        with self._reached():
            manifest = self._manifest(name)
        if manifest is None:
            return folder
        pairs = json.loads(manifest)["kind"] == PAIRS
        left_out = ("*",) if pairs else ("model*.safetensors", "*.html")
        self._fetch(manifest, name, place, lambda file: not any(fnmatch.fnmatch(file, one) for one in left_out))
        return place

    def whole(self, folder: Path) -> Path:
        """The folder itself of an outline, fetched."""
        outlines = self.out / OUTLINES
        if not folder.absolute().is_relative_to(outlines):
            return folder
        place = self.out / folder.absolute().relative_to(outlines)
        if not self.bring(place):
            raise InputError(f"{self.url}: {self._name(place)} is no longer there")
        return place

    # What stages say of themselves.

    def keep_note(self, file: Path, asked_for: str, said: dict[str, Any]) -> dict[str, Any]:
        """Store what a stage left. Returns that, or what another machine said before for the same."""
        path = self._note(file, asked_for)
        with self._reached():
            self._make_parent(path)
            self._write_once(path, artifact.canonical_json(said).encode())
            return json.loads(self._fs.cat_file(path))

    def note(self, file: Path, asked_for: str) -> dict[str, Any]:
        """What the stage left that was asked for this; empty where it was not done."""
        with self._reached():
            return json.loads(self._json(self._note(file, asked_for)) or "{}")

    def _note(self, file: Path, asked_for: str) -> str:
        return f"{self._root}/{self._name(file.with_suffix(''))}-{asked_for[:16]}.json"

    # What stands beside them.

    def begin(self) -> None:
        """Fetch what the study declared when it was begun from elsewhere."""
        self._get_text(DECLARED)

    def begun(self) -> None:
        """Tell other machines what the study is."""
        with self._reached():
            self._make_parent(f"{self._root}/{DECLARED}")
            self._write_once(f"{self._root}/{DECLARED}", (self.out / DECLARED).read_bytes())
            for name in (PRESET, COMMAND):
                self._fs.pipe_file(f"{self._root}/{name}", (self.out / name).read_bytes())

    def join(self) -> None:
        """Fetch what the study is. Raises InputError when none was begun there."""
        for name in (PRESET, COMMAND, DECLARED):
            if not self._get_text(name):
                raise InputError(f"{self.url}: holds no study, which `distill study launch --storage` begins")

    def tell(self, failure: Path) -> None:
        """The reason of a failure, or that there is none any more."""
        path = f"{self._root}/{FAILURES}/{failure.name}"
        with self._reached():
            if failure.is_file():
                self._make_parent(path)
                self._fs.pipe_file(path, failure.read_bytes())
            elif self._fs.exists(path):
                self._fs.rm_file(path)

    def hear(self) -> None:
        """Fetch all failures, and forget those that are none any more."""
        shutil.rmtree(self.out / FAILURES, ignore_errors=True)
        with self._reached():
            try:
                listed = self._fs.ls(f"{self._root}/{FAILURES}", detail=False)
            except FileNotFoundError:
                return
        for path in listed:
            self._get_text(f"{FAILURES}/{path.rpartition('/')[2]}")

    # How.

    def _name(self, folder: Path) -> str:
        return folder.absolute().relative_to(self.out).as_posix()

    def _files(self, name: str, manifest: bytes) -> str:
        return f"{self._root}/{name}/files-{hashlib.sha256(manifest).hexdigest()[:16]}"

    def _manifest(self, name: str) -> bytes | None:
        return self._json(f"{self._root}/{name}/{MANIFEST}")

    def _json(self, path: str) -> bytes | None:
        """None also where it was cut short, as it can be in a storage that does not write at once."""
        try:
            data = self._fs.cat_file(path)
            json.loads(data)
        except (FileNotFoundError, ValueError):
            return None
        return data

    def _put(self, file: Path, path: str, size: int) -> None:
        with suppress(FileNotFoundError):
            if self._fs.info(path)["size"] == size:
                return  # of an upload that was cut short
        self._make_parent(path)
        self._fs.put_file(str(file), path)

    def _write_once(self, path: str, data: bytes) -> None:
        """Whole, and only where there is nothing: one looks first, and a storage that can promise it is asked to."""
        from fsspec.implementations.local import LocalFileSystem

        if self._json(path) is not None:
            return
        try:
            if isinstance(self._fs, LocalFileSystem):
                part = Path(f"{path}.{uuid4().hex}.part")
                artifact.write_atomic(part, data)
                try:
                    os.link(part, path)
                finally:
                    part.unlink()
            else:
                self._fs.pipe_file(path, data, mode="create")
        except Exception as error:  # each storage says in its own way that there is something
            if self._json(path) is not None:
                return
            if not isinstance(error, FileExistsError):
                raise
            self._fs.pipe_file(path, data)  # over what was cut short

    def _make_parent(self, path: str) -> None:
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)

    def _fetch(self, manifest: bytes, name: str, place: Path, wanted: Callable[[str], bool]) -> None:
        said = json.loads(manifest)
        files = {file: expected for file, expected in said["files"].items() if wanted(file)}
        for path in (place, *(place / file for file in files)):
            if not path.resolve().is_relative_to(self.out.resolve()):
                raise InputError(f"{self.url}: {name}/{MANIFEST} names {path}, which is not in {self.out}")
        with artifact.locked(place):
            if (place / MANIFEST).is_file():
                return
            artifact.write_json(place / RECIPE, {field: said[field] for field in ("kind", "key", "recipe")})
            for file, expected in files.items():
                self._get(f"{self._files(name, manifest)}/{file}", place / file, expected)
            if len(files) < len(said["files"]):
                manifest = (json.dumps(said | {"files": files}, indent=2, sort_keys=True) + "\n").encode()
            artifact.write_atomic(place / MANIFEST, manifest)

    def _get(self, path: str, file: Path, expected: dict[str, Any]) -> None:
        if file.is_file() and _is(file, expected):
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            for attempt in range(_TRIES):
                time.sleep(attempt)
                with self._reached():
                    self._fs.get_file(path, str(part))
                if _is(part, expected):
                    os.replace(part, file)
                    return
        finally:
            part.unlink(missing_ok=True)
        raise InputError(f"{self.url}: {path} differs from the checksum in its {MANIFEST}; delete that folder there")

    def _get_text(self, name: str) -> bool:
        with self._reached():
            try:
                data = self._fs.cat_file(f"{self._root}/{name}")
            except FileNotFoundError:
                return False
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        artifact.write_atomic(path, data)
        return True

    def _take_theirs(self, folder: Path) -> None:
        with artifact.locked(folder):
            (folder / MANIFEST).unlink()
            for entry in folder.iterdir():
                if entry.name != LOCK:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.bring(folder)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every storage has exceptions of its own
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(f"{self.url}: {reason[0][:300]}") from None


def joined(url: str | None, out: Path) -> Storage | None:
    """The storage of a study that was begun elsewhere, with what that is in `out`. Raises InputError."""
    if url is None:
        return None
    storage = Storage(url, out)
    storage.join()
    return storage


def _is(file: Path, expected: dict[str, Any]) -> bool:
    return file.stat().st_size == expected["bytes"] and artifact.file_sha256(file) == expected["sha256"]

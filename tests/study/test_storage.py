"""A study's storage: what is in it is whole, there once, and what the first writer put there."""

import hashlib
import json
import shutil
import threading
from pathlib import Path

import fsspec
import pytest

from distill import artifact
from distill.artifact import MANIFEST
from distill.errors import InputError
from distill.study import storage as storage_module
from distill.study.storage import Storage, joined
from distill.study.workplace import NotMade, StageNote

BIG, SMALL, PAGE = "model-00001-of-00002.safetensors", "sub/config.json", "answers.html"


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path, rng):
    name = f"study{rng.integers(1 << 40)}"
    if request.param == "file":
        yield (tmp_path / name).as_uri()
        return
    yield f"memory://{name}"
    fs = fsspec.filesystem("memory")
    if fs.exists(f"/{name}"):
        fs.rm(f"/{name}", recursive=True)


def make(out: Path, rng, *, kind: str = "student", seed: int = 0, name: str = "students/tiny-0") -> Path:
    """A finished folder with files of random bytes; `seed` alone is in its recipe."""
    folder = out / name
    with artifact.workspace(folder, kind, {"seed": seed}) as work:
        (folder / "sub").mkdir()
        for file in (BIG, SMALL, PAGE):
            (folder / file).write_bytes(rng.bytes(int(rng.integers(1, 5000))))
        work.commit({"note": int(rng.integers(1 << 30))})
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != artifact.LOCK
    }


def stored(url: str) -> dict[str, bytes]:
    """Every file in the storage."""
    fs, root = fsspec.url_to_fs(url)
    return {path.removeprefix(root): fs.cat_file(path) for path in fs.find(root)} if fs.exists(root) else {}


class Counted:
    """A file system that counts uploads, and fails at the n-th."""

    def __init__(self, fs, fails_at: int | None = None):
        self.fs, self.fails_at, self.puts = fs, fails_at, []

    def __getattr__(self, name):
        return getattr(self.fs, name)

    def put_file(self, file, path, **values):
        if self.fails_at is not None and len(self.puts) == self.fails_at:
            raise ConnectionResetError("the line is down")
        self.puts.append(path)
        self.fs.put_file(file, path, **values)


def test_what_is_kept_comes_back_the_same_and_is_uploaded_once(url, tmp_path, rng):
    here, there = Storage(url, tmp_path / "here"), Storage(url, tmp_path / "there")
    folder = make(tmp_path / "here", rng)
    here._fs = Counted(here._fs)
    here.keep(folder)
    assert len(here._fs.puts) == 3
    before = stored(url)
    here.keep(folder)
    assert len(here._fs.puts) == 3 and stored(url) == before

    other = tmp_path / "there" / "students" / "tiny-0"
    assert not there.bring(tmp_path / "there" / "students" / "tiny-1")
    assert there.bring(other) and contents(other) == contents(folder)
    artifact.read(other, "student", made_by="").verify()
    # A stage finds it as if it had made it.
    with artifact.workspace(other, "student", {"seed": 0}) as work:
        assert work.finished is not None


def test_an_upload_that_is_cut_short_is_nothing_and_is_gone_on_with(url, tmp_path, rng):
    here, there = Storage(url, tmp_path / "here"), Storage(url, tmp_path / "there")
    folder, other = make(tmp_path / "here", rng), tmp_path / "there" / "students" / "tiny-0"
    plain, fails_at = here._fs, int(rng.integers(0, 3))
    here._fs = Counted(plain, fails_at)
    with pytest.raises(InputError, match="the line is down") as caught:
        here.keep(folder)
    assert url in str(caught.value)
    assert not there.bring(other) and there.outline(other) == other and not other.exists()
    # What had come there is cut short too, as on a disk that was full.
    for path in here._fs.puts[:1]:
        plain.pipe_file(path, plain.cat_file(path)[:-1])
    here._fs = Counted(plain)
    here.keep(folder)
    assert len(here._fs.puts) == 3 - max(0, fails_at - 1)
    assert there.bring(other) and contents(other) == contents(folder)


def test_a_manifest_that_is_cut_short_is_none(url, tmp_path, rng):
    here, there = Storage(url, tmp_path / "here"), Storage(url, tmp_path / "there")
    folder, other = make(tmp_path / "here", rng), tmp_path / "there" / "students" / "tiny-0"
    data = (folder / MANIFEST).read_bytes()
    here._make_parent(f"{here._root}/students/tiny-0/{MANIFEST}")
    here._fs.pipe_file(f"{here._root}/students/tiny-0/{MANIFEST}", data[: int(rng.integers(0, len(data) - 2))])
    assert not there.bring(other)
    here.keep(folder)
    assert there.bring(other) and contents(other) == contents(folder)


def test_of_two_writers_the_first_wins_and_the_other_has_what_that_one_made(url, tmp_path, rng):
    outs = [tmp_path / name for name in ("a", "b", "c")]
    folders = [make(out, rng) for out in outs[:2]]  # one recipe, other bytes
    stores = [Storage(url, out) for out in outs]
    assert contents(folders[0]) != contents(folders[1])
    together = threading.Barrier(2)

    def keep(store: Storage, folder: Path) -> None:
        together.wait()
        store.keep(folder)

    threads = [threading.Thread(target=keep, args=pair) for pair in zip(stores, folders, strict=False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stores[2].bring(outs[2] / "students" / "tiny-0")
    winner = contents(outs[2] / "students" / "tiny-0")
    assert contents(folders[0]) == winner == contents(folders[1])
    artifact.read(folders[1], "student", made_by="").verify()
    before = stored(url)
    late = make(tmp_path / "late", rng)
    Storage(url, tmp_path / "late").keep(late)
    assert contents(late) == winner and stored(url) == before


def test_a_manifest_that_was_not_kept_costs_nobody_a_folder(url, tmp_path, rng, monkeypatch):
    here = Storage(url, tmp_path / "here")
    folder = make(tmp_path / "here", rng)
    before = contents(folder)
    monkeypatch.setattr(here, "_write_once", lambda *_: None)
    with pytest.raises(InputError, match="was written and cannot be read"):
        here.keep(folder)
    assert contents(folder) == before


def test_what_cannot_write_once_looks_before_it_writes(url, tmp_path):
    class Careless(Counted):
        def pipe_file(self, path, data, mode="overwrite"):
            self.fs.pipe_file(path, data)

    store = Storage(url, tmp_path)
    store._fs = Careless(store._fs)
    for number in range(2):
        assert store.keep_note(tmp_path / "stages" / "x.json", "k" * 32, {"number": number}) == {"number": 0}


def test_an_outline_names_a_student_without_its_weights_and_the_whole_comes_later(url, tmp_path, rng):
    here, there = Storage(url, tmp_path / "here"), Storage(url, tmp_path / "there")
    student, pairs = make(tmp_path / "here", rng), make(tmp_path / "here", rng, kind="traces", name="traces-1")
    for folder in (student, pairs):
        here.keep(folder)
        assert here.outline(folder) == folder
    outline = there.outline(tmp_path / "there" / "students" / "tiny-0")
    assert set(contents(outline)) == {MANIFEST, artifact.RECIPE, SMALL}
    found = artifact.read(outline, "student", made_by="")
    assert found.key == artifact.read(student, "student", made_by="").key
    assert artifact.folder_identity(outline) == artifact.folder_identity(student)
    assert set(contents(there.outline(tmp_path / "there" / "traces-1"))) == {MANIFEST, artifact.RECIPE}
    assert not (tmp_path / "there" / "students").exists()
    whole = there.whole(outline)
    assert whole == tmp_path / "there" / "students" / "tiny-0" and contents(whole) == contents(student)
    assert there.whole(whole) == whole and there.outline(whole) == whole


def test_damage_in_the_storage_is_named_and_never_becomes_a_folder(url, tmp_path, rng, monkeypatch):
    monkeypatch.setattr(storage_module, "_TRIES", 1)
    here, there = Storage(url, tmp_path / "here"), Storage(url, tmp_path / "there")
    folder, other = make(tmp_path / "here", rng), tmp_path / "there" / "students" / "tiny-0"
    here.keep(folder)
    (path,) = here._fs.glob(f"{here._root}/students/tiny-0/files-*/{SMALL}")
    good = here._fs.cat_file(path)
    bad = bytearray(good)
    bad[int(rng.integers(len(bad)))] ^= 1
    here._fs.pipe_file(path, bytes(bad))
    with pytest.raises(InputError, match="differs from the checksum"):
        there.bring(other)
    assert not (other / MANIFEST).exists() and not (other / SMALL).exists()
    here._fs.pipe_file(path, good)
    assert there.bring(other) and contents(other) == contents(folder)


def test_a_manifest_cannot_write_outside_its_study(url, tmp_path, rng):
    here, there = Storage(url, tmp_path / "here"), Storage(url, tmp_path / "there")
    here.keep(make(tmp_path / "here", rng))
    path = f"{here._root}/students/tiny-0/{MANIFEST}"
    said = json.loads(here._fs.cat_file(path))
    said["files"] = {"../../../evil": {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}}
    here._fs.pipe_file(path, json.dumps(said).encode())
    with pytest.raises(InputError, match="not in"):
        there.bring(tmp_path / "there" / "students" / "tiny-0")
    assert not (tmp_path / "evil").exists()
    with pytest.raises(InputError, match="not in"):
        there._fetch(json.dumps(said | {"files": {}}).encode(), "x", tmp_path / "there" / ".." / "evil", lambda _: True)
    assert not (tmp_path / "evil").exists()


def test_a_stage_is_found_by_what_it_was_asked_for(url, tmp_path, rng):
    outs = [tmp_path / name for name in ("here", "there")]
    notes = [StageNote(out, "train tiny 0", "k" * 32, Storage(url, out)) for out in outs]
    with pytest.raises(NotMade):
        notes[1].read("student", "student")
    notes[0].write(student=artifact.read(make(outs[0], rng), "student", made_by=""))
    assert notes[1].read("student", "student").key == notes[0].read("student", "student").key
    with pytest.raises(NotMade):
        StageNote(outs[1], "train tiny 0", "other" * 8, Storage(url, outs[1])).read("student", "student")
    # Who made it too, under another name, takes back what was said first.
    other = make(tmp_path / "late", rng, name="students/tiny-other")
    late = StageNote(tmp_path / "late", "train tiny 0", "k" * 32, Storage(url, tmp_path / "late"))
    late.write(student=artifact.read(other, "student", made_by=""))
    assert late.folders() == {"student": "students/tiny-0"} == notes[1].folders()


def test_what_stands_beside_the_stages(url, tmp_path):
    here, there = Storage(url, tmp_path / "here"), Storage(url, tmp_path / "there")
    (tmp_path / "here" / "failures").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no study"):
        joined(url, tmp_path / "there")
    for name in ("preset.json", "command", "declared.json"):
        (tmp_path / "here" / name).write_text(f'"{name}"')
    here.begun()
    joined(url, tmp_path / "there")
    assert (tmp_path / "there" / "preset.json").read_text() == '"preset.json"'
    # What was declared first stays.
    (tmp_path / "here" / "declared.json").write_text('"changed"')
    here.begun()
    shutil.rmtree(tmp_path / "there")
    there.begin()
    assert contents(tmp_path / "there") == {"declared.json": b'"declared.json"'}

    failures = [tmp_path / "here" / "failures" / f"{name}.json" for name in "ab"]
    for failure in failures:
        failure.write_text(f'"{failure.name}"')
        here.tell(failure)
    there.hear()
    assert set(contents(tmp_path / "there" / "failures")) == {"a.json", "b.json"}
    failures[0].unlink()
    here.tell(failures[0])
    there.hear()
    assert set(contents(tmp_path / "there" / "failures")) == {"b.json"}


@pytest.mark.parametrize(
    ("wrong", "said"), [("nosuch://bucket/x", "nosuch"), ("file:///proc/1/nowhere/x", "file:///proc/1/nowhere/x: ")]
)
def test_a_storage_that_is_not_there_is_one_line(wrong, said, tmp_path, rng):
    folder = make(tmp_path, rng)
    with pytest.raises(InputError, match=said) as caught:
        Storage(wrong, tmp_path).keep(folder)
    assert "\n" not in str(caught.value)

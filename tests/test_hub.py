"""Names of the Hub and paths of this machine."""

import pytest

from distill.hub import looks_like_hub_id


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B", "facebook/opt-1.3b", "a/b", "lab_1/x_y.v2", "lab/whisper.cpp"])
def test_owner_and_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert looks_like_hub_id(name)
    (tmp_path / name.split("/")[0]).mkdir()
    assert not looks_like_hub_id(name)  # it is in a folder that is here: a path


@pytest.mark.parametrize(
    "text",
    [
        *(
            "data/pairz.jsonl",
            "data/pairs.JSON",
            "data/p.parquet",
            "out/model.safetensors",
            "student",
            "",
            "/a/b",
            "a/b/c",
        ),
        *("../b", "./b", "~/b", "a/", "/b", "a b/c", "a/b\n", "é/b", "a//b"),
    ],
)
def test_paths_and_nonsense(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not looks_like_hub_id(text)

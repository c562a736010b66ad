"""Names of the Hub and paths of this machine."""

import logging as pylogging

import pytest

from distill.hub import asking_the_hub, looks_like_hub_id


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


def test_the_clients_warnings_of_failed_tries_are_not_shown(tmp_path, capsys, rng):
    """One line says that the Hub is asked, once; a folder is not asked for. What was shown before is shown again after."""
    from huggingface_hub.utils import logging

    client, name = logging.get_logger("huggingface_hub.utils._http"), f"owner/name{rng.integers(10**9)}"
    handled, before = [], logging.get_verbosity()
    handler = pylogging.Handler()
    handler.emit = lambda record: handled.append(record.getMessage())
    client.addHandler(handler)
    try:
        for _ in range(2):
            with pytest.raises(ValueError), asking_the_hub(name):
                client.warning("Retrying in 1s [Retry 1/5].")
                raise ValueError
        with asking_the_hub(str(tmp_path)):
            client.warning("a folder")
    finally:
        client.removeHandler(handler)
    assert handled == ["a folder"] and logging.get_verbosity() == before
    said = capsys.readouterr().err
    assert said.count(f"{name}: asking the Hugging Face Hub\n") == 1 and "Retrying" not in said

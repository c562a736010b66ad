"""Documents on disk: what is mapped is what was rendered, made once, whole or not at all."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distill.errors import InputError
from distill.packing import documents as kept
from distill.packing import render as rendering
from distill.packing.chat import COMPACT, MODE_SIGNALS, ChatFormat, ThinkFormat
from distill.packing.documents import make_documents, open_documents, rendered_documents
from distill.packing.pack import Document
from distill.packing.render import Rendered, Rendering, render
from distill.packing.source import TraceSet
from distill.packing.tokenizer import train_tokenizer

TEXTS = ["seven naïve 東京"] * 4
HOW = {"answers": "teacher", "max_length": 4096, "vocab_size": 320}


@pytest.fixture(scope="module")
def chat():
    return ChatFormat(train_tokenizer(TEXTS, 300), COMPACT, source="student tiny")


@pytest.fixture
def trace_set(make_pairs):
    return TraceSet("key of the traces", make_pairs(40), Path("traces"))


def arrays(rendered: Rendered) -> list:
    names = ("tokens", "bounds", "prompt_lengths", "reasoning_lengths", "kept")
    return [(getattr(rendered, name).dtype, getattr(rendered, name).tolist()) for name in names]


@pytest.mark.parametrize("chunk", [1, 900, 1 << 20])
def test_what_is_mapped_is_what_is_rendered(chat, trace_set, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(rendering, "_CHUNK", chunk)
    lengths = render(trace_set.pairs, chat, Rendering(**HOW)).lengths.reshape(-1, 2).max(axis=1)
    how = HOW | {"max_length": int(np.sort(lengths)[-4])}  # up to three pairs are longer
    advanced = []
    expected = render(trace_set.pairs, chat, Rendering(**how))
    found = rendered_documents(tmp_path / "d", trace_set, chat, Rendering(**how), advance=advanced.append)
    assert arrays(found) == arrays(expected) and found.pair_ids == expected.pair_ids and sum(advanced) == 40
    assert (found.dropped, found.dropped_tokens) == (expected.dropped, expected.dropped_tokens)
    assert found.n_pairs + found.dropped == found.n_given == 40
    assert found.kept.tolist() == [i for i, length in enumerate(lengths) if length <= how["max_length"]]
    (folder,) = (tmp_path / "d").iterdir()
    assert {f"{name}.npy" for name in kept.DTYPES} < {file.name for file in folder.iterdir()}


def test_a_document_is_a_view_of_the_file(chat, trace_set, tmp_path):
    rendered = rendered_documents(tmp_path, trace_set, chat, Rendering(**HOW))
    documents = rendered.documents
    assert len(documents) == 80 and len(list(documents)) == 80
    for at, document in enumerate(documents):
        assert isinstance(document, Document) and type(document.prompt_length) is int
        assert np.shares_memory(document.tokens, rendered.tokens) and not document.tokens.flags.writeable
        assert document.length == rendered.lengths[at] and document.supervised == rendered.supervised[at]
        assert document.reasoning_length == rendered.reasoning_lengths[at]
    assert [d.tokens.tolist() for d in documents[1::2]] == [documents[i].tokens.tolist() for i in range(1, 80, 2)]
    assert documents[-1].tokens.tolist() == documents[np.int64(79)].tokens.tolist()
    for outside in (80, -81):
        with pytest.raises(IndexError):
            documents[outside]


def test_it_is_made_once_for_all_arms(chat, trace_set, tmp_path, monkeypatch):
    first = make_documents(tmp_path, trace_set, chat, Rendering(**HOW, modes=("reasoning",)))
    monkeypatch.setattr(kept, "render_parts", lambda *_, **__: pytest.fail("rendered again"))
    for modes in (("ift",), ("reasoning",), ("ift", "reasoning")):
        assert make_documents(tmp_path, trace_set, chat, Rendering(**HOW, modes=modes)) == first


def test_the_key_holds_what_decides_a_token(chat, trace_set, tmp_path):
    other_chats = {
        "tokenizer": ChatFormat(train_tokenizer([*TEXTS, "seven"], 300), COMPACT, source="a"),
        "think": ChatFormat(train_tokenizer(TEXTS, 300), ThinkFormat(), source="a"),
        "signal": ChatFormat(train_tokenizer(TEXTS, 300), replace(COMPACT, mode_signal="prompt"), source="a"),
        "same": ChatFormat(train_tokenizer(TEXTS, 300), COMPACT, source="another name"),
    }
    template = train_tokenizer(TEXTS, 300)
    template.chat_template = "{# a remark #}" + template.chat_template
    other_chats["template"] = ChatFormat(template, COMPACT, source="a")
    paths = {name: make_documents(tmp_path, trace_set, other, Rendering(**HOW)) for name, other in other_chats.items()}
    paths["traces"] = make_documents(tmp_path, replace(trace_set, key="other"), chat, Rendering(**HOW))
    paths["pairs"] = make_documents(tmp_path, replace(trace_set, pairs=trace_set.pairs[:-1]), chat, Rendering(**HOW))
    for name, value in {"answers": "gold", "max_length": 4095}.items():
        paths[name] = make_documents(tmp_path, trace_set, chat, Rendering(**HOW | {name: value}))
    assert make_documents(tmp_path, trace_set, chat, Rendering(**HOW)) == paths.pop("same")
    assert make_documents(tmp_path, trace_set, chat, Rendering(**HOW | {"vocab_size": 400})) not in paths.values()
    assert len(set(paths.values())) == len(paths)
    assert len(list(tmp_path.iterdir())) == len(paths) + 1


def test_of_several_at_once_one_renders(chat, trace_set, tmp_path, monkeypatch):
    calls, real = [], kept.render_parts
    monkeypatch.setattr(kept, "render_parts", lambda *a, **k: calls.append(1) or real(*a, **k))
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(make_documents(tmp_path, trace_set, chat, Rendering(**HOW))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and len(found) == 4 and len(set(found)) == 1
    assert arrays(open_documents(found[0])) == arrays(render(trace_set.pairs, chat, Rendering(**HOW)))


def test_killed_while_rendering(chat, trace_set, tmp_path, rng):
    """A torn folder, as SIGKILL leaves it, is made again to the same bytes."""
    whole, torn = (make_documents(tmp_path / name, trace_set, chat, Rendering(**HOW)) for name in ("whole", "torn"))
    (torn / "manifest.json").unlink()
    for file in torn.glob("*.npy"):
        data = file.read_bytes()
        file.write_bytes(data[: int(rng.integers(len(data)))])
    if rng.integers(2):
        (torn / "pair_ids.json").unlink()
    with pytest.raises(InputError, match="not finished"):
        open_documents(torn)
    assert make_documents(tmp_path / "torn", trace_set, chat, Rendering(**HOW)) == torn
    for file in whole.iterdir():
        assert file.read_bytes() == (torn / file.name).read_bytes(), file.name


def cut(path, rng):
    path.write_bytes(path.read_bytes()[: int(rng.integers(path.stat().st_size))])


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def remove(path, rng):
    path.unlink()


@pytest.mark.parametrize("damage", [cut, flip, remove])
@pytest.mark.parametrize("name", ["tokens.npy", "bounds.npy", "reasoning_lengths.npy", "kept.npy", "pair_ids.json"])
def test_damage_is_named(chat, trace_set, tmp_path, rng, damage, name):
    path = make_documents(tmp_path, trace_set, chat, Rendering(**HOW))
    damage(path / name, rng)
    with pytest.raises(InputError, match=rf"{name}: (damaged|missing)") as refused:
        make_documents(tmp_path, trace_set, chat, Rendering(**HOW))
    assert "\n" not in str(refused.value)
    shutil.rmtree(path)
    make_documents(tmp_path, trace_set, chat, Rendering(**HOW))


def test_what_fails_leaves_nothing(chat, trace_set, tmp_path, monkeypatch):
    monkeypatch.setattr(rendering, "_CHUNK", 700)  # the fault comes after some chunks are written
    folder = tmp_path / "out" / "documents"
    bad = list(trace_set.pairs)
    bad[30] = replace(bad[30], ift=replace(bad[30].ift, answer="4<|end|>"))
    with pytest.raises(InputError, match=f"{bad[30].problem.id} contains the end-of-turn"):
        make_documents(folder, replace(trace_set, pairs=bad), chat, Rendering(**HOW))
    with pytest.raises(InputError, match="of 40 pairs are longer than 4 tokens"):
        make_documents(folder, trace_set, chat, Rendering(**HOW | {"max_length": 4}))
    with pytest.raises(InputError, match="tokenizer and model disagree"):
        make_documents(folder, trace_set, chat, Rendering(**HOW | {"vocab_size": 50}))
    written, real = [], kept._Array.append

    def full(array, values):
        written.append(1)
        if len(written) > 6:
            raise OSError(28, "No space left on device")
        real(array, values)

    monkeypatch.setattr(kept._Array, "append", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        make_documents(folder, trace_set, chat, Rendering(**HOW))
    assert len(written) > 6 and list(tmp_path.iterdir()) == []


def test_a_smaller_vocabulary_is_refused_where_they_are_found(chat, trace_set, tmp_path):
    make_documents(tmp_path, trace_set, chat, Rendering(**HOW))
    with pytest.raises(InputError, match=r"disagree: token id \d+ .* 50 entries"):
        make_documents(tmp_path, trace_set, chat, Rendering(**HOW | {"vocab_size": 50}))


def test_no_pairs_are_no_documents(chat, tmp_path):
    found = rendered_documents(tmp_path, TraceSet("none", [], Path("traces")), chat, Rendering(**HOW))
    assert found.n_pairs == 0 and len(found.documents) == 0 and found.lengths.tolist() == []
    assert arrays(found) == arrays(render([], chat, Rendering(**HOW)))


@pytest.mark.parametrize("signal", ["none", "prompt"])
@pytest.mark.parametrize(
    "tags",
    [("<think>", "</think>"), ("[[why", "why]]"), ("<th", ">")],
    ids=["one token", "several", "an ordinary one"],
)
def test_reasoning_ends_with_its_closing_tag(make_pairs, tags, signal):
    think = ThinkFormat(opening=tags[0], closing=tags[1], mode_signal=signal)
    chat = ChatFormat(train_tokenizer(TEXTS, 300), think, source="here")
    clean = lambda text: text.replace(">", "").replace("<th", "")  # noqa: E731
    pairs = [
        replace(
            pair,
            reasoning=replace(
                pair.reasoning, **{k: clean(getattr(pair.reasoning, k)) for k in ("reasoning", "answer")}
            ),
            ift=replace(pair.ift, answer=clean(pair.ift.answer)),
        )
        for pair in make_pairs(25)
    ]
    for reference, document in enumerate(render(pairs, chat, Rendering(**HOW)).documents):
        target = document.tokens[document.prompt_length :].tolist()
        text = lambda n: chat.tokenizer.decode(target[:n], skip_special_tokens=False)  # noqa: B023, E731
        expected = next((n for n in range(len(target)) if tags[1] in text(n)), 0)
        assert document.reasoning_length == expected and (expected > 0) == bool(reference % 2)
        mode = ("ift", "reasoning")[reference % 2]
        prompt = pairs[reference // 2].problem.prompt + (MODE_SIGNALS[mode] if signal == "prompt" else "")
        asked = chat.tokenizer.decode(document.tokens[: document.prompt_length], skip_special_tokens=False)
        assert asked == f"<|user|>{prompt}<|assistant|>"


def test_a_signal_changes_nothing_but_the_question(chat, trace_set):
    signalled = ChatFormat(train_tokenizer(TEXTS, 300), replace(COMPACT, mode_signal="prompt"), source="here")
    plain, told = (render(trace_set.pairs, c, Rendering(**HOW)).documents for c in (chat, signalled))
    for one, other in zip(plain, told, strict=True):
        assert one.tokens[one.prompt_length :].tolist() == other.tokens[other.prompt_length :].tolist()
        assert one.reasoning_length == other.reasoning_length and other.prompt_length > one.prompt_length

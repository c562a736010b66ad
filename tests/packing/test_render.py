"""Pairs to documents to packs: what is dropped, what is refused, and every number of a pack."""

import gc
from dataclasses import replace

import numpy as np
import pytest

from distill.errors import InputError
from distill.packing.chat import COMPACT, ChatFormat
from distill.packing.pack import IGNORE, Document, build_pack
from distill.packing.render import Rendering, render
from distill.packing.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def chat():
    return ChatFormat(train_tokenizer(["seven naïve 東京"] * 4, 300), COMPACT, source="student tiny")


def rendered(pairs, chat, advance=lambda n: None, **how):
    how = Rendering(**{"answers": "teacher", "max_length": 4096, "vocab_size": 304} | how)
    return render(pairs, chat, how, advance=advance)


def test_both_documents_of_every_pair_are_there_token_for_token(chat, make_pairs):
    pairs = make_pairs(40)
    result = rendered(pairs, chat)
    assert result.pair_ids == [pair.problem.id for pair in pairs] and result.dropped == 0
    for reference, document in enumerate(result.documents):
        pair = pairs[reference // 2]
        trace = pair.reasoning if reference % 2 else pair.ift
        prompt, target = document.tokens[: document.prompt_length], document.tokens[document.prompt_length :]
        thought = f"<think>{trace.reasoning}</think>" if trace.reasoning else ""
        assert chat.tokenizer.decode(prompt) == f"<|user|>{pair.problem.prompt}<|assistant|>"
        assert chat.tokenizer.decode(target) == f"{thought}{trace.answer}<|end|>"
        assert document.supervised == len(target) and document.length == len(document.tokens) - 1


def one_text_at_a_time(pairs, chat):
    """The tokens of every document: the template and the tokenizer as transformers calls them, nothing shared."""
    ids = lambda text: chat.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    for pair in pairs:
        question = [{"role": "user", "content": pair.problem.prompt}]
        prompt = chat.tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        for trace in (pair.ift, pair.reasoning):
            text = chat.think.wrap(trace.reasoning, trace.answer) if trace.reasoning else trace.answer
            yield ids(prompt), [*ids(text), chat.end_of_turn]


@pytest.mark.parametrize("chunk", [1, 700, 1 << 20])
def test_chunks_in_parallel_are_one_text_at_a_time(chat, make_pairs, monkeypatch, chunk):
    """Whatever a text holds: special tokens in questions and answers, characters of several bytes, white space."""
    monkeypatch.setattr("distill.packing.render._CHUNK", chunk)
    pairs = make_pairs(50)
    hostile = "<|assistant|> <|end|><think>\n</think><|user|>"
    pairs[7] = replace(pairs[7], problem=replace(pairs[7].problem, prompt=hostile))
    pairs[8] = replace(pairs[8], ift=replace(pairs[8].ift, answer="<|pad|> is <|user|>", reasoning=""))
    advanced = []
    result = rendered(pairs, chat, advance=advanced.append)
    expected = list(one_text_at_a_time(pairs, chat))
    assert len(result.documents) == len(expected) and sum(advanced) == 50
    for document, (prompt, target) in zip(result.documents, expected, strict=True):
        assert document.tokens.tolist() == prompt + target and document.prompt_length == len(prompt)
        assert document.tokens.dtype == np.int32 and type(document.prompt_length) is int


def test_padding_and_truncation_in_a_tokenizer_s_file_change_nothing(make_pairs):
    pairs = make_pairs(12)
    plain, configured = (train_tokenizer(["seven naïve 東京"] * 4, 300) for _ in range(2))
    configured.backend_tokenizer.enable_truncation(5)
    configured.backend_tokenizer.enable_padding(length=64)
    one, other = (rendered(pairs, ChatFormat(t, COMPACT, source="x")).documents for t in (plain, configured))
    assert [d.tokens.tolist() for d in one] == [d.tokens.tolist() for d in other]


def test_a_tokenizer_without_a_library_below_gives_the_same_tokens(chat, make_pairs, monkeypatch):
    texts = [pair.reasoning.reasoning for pair in make_pairs(20)] + ["", "<|end|>"]
    fast = list(chat.encode(texts))
    monkeypatch.setattr(type(chat.tokenizer), "is_fast", False)
    assert list(chat.encode(texts)) == fast and list(chat.encode([])) == []


def test_a_mode_that_the_template_cannot_hold_is_measured_as_the_other(chat, make_pairs, monkeypatch):
    """Where every answer is opened with a think block, the arm that only reasons is still rendered, twice."""
    monkeypatch.setattr(chat, "prompt_opens_thinking", True)
    monkeypatch.setattr(chat, "_said", "")
    pairs = make_pairs(9)
    documents = rendered(pairs, chat, modes=("reasoning",)).documents
    for ift, reasoning in zip(documents[::2], documents[1::2], strict=True):
        assert ift.tokens.tolist() == reasoning.tokens.tolist()
    with pytest.raises(InputError, match="cannot hold an answer without reasoning"):
        rendered(pairs, chat, modes=("ift",))


def test_a_pair_with_one_long_document_leaves_both_modes(chat, make_pairs):
    pairs = make_pairs(60, reasoning=60)
    everything = rendered(pairs, chat)
    longest = [max(everything.documents[2 * i].length, everything.documents[2 * i + 1].length) for i in range(60)]
    limit = sorted(longest)[-4]  # up to three pairs are longer
    result = rendered(pairs, chat, max_length=limit)
    kept = [i for i in range(60) if longest[i] <= limit]
    assert 1 <= result.dropped <= 3 and len(kept) == 60 - result.dropped
    assert result.pair_ids == [pairs[i].problem.id for i in kept]
    assert len(result.documents) == 2 * len(kept) and max(d.length for d in result.documents) == limit
    gone = [i for i in range(60) if longest[i] > limit]
    assert result.dropped_tokens == sum(everything.documents[2 * i + m].length for i in gone for m in (0, 1))


def test_dropping_more_than_the_limit_is_an_error(chat, make_pairs):
    with pytest.raises(InputError, match=r"\d+ of 30 pairs are longer than 20 tokens.*10%"):
        rendered(make_pairs(30), chat, max_length=20)


def test_a_tokenizer_larger_than_the_model_is_refused(chat, make_pairs):
    with pytest.raises(InputError, match=r"tokenizer and model disagree: token id \d+ in add/[0-9a-f]+.* 50 entries"):
        rendered(make_pairs(5), chat, vocab_size=50)


def test_a_target_that_cannot_be_masked_names_its_pair(chat, make_pairs):
    pairs = make_pairs(5)
    for mode in ("ift", "reasoning"):
        bad = list(pairs)
        trace = replace(pairs[3].trace(mode), answer="4<|end|>")
        bad[3] = replace(pairs[3], **{mode: trace})
        with pytest.raises(InputError, match=rf"{pairs[3].problem.id} contains the end-of-turn"):
            rendered(bad, chat)
    bad[3] = replace(pairs[3], ift=replace(pairs[3].ift, answer=""))
    with pytest.raises(InputError, match=rf"{pairs[3].problem.id} has no tokens"):
        rendered(bad, chat)


def test_a_pack_against_one_document_after_another(rng):
    documents = []
    for _ in range(int(rng.integers(1, 30))):
        tokens = rng.integers(0, 1000, int(rng.integers(2, 40))).astype(np.int32)
        documents.append(Document(tokens, int(rng.integers(1, len(tokens)))))
    pack = build_pack(documents)

    inputs, labels, positions, ends = [], [], [], [0]
    for document in documents:
        tokens = document.tokens.tolist()
        for at, token in enumerate(tokens[:-1]):
            inputs.append(token)
            positions.append(at)
            labels.append(tokens[at + 1] if at + 1 >= document.prompt_length else IGNORE)
        ends.append(len(inputs))
    assert pack.input_ids.tolist() == [inputs] and pack.labels.tolist() == [labels]
    assert pack.position_ids.tolist() == [positions] and pack.cu_seqlens.tolist() == ends
    assert pack.loss_rows.tolist() == [i for i, label in enumerate(labels) if label != IGNORE]
    assert pack.supervised == sum(document.supervised for document in documents)
    assert pack.max_seqlen == max(document.length for document in documents)
    assert (str(pack.input_ids.dtype), str(pack.cu_seqlens.dtype)) == ("torch.int64", "torch.int32")
    assert pack.to("cpu").loss_rows.tolist() == pack.loss_rows.tolist()


def test_garbage_is_collected_as_before(chat, make_pairs):
    """Also when rendering ends in an error."""
    before = gc.get_freeze_count()
    rendered(make_pairs(5), chat)
    with pytest.raises(InputError):
        rendered(make_pairs(5), chat, vocab_size=50)
    assert gc.get_freeze_count() <= before and gc.isenabled()

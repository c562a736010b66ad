"""Pairs to documents to packs: what is dropped, what is refused, and every number of a pack."""

import numpy as np
import pytest

from distill.errors import InputError
from distill.packing.chat import COMPACT, ChatFormat
from distill.packing.pack import IGNORE, Document, build_pack
from distill.packing.render import render
from distill.packing.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def chat():
    return ChatFormat(train_tokenizer(["seven naïve 東京"] * 4, 300), COMPACT, source="student tiny")


def rendered(pairs, chat, **options):
    return render(pairs, chat, **{"answers": "teacher", "max_length": 4096, "vocab_size": 304} | options)


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
    from dataclasses import replace

    pairs = make_pairs(5)
    pairs[3] = replace(pairs[3], ift=replace(pairs[3].ift, answer="4<|end|>"))
    with pytest.raises(InputError, match=f"{pairs[3].problem.id}.*end-of-turn"):
        rendered(pairs, chat)


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

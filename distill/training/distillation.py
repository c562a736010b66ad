"""Learning from a teacher's stored distributions, token by token, beside its text.

A document learns from them where its rendered target is, token id by token id, what the teacher generated. With w the
distillation weight, T the temperature the teacher's log-probabilities were captured at, and q, p the teacher's and the
student's distributions at it, the loss of such a row is

    w D(q, p) + (1 - w) (-log p(next token))

and that of every other row is plain cross-entropy: of documents that were rendered otherwise, and of an end of turn
that the teacher's server leaves out. Sums and divisors are those of training without a teacher.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from distill import console
from distill.errors import InputError
from distill.kernels import linear_cross_entropy, linear_topk_divergence
from distill.packing.chat import ChatFormat
from distill.packing.pack import Document
from distill.packing.plan import Step
from distill.packing.render import MODES, Rendered
from distill.packing.source import TraceSet
from distill.packing.teacher_rows import TeacherRows, TeacherTarget
from distill.traces.top_k import TopK, read_top_k
from distill.traces.trace import Mode
from distill.traces.vocabulary import Vocabulary
from distill.training.settings import Divergence, TrainSettings


@dataclass(frozen=True)
class Distillation:
    """The loss of a batch's supervised rows, some of them with a teacher."""

    weight: float  # above 0 and at most 1
    divergence: Divergence
    temperature: float

    def sum_of_losses(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor | None,
        teacher: TeacherRows,
        *,
        head: Any,
        softcap: float | None,
    ) -> torch.Tensor:
        """hidden[R, H], labels int64[R] and, where rows weigh differently, weights float32[R], of all supervised rows."""
        shared = dict(bias=head.bias, reduction="sum", softcap=softcap, ignore_index=None)
        of = lambda rows: None if weights is None else weights.index_select(0, rows)  # noqa: E731
        loss = linear_topk_divergence(
            hidden.index_select(0, teacher.rows),
            head.weight,
            teacher.ids,
            teacher.logprobs,
            divergence=self.divergence,
            temperature=self.temperature,
            labels=labels.index_select(0, teacher.rows) if self.weight < 1 else None,
            ce_weight=1 - self.weight,
            token_weights=of(teacher.rows),
            **shared,
        )
        if len(teacher.others) == 0:
            return loss
        return loss + linear_cross_entropy(
            hidden.index_select(0, teacher.others),
            head.weight,
            labels.index_select(0, teacher.others),
            token_weights=of(teacher.others),
            **shared,
        )


class TaughtDocuments(Sequence[Document]):
    """The rendered documents, those with the teacher's token ids knowing where its distributions are."""

    def __init__(
        self,
        documents: Sequence[Document],
        files: dict[Mode, TopK],
        pairs: np.ndarray,
        covered: np.ndarray,
        vocabulary: int,
    ):
        """`pairs`, `covered` int64[documents]: place in the file, and how many supervised tokens it has; 0: none."""
        self._documents, self._files, self._pairs, self._covered = documents, files, pairs, covered
        self._vocabulary = vocabulary

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, reference: Any) -> Any:
        if isinstance(reference, slice):
            return [self[i] for i in range(*reference.indices(len(self)))]
        document, covered = self._documents[reference], int(self._covered[reference])
        if not covered:
            return document
        file = self._files[MODES[reference % 2]]
        return replace(document, teacher=TeacherTarget(file, int(self._pairs[reference]), covered, self._vocabulary))


@dataclass(frozen=True)
class Teaching:
    """What a student learns from besides text: its documents, the loss, and how much of them has a teacher."""

    documents: TaughtDocuments
    distillation: Distillation
    coverage: dict[str, Any]


def teach(
    settings: TrainSettings,
    trace_set: TraceSet,
    rendered: Rendered,
    steps: Iterable[Step],
    chat: ChatFormat,
    vocabulary: int,
) -> Teaching:
    """Find the teacher's distributions of the documents that are trained on, and say how many have them.

    `vocabulary` is the student's, in entries. Raises InputError when the traces have none, when they are of another
    tokenizer or a larger vocabulary, or when no document has the teacher's token ids.
    """
    files = read_top_k(trace_set.path)
    if files is None:
        raise InputError(
            f"{trace_set.path}: has no log-probabilities of its teacher, which distillation_weight="
            f"{settings.distillation_weight:g} needs; make traces with `distill traces generate --top-k K`"
        )
    file = files["reasoning"]
    _require_one_vocabulary(file.vocabulary, Vocabulary.of(chat.tokenizer), vocabulary, chat.source)
    references = np.array(sorted({r for step in steps for row in step.rows for r in row}))
    pairs, covered = _covered(trace_set, rendered, files, references)
    documents = TaughtDocuments(rendered.documents, files, pairs, covered, vocabulary)
    coverage = _coverage(rendered, references, covered) | {"k": file.k, "temperature": file.temperature}
    if not coverage["taught"]["documents"]:
        raise InputError(
            f"{trace_set.path}: none of {coverage['documents']} documents has the token ids that the teacher generated, "
            f"so there is nothing to distil; {chat.source} may render a turn otherwise, or answers may not be the teacher's"
        )
    _say(coverage)
    distillation = Distillation(settings.distillation_weight, settings.divergence, file.temperature)
    return Teaching(documents, distillation, coverage)


def _require_one_vocabulary(teacher: Vocabulary, student: Vocabulary, entries: int, source: str) -> None:
    if teacher == student:
        return
    if teacher.size > entries:
        raise InputError(
            f"{source}: its vocabulary has {entries} entries, that of the teacher's log-probabilities {teacher.size}; "
            "distil into a student with the teacher's tokenizer"
        )
    raise InputError(
        f"{source}: its tokenizer ({student.size} entries) is not the teacher's ({teacher.size} entries), so the "
        "teacher's token ids mean other tokens; distil into a student with the teacher's tokenizer"
    )


def _covered(
    trace_set: TraceSet, rendered: Rendered, files: dict[Mode, TopK], references: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of every document the place of its pair in the file, and how many of its supervised tokens the teacher generated."""
    places: dict[str, list[int]] = {}
    for place, pair in enumerate(trace_set.pairs):
        places.setdefault(pair.problem.id, []).append(place)
    pairs, covered = (np.zeros(2 * rendered.n_pairs, dtype=np.int64) for _ in range(2))
    for reference in references.tolist():
        document, file = rendered.documents[reference], files[MODES[reference % 2]]
        target = document.tokens[document.prompt_length :]
        for place in places[rendered.pair_ids[reference // 2]]:  # several where a question was asked several times
            generated = file.token_ids(place)
            # A server may leave the end of turn out, which the rendered target always has.
            short = len(target) - len(generated)
            if short in (0, 1) and len(generated) and np.array_equal(target[: len(generated)], generated):
                pairs[reference], covered[reference] = place, len(generated)
                break
    return pairs, covered


def _coverage(rendered: Rendered, references: np.ndarray, covered: np.ndarray) -> dict[str, Any]:
    """Counts of documents and supervised tokens: all, with the teacher's distributions, and why not."""
    supervised, covered = rendered.supervised[references], covered[references]
    has = covered > 0
    return {
        "documents": len(references),
        "supervised_tokens": int(supervised.sum()),
        "taught": {"documents": int(has.sum()), "supervised_tokens": int(covered.sum())},
        "other_token_ids": {"documents": int((~has).sum()), "supervised_tokens": int(supervised[~has].sum())},
        "end_of_turn_not_generated": int((supervised - covered)[has].sum()),
    }


def _say(coverage: dict[str, Any]) -> None:
    taught, others = coverage["taught"], coverage["other_token_ids"]
    line = (
        f"teacher's top {coverage['k']} at temperature {coverage['temperature']:g}: {taught['documents']:,} of "
        f"{coverage['documents']:,} documents, {taught['supervised_tokens']:,} of {coverage['supervised_tokens']:,} "
        "supervised tokens"
    )
    why = []
    if others["documents"]:
        why.append(f"{others['documents']:,} documents whose token ids are not those the teacher generated")
    if coverage["end_of_turn_not_generated"]:
        why.append(f"{coverage['end_of_turn_not_generated']:,} ends of turn that the server left out")
    console.note(line + (f"; cross-entropy only for {' and '.join(why)}" if why else ""))

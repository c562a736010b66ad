"""What the GPU suite is made of: its settings, and pieces that are measured one by one, each with a key of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from distill.bench.peers import Peer
from distill.bench.rounds import Call, Clock, attempt, take_turns

LENGTHS_SEED = 0  # documents are as long in every run, so that runs can be compared; what is in them is drawn anew


@dataclass(frozen=True)
class GpuSuiteSettings:
    """What is measured. Plain data and no pydantic: the suite must start where little is installed.

    `device` and smaller shapes are for testing the suite itself on a CPU.
    """

    budget_seconds: float = 480.0
    device: str = "cuda"
    seed: int = 0
    rounds: tuple[int, int] = (5, 20)  # least and most, of every comparison
    seconds: float = 2.0  # what the rounds of one comparison may take, if the least number does
    # (name, hidden, vocabulary) of the heads of Qwen2.5
    heads: tuple[tuple[str, int, int], ...] = (
        ("0.5B", 896, 151936),
        ("1.5B", 1536, 151936),
        ("3B", 2048, 151936),
        ("7B", 3584, 152064),
    )
    tokens: tuple[int, ...] = (16384, 8192, 32768)  # the first is measured first
    ignored: tuple[float, ...] = (0.0, 0.5)
    teacher_entries: int = 20
    attention_tokens: int = 32768
    attention_heads: tuple[tuple[int, int, int], ...] = ((64, 14, 2), (128, 28, 4))  # (head size, Hq, Hk)
    uniform_lengths: tuple[int, ...] = (2048, 8192, 32768)
    log_normal_mean: float = 2048.0
    # name -> hidden, layers, query heads, key heads, intermediate, vocabulary
    models: tuple[tuple[str, int, int, int, int, int, int], ...] = (
        ("0.5B", 896, 24, 14, 2, 4864, 151936),
        ("1.5B", 1536, 28, 12, 2, 8960, 151936),
    )
    training_tokens: tuple[int, ...] = (16384, 32768)
    # of the correctness checks
    exact_loss: tuple[int, int, int] = (1111, 896, 50257)  # rows, hidden, vocabulary
    exact_large: tuple[int, int] = (896, 152064)  # hidden, vocabulary, with rows for more than 2^31 logits
    exact_large_logits: int = 1 << 31
    exact_lengths: tuple[int, ...] = (1, 2, 63, 64, 65, 127, 128, 129, 1, 255, 257, 700, 1025)
    exact_head_dims: tuple[int, ...] = (64, 96, 128, 256)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for two runs to belong together."""
        return {name: value for name, value in vars(self).items() if name not in ("budget_seconds", "seed")}


@dataclass
class Context:
    """What a piece needs to run. `crashed`: contenders that took the process down before, and how."""

    settings: GpuSuiteSettings
    clock: Clock
    announce: Callable[[str], None] = lambda name: None
    crashed: Mapping[str, str] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.clock.device

    def compare(self, calls: Mapping[str, Call]) -> dict[str, dict[str, Any]]:
        settings = self.settings
        return take_turns(calls, self.clock, rounds=settings.rounds, seconds=settings.seconds, announce=self.announce)

    def load(
        self, peers: Mapping[str, Peer], adapt: Callable[[Any], Call]
    ) -> tuple[dict[str, Call], dict[str, dict[str, str]]]:
        """(calls of those that can be measured, {name: {"missing": ...} or {"error": ...}} of the others)."""
        calls, others = {}, {}
        for name, peer in peers.items():
            if name in self.crashed:
                others[name] = {"error": self.crashed[name]}
            elif reason := peer.missing(self.device.type):
                others[name] = {"missing": reason}
            else:
                self.announce(name)
                call, failed = attempt(self.clock, lambda peer=peer: adapt(peer.load()))
                if failed is None:
                    calls[name] = call
                else:
                    others[name] = {"error": failed}
        return calls, others


@dataclass(frozen=True)
class Piece:
    """One measurement. `run` returns what depends on the clock, the memory or the device's arithmetic."""

    key: str
    about: dict[str, Any]
    run: Callable[[Context], dict[str, Any]]
    is_check: bool = False  # a correctness check: its result has "passed"


def all_pieces(settings: GpuSuiteSettings) -> list[Piece]:
    """Every piece, the most important first: correctness before any timing, then one row count of everything.

    A budget may end anywhere, so a training step stands before the rest of attention.
    """
    from distill.bench.gpu_correctness import correctness_pieces
    from distill.bench.gpu_timing import attention_pieces, divergence_pieces, loss_pieces
    from distill.bench.gpu_training import training_pieces
    from distill.bench.gpu_tuning import tuning_pieces

    first, *rest = settings.tokens
    pieces = correctness_pieces(settings)
    pieces += loss_pieces(settings, first)
    attention = attention_pieces(settings)
    log_normal = len(settings.attention_heads)
    pieces += attention[:log_normal]
    pieces += training_pieces(settings, settings.training_tokens[0])
    pieces += attention[log_normal:]
    pieces += divergence_pieces(settings, first)
    for tokens in settings.training_tokens[1:]:
        pieces += training_pieces(settings, tokens)
    for tokens in rest:
        pieces += loss_pieces(settings, tokens)
    return pieces + tuning_pieces(settings)

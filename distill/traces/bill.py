"""What answers cost: tokens and money by mode, and the budget they are to stay in."""

from dataclasses import dataclass, field
from typing import Any

from distill.errors import InputError
from distill.traces.settings import GenerateOptions
from distill.traces.store import Rejected
from distill.traces.trace import MODES, Mode, Pair, Trace

GOLD = "gold"  # the teacher's name where the gold answer stands for an answer: nobody was asked


@dataclass
class ModeBill:
    """Sums over answers; None once an answer does not say."""

    answers: int = 0
    prompt_tokens: int | None = 0
    output_tokens: int | None = 0
    cost_usd: float | None = 0.0

    def add(self, trace: Trace) -> None:
        counts = (trace.reasoning_tokens, trace.answer_tokens)
        self.add_sums(1, trace.prompt_tokens, None if None in counts else sum(counts), trace.cost_usd)

    def add_sums(
        self,
        answers: int,
        prompt_tokens: int | None = None,
        output_tokens: int | None = None,
        cost_usd: float | None = None,
    ) -> None:
        self.answers += answers
        self.prompt_tokens = _plus(self.prompt_tokens, prompt_tokens)
        self.output_tokens = _plus(self.output_tokens, output_tokens)
        self.cost_usd = _plus(self.cost_usd, cost_usd)

    def to_json(self) -> dict[str, Any]:
        """What is known."""
        return {name: value for name, value in vars(self).items() if value is not None}


def _plus(total: Any, value: Any) -> Any:
    return None if total is None or value is None else total + value


@dataclass
class Bill:
    """Of all answers in the rows of a trace set; equal rows in equal order give equal sums. And of what was paid for and
    gave none, in all runs: of most requests that failed nobody says what they cost, and these are left out."""

    modes: dict[Mode, ModeBill] = field(default_factory=lambda: {mode: ModeBill() for mode in MODES})
    failed: ModeBill = field(default_factory=ModeBill)

    @property
    def parts(self) -> dict[str, ModeBill]:
        """By mode, and `failed` where something was."""
        return {**self.modes} | ({"failed": self.failed} if self.failed.answers else {})

    def add(self, row: Pair | Rejected) -> None:
        """Its answers. One that failed may have been asked again: it is no answer, and counts by itself."""
        for mode, trace in (("reasoning", row.reasoning), ("ift", row.ift)):
            if trace is not None and trace.teacher != GOLD and trace.finish_reason != "error":
                self.modes[mode].add(trace)

    def to_json(self) -> dict[str, Any]:
        return {name: sums.to_json() for name, sums in self.parts.items()}


class Budget:
    """What may be spent, and what was: by answers of earlier runs too, and by those that came to nothing."""

    def __init__(self, options: GenerateOptions, prices: dict[str, float | None]):
        """Raises InputError for a limit in USD where a price is not known."""
        self.max_cost_usd, self.max_tokens = options.max_cost_usd, options.max_total_tokens
        self.cost_usd, self.tokens = 0.0, 0
        if self.max_cost_usd is not None and None in prices.values():
            raise InputError(
                "--max-cost: the teacher's prices are not known; give --usd-per-million-input and "
                "--usd-per-million-output, or limit tokens by --max-total-tokens"
            )

    @property
    def limited(self) -> bool:
        return self.max_cost_usd is not None or self.max_tokens is not None

    def spend(self, prompt_tokens: int | None, output_tokens: int | None, cost_usd: float | None) -> None:
        """Count an answer. Raises InputError when it does not say what a limit needs to know."""
        self.cost_usd += cost_usd or 0.0
        self.tokens += (prompt_tokens or 0) + (output_tokens or 0)
        limit = None
        if self.max_cost_usd is not None and cost_usd is None:
            limit = "--max-cost"
        elif self.max_tokens is not None and None in (prompt_tokens, output_tokens):
            limit = "--max-total-tokens"
        if limit:
            raise InputError(f"{limit}: cannot be kept, the teacher does not say how many tokens an answer took")

    @property
    def spent(self) -> str | None:
        """The limit that is reached; None while there is something left."""
        if self.max_cost_usd is not None and self.cost_usd >= self.max_cost_usd:
            return f"--max-cost {self.max_cost_usd:g}"
        if self.max_tokens is not None and self.tokens >= self.max_tokens:
            return f"--max-total-tokens {self.max_tokens}"
        return None

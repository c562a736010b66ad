"""A latency objective, and which answers meet it. Goodput is the rate of those that do (DistServe, OSDI 2024)."""

from pydantic import Field

from distill.errors import InputError
from distill.serve.timing import Timing
from distill.settings import Settings, validate

_UNITS = {"ms": 1e-3, "s": 1.0}


class Objective(Settings):
    """Upper limits in seconds; an answer meets all that are given."""

    ttft_s: float | None = Field(None, gt=0)
    ttfat_s: float | None = Field(None, gt=0)  # of an answer without thinking: to its first token
    tpot_s: float | None = Field(None, gt=0)  # met by an answer of one token
    e2e_s: float | None = Field(None, gt=0)

    def met_by(self, timing: Timing) -> bool:
        """Whether every limit is kept."""
        took = {
            "ttft_s": timing.ttft_s,
            "ttfat_s": timing.ttft_s if timing.ttfat_s is None else timing.ttfat_s,
            "tpot_s": 0.0 if timing.tpot_s is None else timing.tpot_s,
            "e2e_s": timing.e2e_s,
        }
        return all(
            took[name] is not None and took[name] <= limit for name, limit in self.model_dump(exclude_none=True).items()
        )


def read_objective(text: str) -> Objective:
    """An objective as the command line writes it: `ttft:500ms,tpot:50ms`. Raises InputError."""
    limits = {}
    for part in text.split(","):
        name, _, limit = part.strip().partition(":")
        unit = "ms" if limit.endswith("ms") else "s"
        try:
            limits[f"{name}_s"] = float(limit.removesuffix(unit)) * _UNITS[unit]
        except ValueError:
            raise InputError(f"objective {part.strip()!r}: expected a limit such as ttft:500ms or e2e:2s") from None
    return validate(Objective, limits, source=f"objective {text}")

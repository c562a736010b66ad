"""How fast a training goes and what it takes, for its bar and TensorBoard."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Speed:
    """Means over the steps of this process so far, validation left out; memory is the most so far, of this process on a
    CPU, of tensors on a GPU. `mfu` is a share of what the devices could compute."""

    tokens_per_second: float
    supervised_tokens_per_second: float
    mfu: float
    memory_bytes: int

    def __str__(self) -> str:
        """At most 31 characters: "2.5k/9.9k tok/s MFU 40% 12G", supervised tokens first."""
        gib = self.memory_bytes / 2**30
        memory = f"{gib:.1f}G" if gib < 9.95 else f"{gib:.0f}G"
        rates = f"{_short(self.supervised_tokens_per_second)}/{_short(self.tokens_per_second)}"
        return f"{rates} tok/s MFU {self.mfu:.0%} {memory}"


def _short(number: float) -> str:
    """In at most 4 characters: 980, 9.9k, 120k, 1.2M."""
    for unit in ("", "k", "M", "G"):
        if number < 999.5 or unit == "G":
            break
        number /= 1000
    return f"{number:.1f}{unit}" if unit and number < 9.95 else f"{number:.0f}{unit}"

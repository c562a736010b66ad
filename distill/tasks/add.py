"""`add`: the sum of 2 to 8 digits. Open-ended; harder with length; the reasoning is the running sum.

    prompt     add 7523
    reasoning  7:7,5:12,2:14,3:17      each digit, a colon, the sum so far
    answer     17

Lengths are uniform as far as distinct prompts last: there are only 100 of length 2. Digit strings may start with 0.
"""

from distill.tasks.procedural import ProceduralTask

LENGTHS = range(2, 9)


class Add(ProceduralTask):
    """Sums of 2 to 8 digits."""

    name = "add"
    revision = "1"
    answer_format = "open"
    checker = "exact"
    strata = tuple(10**length for length in LENGTHS)

    def prompt(self, stratum: int, index: int) -> str:
        return f"add {index:0{LENGTHS[stratum]}d}"

    def solve_prompt(self, prompt: str) -> tuple[str, str]:
        total, steps = 0, []
        for digit in prompt.removeprefix("add "):
            total += int(digit)
            steps.append(f"{digit}:{total}")
        return ",".join(steps), str(total)

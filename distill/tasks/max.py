"""`max`: which of four options has the largest value. Multiple choice; the direct answer suffices.

prompt     max A3 B9 C5 D1               four different digits
reasoning  A3:A3,B9:B9,C5:B9,D1:B9       each option, a colon, the largest so far
answer     B
"""

from distill.tasks.procedural import ProceduralTask, mixed_radix

OPTIONS = "ABCD"


class Max(ProceduralTask):
    """The largest of four different digits."""

    name = "max"
    revision = "3"
    answer_format = "choice"
    checker = "choice"
    strata = (10 * 9 * 8 * 7,)

    def prompt(self, stratum: int, index: int) -> str:
        left = list(range(10))
        values = [left.pop(place) for place in mixed_radix(index, 10, 9, 8, 7)]
        return "max " + " ".join(f"{option}{value}" for option, value in zip(OPTIONS, values, strict=True))

    def solve_prompt(self, prompt: str) -> tuple[str, str]:
        largest, steps = "", []
        for option in prompt.split()[1:]:
            if not largest or int(option[1:]) > int(largest[1:]):
                largest = option
            steps.append(f"{option}:{largest}")
        return ",".join(steps), largest[0]

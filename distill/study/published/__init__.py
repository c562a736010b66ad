"""The published studies' own figures, to stand beside a reproduction of them: data with their source, nothing computed."""

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from distill.errors import unknown_name
from distill.settings import Settings, load

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(file.stem for file in FOLDER.glob("*.yaml")))

Score = Annotated[float, Field(ge=0, le=100)] | None  # percent; None: not published


class PublishedRow(Settings):
    """One line of a published table: a score for each of its sizes, without reasoning and with it."""

    corpus: str = Field(description="what students were trained on")
    suite: str = Field(description="what they were asked, as the publication calls it")
    group: Literal["general", "math", "own"]
    format: Literal["open-ended", "multiple choice", "labels", "extraction"]
    metric: str
    base: list[Score]
    ift: list[Score]
    reasoning: list[Score]


class Claim(Settings):
    """A figure that the text states: a value, a count `of` so many, or a range."""

    name: str
    value: float | None = None
    of: int | None = None
    low: float | None = None
    high: float | None = None


class Pair(Settings):
    """What was published of one size on one suite. Scores in percent; None where there is none."""

    corpus: str
    suite: str
    group: str
    format: str
    metric: str
    size: str
    base: Score
    ift: Score
    reasoning: Score

    @property
    def difference_points(self) -> float | None:
        """Reasoning less IFT."""
        return None if self.ift is None or self.reasoning is None else round(self.reasoning - self.ift, 6)


class Published(Settings):
    """The figures of one publication."""

    title: str
    citation: str
    url: str | None
    note: str
    metric: str | None
    sizes: list[str]
    rows: list[PublishedRow]
    claims: list[Claim]

    @model_validator(mode="before")
    @classmethod
    def _said_once(cls, values: dict) -> dict:
        """A metric that all rows share, and scores that no row has."""
        absent = [None] * len(values["sizes"])
        rows = [{"metric": values["metric"], "base": absent, **row} for row in values["rows"]]
        return values | {"rows": rows}

    @model_validator(mode="after")
    def _as_wide_as_the_table(self) -> "Published":
        for row in self.rows:
            if {len(row.base), len(row.ift), len(row.reasoning)} != {len(self.sizes)}:
                raise ValueError(f"{row.corpus} / {row.suite}: expected a score for each of {', '.join(self.sizes)}")
        return self

    @property
    def pairs(self) -> list[Pair]:
        """Row by row, the sizes in their order."""
        about = ("corpus", "suite", "group", "format", "metric")
        return [
            Pair(
                **{name: getattr(row, name) for name in about},
                size=size,
                base=row.base[i],
                ift=row.ift[i],
                reasoning=row.reasoning[i],
            )
            for row in self.rows
            for i, size in enumerate(self.sizes)
        ]


@cache
def published(name: str) -> Published:
    """The figures of `when-does-reasoning-matter` or `reason-or-not`. Raises InputError for another name."""
    if name not in NAMES:
        raise unknown_name("publication", name, NAMES)
    return load(Published, FOLDER / f"{name}.yaml")

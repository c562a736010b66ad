"""A page of measured results: Markdown, and the plots it shows."""

from collections.abc import Sequence
from typing import Any


class Page:
    def __init__(self, head: str) -> None:
        self.parts = [head]
        self.images: dict[str, str] = {}

    def add(self, text: str) -> None:
        self.parts.append(text)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
        cell = lambda value: str(value).replace("|", "\\|").replace("\n", " ")  # noqa: E731
        lines = [f"| {' | '.join(map(cell, columns))} |", f"|{' --- |' * len(columns)}"]
        lines += [f"| {' | '.join(map(cell, row))} |" for row in rows]
        self.parts.append((f"**{title}**\n\n" if title else "") + "\n".join(lines))

    def plot(self, name: str, alternative: str, svg: str) -> None:
        self.images[f"{name}.svg"] = svg
        self.parts.append(f"![{alternative}](images/{name}.svg)")

    @property
    def text(self) -> str:
        return "\n\n".join(part.strip("\n") for part in self.parts) + "\n"

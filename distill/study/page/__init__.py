"""A study's report, as HTML and as Markdown: `results.json` in, the verdict first.

document.py       both pages, section by section
reading.py        how results are read: parts may be missing; colours and marks of what was scored
verdict.py        verdicts, and the differences behind them
frontier.py       accuracy against cost, with the band of the best
gains.py          how the gain grows with size, and by kind of task; interactions; how far seeds fall apart
beside.py         a publication's own figures beside these
costs.py          equal cost, break-even, what answers are made of
routing.py        what a router does, beside never, always and an oracle
recommended.py    which student to serve, and how
numbers.py        the tables of everything
threats.py        what could make the verdict wrong, and what was measured about it
"""

from distill.study.page.document import SCHEMA, render, render_markdown

__all__ = ["SCHEMA", "render", "render_markdown"]

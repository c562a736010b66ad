"""The sections of a page as Markdown: its text, tables and checks, without figures, examples and what is folded away.

Everything is written so that Markdown shows it as it is: a model's text cannot make a heading, a link or HTML.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from distill.report.blocks import (
    Block,
    Bullets,
    Cards,
    Cell,
    Checks,
    Code,
    Fold,
    KeyValues,
    Notice,
    Section,
    Table,
    Text,
)
from distill.report.text import visible

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&$])")
_SIGN = re.compile(r"^([-+=]+|\d+[.)])(?=\s|$)")  # begins a list or underlines a heading


def render_markdown(title: str, sections: Sequence[Section], *, kicker: str = "distill") -> str:
    """GitHub's flavour. A section of which nothing can be written is left out."""
    parts = [f"# {_plain(title)}", _plain(kicker)]
    for section in sections:
        written = [text for block in section.blocks if (text := _block(block))]
        if written:
            parts += [f"## {_plain(section.title)}", *([_plain(section.lead)] if section.lead else []), *written]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    write = _WRITERS.get(type(block))
    return write(block) if write is not None else ""


def _plain(text: str) -> str:
    """One line that Markdown shows as it is."""
    line = _SPECIAL.sub(r"\\\1", " ".join(visible(text).split()))
    return _SIGN.sub(lambda match: match[1][:-1] + "\\" + match[1][-1], line)


def _bullets(block: Bullets) -> str:
    return "\n".join([f"**{_plain(block.title)}**", "", *(f"- {_plain(item)}" for item in block.items)])


def _notice(block: Notice) -> str:
    return "\n".join([f"> {_plain(block.text)}", *(f"> - {_plain(item)}" for item in block.items)])


def _cards(block: Cards) -> str:
    written = []
    for card in block.cards:
        facts = " · ".join(f"{_plain(name)}: {_plain(value)}" for name, value in card.facts)
        head = f"**{_plain(card.headline)}** ({_plain(card.label)})" if card.label else f"**{_plain(card.headline)}**"
        written.append("\n\n".join(part for part in (head, _plain(card.sentence), facts) if part))
    return "\n\n".join(written)


def _table(block: Table) -> str:
    rule = [" --- " if i == 0 or i in block.prose else " ---: " for i in range(len(block.columns))]
    lines = [f"**{_plain(block.caption)}**", "", _row(block.columns), f"|{'|'.join(rule)}|"]
    for group in block.groups:
        if group.title:
            lines.append(_row([f"— {group.title}", *[""] * (len(block.columns) - 1)]))
        lines += [_row(row) for row in group.rows]
    return "\n".join(lines)


def _row(cells: Sequence[str | Cell]) -> str:
    texts = (
        cell if isinstance(cell, str) else " · ".join(part for part in (cell.text, cell.note) if part) for cell in cells
    )
    return "| " + " | ".join(_plain(text) for text in texts) + " |"


def _key_values(block: KeyValues) -> str:
    lists = []
    for facts in block.lists:
        items = [f"- {_plain(name)}: {_plain(value)}" for name, value in facts.items]
        lists.append("\n".join([f"**{_plain(facts.title)}**", "", *items]))
    return "\n\n".join(lists)


def _code(block: Code) -> str:
    if block.folded:
        return ""
    text = visible(block.text)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    head = f"{_plain(block.title)}:\n\n" if block.title else ""
    return f"{head}{fence}\n{text}\n{fence}"


def _checks(block: Checks) -> str:
    return "\n".join(
        f"- **{'Mind this' if check.concern else 'Checked'}: {_plain(check.title)}.** {_plain(check.text)}"
        for check in block.checks
    )


def _fold(block: Fold) -> str:
    return f"{_plain(block.title)}: see the page beside this file."


_WRITERS: dict[type, Callable[[Any], str]] = {
    Text: lambda block: _plain(block.text),
    Bullets: _bullets,
    Notice: _notice,
    Cards: _cards,
    Table: _table,
    KeyValues: _key_values,
    Code: _code,
    Checks: _checks,
    Fold: _fold,
}

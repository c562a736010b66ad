r"""Where the answer stands in a text that a model wrote: the last `\boxed{...}` that closes, else all of the text."""

import re

_BOX = re.compile(r"\\{1,4}(?:boxed|fbox)\s?\{|\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""The content of the last box that is closed; of boxes in each other, of the inner one.

    >>> last_boxed(r"\boxed{1} then \boxed{\frac{1}{2}} and \boxed{3")
    '\\frac{1}{2}'
    """
    if "boxed" not in text and "fbox" not in text:
        return None
    open_braces: list[int | None] = []  # where a box's content begins, None for other braces
    found = None
    for match in _BOX.finditer(text):
        if match[0] == "{":
            open_braces.append(None)
        elif match[0] != "}":
            if match[0].endswith("{") and len(match[0]) > 2:
                open_braces.append(match.end())
        elif open_braces:
            start = open_braces.pop()
            if start is not None and (found is None or start > found[0]):
                found = (start, match.start())
    return text[found[0] : found[1]] if found else None


def final_answer(text: str) -> str:
    """What counts as the answer in `text`: the last closed box, else all of it; white space normalised."""
    boxed = last_boxed(text)
    return " ".join((text if boxed is None else boxed).split())


def exact_match(gold: str, text: str) -> bool:
    """Whether the final answer in `text` is `gold`, up to white space."""
    return final_answer(text) == " ".join(gold.split())

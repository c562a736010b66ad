"""The one exception a user meets: bad input, said in one line."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(Exception):
    """Something the user gave cannot be used. The command line prints the message and exits with code 2.

    The message is one line that names the file, the line or field, what was found and what was expected.
    """


def unknown_name(kind: str, found: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not in a list, with the nearest names first.

    >>> str(unknown_name("task", "ad", ["add", "max"]))
    "unknown task 'ad': did you mean 'add'? Known: add, max"
    """
    known = sorted(known)
    near = get_close_matches(found, known, n=3, cutoff=0.5)
    hint = f": did you mean {' or '.join(repr(name) for name in near)}?" if near else "."
    return InputError(f"unknown {kind} {found!r}{hint} Known: {', '.join(known)}")

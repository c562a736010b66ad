"""When a server that fails is gone, and when it only fails at some questions.

Tries fail for reasons of two kinds. A question may be one that the server cannot answer: it has so many tries and is
then given up. Or the server answers nobody: then no question is given up, it is waited for, and when that takes too
long the run ends. Which of the two it is shows when many tries in a row have failed: a question that any server can
answer is asked, of one token. A proxy that drops every third connection is neither.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from distill.console import note
from distill.serve.replies import RequestFailed

TRIES = 20  # failed in a row, before the server is asked whether it is there
GONE_S = 300.0  # without one answer: a server that is started again may take as long
PROBE_S = 5.0  # between two such questions
PAID_AGAIN = 100  # tries that may have been paid for are made again at most so often, and once more for every answer


class ServerGone(Exception):
    """Nobody is answered any more. The message says how long, and what was said last."""


class Patience:
    """What is known of one server, shared by all requests of a run. `hide` takes secrets out of what it said."""

    def __init__(self, where: str, hide: Callable[[str], str]):
        self._where, self._hide = where, hide
        self._in_a_row, self._since = 0, 0.0
        self._ask_again = 0.0
        self._paid_again = PAID_AGAIN
        self._asking = asyncio.Lock()
        self._said = False

    def answered(self) -> None:
        """The server has answered somebody, or refused a question for what it is."""
        self._in_a_row = 0
        self._paid_again += 1

    def may_pay_again(self) -> bool:
        """Whether a try that may have been paid for is to be made again; counts it."""
        self._paid_again -= 1
        return self._paid_again >= 0

    async def failed(self, failure: RequestFailed, probe: Callable[[], Awaitable[RequestFailed | None]]) -> bool:
        """Count a failed try. Returns whether the server answers nobody at the moment. Raises ServerGone.

        `probe` asks the easy question and returns None, or why that failed.
        """
        if not (failure.again or failure.account):
            self.answered()
            return False
        self._in_a_row += 1
        if self._in_a_row == 1:
            self._since = time.monotonic()
        if self._in_a_row < TRIES:
            return False
        async with self._asking:  # one asks, the others wait for what it hears
            if self._in_a_row >= TRIES and time.monotonic() >= self._ask_again:
                found = await probe()
                if found is None or not (found.again or found.account):
                    self._in_a_row, self._said = 0, False
                else:
                    self._give_up_or_wait(found)
        return self._in_a_row >= TRIES

    def _give_up_or_wait(self, found: RequestFailed) -> None:
        silent_s = time.monotonic() - self._since
        reason = " ".join(self._hide(str(found)).split())[:300]
        if found.account or silent_s >= GONE_S:
            raise ServerGone(f"{self._where}: {self._in_a_row} requests in a row failed ({reason})")
        self._ask_again = time.monotonic() + min(PROBE_S, GONE_S)
        if not self._said:
            self._said = True
            note(f"{self._where}: answers nothing ({reason}); waiting for it, up to {GONE_S:g} s")

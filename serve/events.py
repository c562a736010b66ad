"""Server-sent events, from bytes that are cut anywhere: how a server streams its reply."""

from collections.abc import Iterator


class EventDecoder:
    """Takes a stream's bytes as they come and gives the data of each event that is whole.

    Lines end in \\n or \\r\\n and nowhere else: U+2028 and the like may stand in what a model writes, and JSON leaves them
    as they are. Comments (how gateways keep a connection alive) and fields other than `data` are left out; so is a last
    event that no empty line follows, which may have been cut off.
    """

    def __init__(self) -> None:
        self._line: list[bytes] = []  # of a line whose end has not come
        self._data: list[bytes] = []  # of an event whose end has not come

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of the events that end in `chunk`."""
        if b"\n" not in chunk:  # a line of many chunks is put together once
            self._line.append(chunk)
            return
        *lines, rest = b"".join((*self._line, chunk)).split(b"\n")
        self._line = [rest]
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line.removeprefix(b"data:"))
            elif not line and self._data:
                data, self._data = b"\n".join(self._data).strip(), []
                if data:
                    yield data

"""The result files of providers' batches, line by line: each item once, and what is missing told."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx2

from mesh.errors import Code, TenthError
from services.inference import sse
from services.inference.batch_items import BatchItem, item_of
from services.inference.errors import Reason

log = logging.getLogger("tenth.inference.batches")


class ResultLines:
    """Reads a batch's result files, one after another. Of two lines of an item the first one stands.

    Lines of items that nobody here has sent are left out and logged. Lines that are no JSON are counted: ``check``
    tells of them when the good ones are through.
    """

    def __init__(self, batch_id: str) -> None:
        self._batch = batch_id
        self._seen: set[str] = set()
        self._broken = 0
        self._cut = False
        self._strange = 0

    @property
    def count(self) -> int:
        """Items read so far."""
        return len(self._seen)

    async def read(
        self, response: httpx2.Response, until: float | None
    ) -> AsyncIterator[tuple[BatchItem, dict[str, Any]]]:
        """The items of a file and their lines. ``until``: the event loop's time at which to give up (TimeoutError)."""
        async for line, whole in _lines(response, until):
            try:
                body = json.loads(line)
                name = body["custom_id"]
            except (ValueError, RecursionError, KeyError, TypeError):
                self._broken += whole
                self._cut = self._cut or not whole
                continue
            item = item_of(name)
            if item is None:
                self._strange += 1
            elif name not in self._seen:
                self._seen.add(name)
                yield item, body
        if self._strange:
            log.warning(
                "batch %s: %d result lines of items that were not sent are left out", self._batch, self._strange
            )
            self._strange = 0

    def check(self, count: int, least: int) -> None:
        """Raises PROVIDER_GARBAGE or PROVIDER_INCOMPLETE where a line is broken, or of ``least`` items ``count`` came.

        To be silent would be to say that what is missing was not run.
        """
        if self._broken:
            raise sse.garbage(f"batch {self._batch}: {self._broken} lines of its results are not what they should be")
        if self._cut or count < least:
            said = f"batch {self._batch}: its results end early, after {count} of at least {least} items"
            raise TenthError(Code.UNAVAILABLE, Reason.PROVIDER_INCOMPLETE, said)


async def _lines(response: httpx2.Response, until: float | None) -> AsyncIterator[tuple[bytes, bool]]:
    """Each line, and whether it has an end. The last line's may be missing where the file itself is whole."""
    rest: list[bytes] = []
    size = 0
    async for chunk in sse.chunks(response, until):
        first, *others = chunk.split(b"\n")
        rest.append(first)
        size += len(first)
        if others:
            for line in (b"".join(rest), *others[:-1]):
                if line.strip():
                    yield line, True
            rest, size = [others[-1]], len(others[-1])
        if size > sse.LONGEST_EVENT_BYTES:
            raise sse.garbage("a line of the results has no end")
    last = b"".join(rest)
    if last.strip():
        yield last, False

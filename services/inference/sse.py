"""Bodies of HTTP answers: server-sent events and whole JSON objects, bounded in size and in silence.

What cannot be read raises PROVIDER_GARBAGE. Events that the server itself numbers (``id:``) are taken once each; others
cannot be told from two equal pieces of text ("ha", "ha") and are all taken, except a byte-for-byte repeat of the event
that ended the answer. Usage is never added up (usage.py), so a repeated one is not billed twice.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2

from mesh.errors import Code, TenthError
from services.inference.errors import Reason

LONGEST_EVENT_BYTES = 16 * 1024 * 1024
LONGEST_BODY_BYTES = 64 * 1024 * 1024


async def events(
    response: httpx2.Response, until: float | None, silence_seconds: float = 0.0
) -> AsyncIterator[tuple[bytes, dict[str, Any]]]:
    """The raw data and the object of each event, until ``[DONE]`` or the stream's end.

    ``until`` is the event loop's time at which to give up (TimeoutError); between two pieces of the body there may be
    ``silence_seconds`` (0: any time), else PROVIDER_STALLED. Raises PROVIDER_FAILED for an event that tells an error.
    """
    kind = response.headers.get("content-type", "")
    if not kind.lower().startswith("text/event-stream"):
        raise garbage(f"a stream was asked for, the answer is {kind or 'of no type'}")
    chunks = response.aiter_bytes()
    # Pieces of a line that is not over: joined once, as joining with each would be the square of a long line's length.
    rest: list[bytes] = []
    size = 0
    seen: dict[bytes, bytes] = {}
    # Some servers give every event the same id: one that comes with other data is no number.
    numbers = True
    number = b""
    begun = False
    while True:
        chunk = await _next(chunks, until, silence_seconds if begun else 0.0)
        begun = True
        first, *others = (chunk or b"\n").split(b"\n")
        rest.append(first)
        size += len(first)
        lines = [b"".join(rest), *others[:-1]] if others else []
        if others:
            rest, size = [others[-1]], len(others[-1])
        for line in lines:
            line = line.removeprefix(b"\xef\xbb\xbf")
            if line.startswith(b"id:"):
                number = line[3:].strip()
            if not line.startswith(b"data:"):
                continue  # Comments, event names and blank lines say nothing here.
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            if not data:
                continue  # Keeps the connection alive.
            numbered, number = number, b""
            if numbered and numbers:
                if seen.get(numbered) == data:
                    continue
                numbers = numbered not in seen
                seen[numbered] = data
            yield data, _event(data)
        if not chunk:
            return
        if size > LONGEST_EVENT_BYTES:
            raise garbage("an event of the stream has no end")


async def whole(response: httpx2.Response, until: float | None) -> dict[str, Any]:
    """The object of a whole answer; ``until`` as for events."""
    parts: list[bytes] = []
    size = 0
    async with asyncio.timeout_at(until):
        async for part in response.aiter_bytes():
            size += len(part)
            if size > LONGEST_BODY_BYTES:
                raise garbage(f"the answer is longer than {LONGEST_BODY_BYTES} bytes")
            parts.append(part)
    try:
        body = json.loads(b"".join(parts))
    except (ValueError, RecursionError):
        kind = response.headers.get("content-type", "of no type")
        raise garbage(f"the answer is not JSON ({kind})") from None
    if not isinstance(body, dict):
        raise garbage("the answer is no object")
    return body


async def chunks(response: httpx2.Response, until: float | None) -> AsyncIterator[bytes]:
    """A body of any kind as it comes; ``until`` as for events."""
    pieces = response.aiter_bytes()
    while chunk := await _next(pieces, until, 0.0):
        yield chunk


def garbage(said: str) -> TenthError:
    """An answer that is not what the format says."""
    return TenthError(Code.UNAVAILABLE, Reason.PROVIDER_GARBAGE, said)


def incomplete() -> TenthError:
    """An answer that ended before it was over."""
    return TenthError(Code.UNAVAILABLE, Reason.PROVIDER_INCOMPLETE, "the answer ended without a finish reason")


async def _next(chunks: AsyncIterator[bytes], until: float | None, silence_seconds: float) -> bytes:
    now = asyncio.get_running_loop().time()
    quiet = now + silence_seconds if silence_seconds else None
    first = min((each for each in (until, quiet) if each is not None), default=None)
    try:
        async with asyncio.timeout_at(first):
            return await anext(chunks, b"")
    except TimeoutError:
        if quiet is not None and (until is None or quiet < until):
            raise TenthError(
                Code.UNAVAILABLE, Reason.PROVIDER_STALLED, f"nothing came for {silence_seconds:g} s within the answer"
            ) from None
        raise


def _event(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise garbage("an event of the stream is not JSON") from None
    if not isinstance(body, dict):
        raise garbage("an event of the stream is no object")
    if body.get("error"):
        error = body["error"]
        said = error.get("message") if isinstance(error, dict) else error
        raise TenthError(Code.UNAVAILABLE, Reason.PROVIDER_FAILED, f"error in the stream: {str(said)[:300]}")
    return body

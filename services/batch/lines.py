"""Bytes in pieces of any size, cut into lines; lines of OpenAI's batch format, read into requests."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tenth.type.v1 import chat_pb2

from formats.openai import FormatError, completion_request, parse_json

_URL = "/v1/chat/completions"
_LINE_KEYS = frozenset({"custom_id", "method", "url", "body"})
_MARK = b"\xef\xbb\xbf"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
MAX_CUSTOM_ID = 256


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line that is not empty: its number from 1, and its bytes without the line's end; None: it is too long."""

    number: int
    content: bytes | None


class LineSplitter:
    """Cuts pieces into lines at "\\n" or "\\r\\n". Holds one line at most, never more than ``max_line_bytes`` of it."""

    def __init__(self, max_line_bytes: int) -> None:
        self._max = max_line_bytes
        self._begun = bytearray()
        self._skipping = False
        self._number = 0

    def feed(self, piece: bytes) -> Iterator[RawLine]:
        """The lines that this piece ends, empty ones left out."""
        start = 0
        while (end := piece.find(b"\n", start)) >= 0:
            yield from self._end(piece[start:end])
            start = end + 1
        self._keep(piece[start:])

    def finish(self) -> Iterator[RawLine]:
        """The last line, where no line's end follows it."""
        if self._begun or self._skipping:
            yield from self._end(b"")

    def _keep(self, part: bytes) -> None:
        # One byte more may be kept: the "\r" of an end whose "\n" is in the next piece is no part of the line.
        if not self._skipping and len(self._begun) + len(part) <= self._max + 1:
            self._begun += part
        elif part:
            self._begun.clear()
            self._skipping = True

    def _end(self, part: bytes) -> Iterator[RawLine]:
        self._number += 1
        self._keep(part)
        content, skipped = bytes(self._begun).removesuffix(b"\r"), self._skipping
        self._begun.clear()
        self._skipping = False
        if skipped or len(content) > self._max:
            yield RawLine(self._number, None)
            return
        if self._number == 1:
            content = content.removeprefix(_MARK)
        if content.strip():
            yield RawLine(self._number, content)


def read_line(content: bytes, number: int) -> tuple[str, chat_pb2.CompletionRequest]:
    """The custom_id and request of a line: one of OpenAI's batch format, or a request's body alone.

    A body's custom_id is "line-" and its number. Raises LineFormatError, with the custom_id where it could be read.
    """
    custom_id = ""
    try:
        body: Mapping[str, object] = parse_json(content)
        if "messages" in body:
            return f"line-{number}", completion_request(body)
        given = body.get("custom_id")
        custom_id = check_custom_id(given if given is not None else "")
        for key in body:
            if key not in _LINE_KEYS:
                raise FormatError(key[:100], "is not known")
        if body.get("method") != "POST":
            raise FormatError("method", 'must be "POST"')
        if body.get("url") != _URL:
            raise FormatError("url", f'must be "{_URL}"')
        inner = body.get("body")
        if not isinstance(inner, Mapping):
            raise FormatError("body", "an object is needed")
        return custom_id, completion_request(inner)
    except FormatError as error:
        raise LineFormatError(error.field, error.message, custom_id) from None


class LineFormatError(ValueError):
    """A line that is no request. ``field`` is the path of what is wrong, as the line writes it."""

    def __init__(self, field: str, message: str, custom_id: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message
        self.custom_id = custom_id


def check_custom_id(value: object) -> str:
    """The caller's id of an item, if it can be one. Raises FormatError."""
    if not isinstance(value, str):
        raise FormatError("custom_id", "a text is expected")
    if not value:
        raise FormatError("custom_id", "is required")
    if len(value) > MAX_CUSTOM_ID or _CONTROL.search(value):
        raise FormatError("custom_id", f"at most {MAX_CUSTOM_ID} characters, none of them a control character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise FormatError("custom_id", "not UTF-8") from None
    return value

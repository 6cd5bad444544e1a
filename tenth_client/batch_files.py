"""Files of ``tenth batch``: JSONL read in pieces, ids and times from the command line, results as JSON lines."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import uuid
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from google.protobuf import json_format
from tenth.batch.v1 import batch_pb2

from formats.openai import FormatError
from formats.openai_answers import batch_line

FORMATS = ("openai", "full")
PIECE_BYTES = 256 * 1024
"""What is read and sent at once."""
SHORTEST_SECONDS, LONGEST_SECONDS = 60.0, 7 * 86_400.0
"""What a completion window may be."""
_NAMESPACE = uuid.UUID("5b6f6c0e-3d0f-4b8e-9a57-6d3a0c1f7e21")
"""Of request ids made from a file's content; drawn once."""
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_BATCH_KEY = re.compile(rb'"body"\s*:\s*\{')
_PLAIN_KEY = re.compile(rb'"messages"\s*:\s*\[')
_URL = "/v1/chat/completions"


def pieces(path: Path) -> Iterator[bytes]:
    """A file as JSONL in OpenAI's batch format, in pieces. Raises OSError, and FormatError for a damaged gzip file.

    A file of plain chat-completions bodies (its first line says which it is) gets the frame around each line:
    ``custom_id`` is ``line-N`` by the line's number, and lines keep their numbers.
    """
    with _opened(path) as file:
        try:
            first = _first_line(file)
            file.seek(0)
            yield from _framed(file) if _is_plain(first) else iter(lambda: file.read(PIECE_BYTES), b"")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise FormatError("", f"{path}: not a whole gzip file: {error}") from None


def content_id(path: Path) -> str:
    """A request id that is the same for the same bytes: a repeated submit is then the same batch."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return str(uuid.uuid5(_NAMESPACE, digest.hexdigest()))


def window_seconds(text: str, option: str) -> float:
    """A completion window such as 90m, 24h or 7d, in seconds. Raises ValueError naming the option."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{option}: {text!r} is no length of time; write 90m, 24h or 7d")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if not SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS:
        raise ValueError(f"{option}: {text} is not within 1m to 7d")
    return seconds


def tags_of(values: Sequence[str], option: str) -> dict[str, str]:
    """Labels written as KEY=VALUE. Raises ValueError naming the option."""
    tags: dict[str, str] = {}
    for value in values:
        key, mark, label = value.partition("=")
        if not mark or not key:
            raise ValueError(f"{option} {value}: write KEY=VALUE")
        tags[key] = label
    return tags


def uuid_of(text: str, option: str) -> str:
    """A UUID as the mesh takes it. Raises ValueError naming the option."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise ValueError(f"{option}: {text!r} is no UUID") from None


def result_line(result: batch_pb2.StreamBatchResultsResponse, form: str) -> bytes:
    """One result as a line: OpenAI's batch output format, or everything by the contract's field names."""
    if form == "openai":
        body = batch_line(result)
    else:
        body = json_format.MessageToDict(result, preserving_proto_field_name=True)
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n"


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]  # A GzipFile reads bytes.
    return path.open("rb")


def _first_line(file: IO[bytes]) -> bytes:
    """The beginning of the first line that is not empty; enough to tell the two forms apart."""
    while line := file.readline(PIECE_BYTES):
        if line.strip():
            return line
    return b""


def _is_plain(line: bytes) -> bool:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        # Longer than a piece, or no JSON at all: then the key that comes first tells.
        body, messages = _BATCH_KEY.search(line), _PLAIN_KEY.search(line)
        return messages is not None and (body is None or messages.start() < body.start())
    return isinstance(found, dict) and "messages" in found and "body" not in found


def _framed(file: IO[bytes]) -> Iterator[bytes]:
    buffer = bytearray()
    for number, line in enumerate(file, start=1):
        body = line.strip()
        if body:
            frame = f',"custom_id":"line-{number}","method":"POST","url":"{_URL}"}}'
            buffer += b'{"body":' + body + frame.encode("ascii")
        buffer += b"\n"
        if len(buffer) >= PIECE_BYTES:
            yield bytes(buffer)
            buffer.clear()
    if buffer:
        yield bytes(buffer)

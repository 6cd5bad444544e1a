"""Files of ``tenth cache export`` and ``import``: JSON lines or CSV, plain or gzip, read and written line by line.

A line is one of three things:

- ``{"entry": {...}}``, as an export writes it: tenth.cache.v1.CacheEntry by its field names, the vector as base64 of
  little-endian float32 under ``embedding.float32``;
- ``{"question": ..., "answer": ...}`` with ``namespace``, ``system``, ``model`` and ``tier`` (who answered),
  ``output_tokens`` and ``tags`` where wanted: an answer of one's own. CSV has the same columns, tags as
  ``key=value; key=value``;
- ``{"request": {...}, "answer": ...}`` with the same, where the request is an OpenAI chat-completions body.
"""

from __future__ import annotations

import base64
import codecs
import csv
import gzip
import io
import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import grpc
from google.protobuf import json_format
from tenth.cache.v1 import cache_pb2
from tenth.type.v1 import chat_pb2

from formats.openai import TIERS, FormatError, completion_request, parse_json, text_message
from tenth_client.files import whole

_PAIR_KEYS = {"question", "request", "answer", "namespace", "system", "model", "tier", "output_tokens", "tags"}
_CSV_COLUMNS = _PAIR_KEYS - {"request"}
_MAX_FIELD_CHARACTERS = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Item:
    """One thing of a file to take in, with its line from 1."""

    line: int
    message: cache_pb2.ImportEntriesRequest


class EntryWriter:
    """Writes entries as JSON lines."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, entry: cache_pb2.CacheEntry) -> None:
        """One line."""
        line = json.dumps({"entry": entry_to_json(entry)}, ensure_ascii=False, separators=(",", ":"))
        self._stream.write(line.encode("utf-8") + b"\n")


@contextmanager
def writing(path: str) -> Iterator[EntryWriter]:
    """A writer of a file that appears whole or not at all, readable by its owner alone; ``-``: standard output."""
    with whole(path) as stream:
        yield EntryWriter(stream)


def entry_to_json(entry: cache_pb2.CacheEntry) -> dict[str, Any]:
    """An entry as JSON, its vector packed."""
    plain = cache_pb2.CacheEntry()
    plain.CopyFrom(entry)
    plain.embedding.ClearField("values")
    body: dict[str, Any] = json_format.MessageToDict(plain, preserving_proto_field_name=True)
    body.pop("embedding", None)
    if entry.HasField("embedding"):
        packed = _floats(entry.embedding.values)
        body["embedding"] = {"embedder": entry.embedding.embedder, "float32": base64.b64encode(packed).decode("ascii")}
    return body


def entry_from_json(body: Mapping[str, Any]) -> cache_pb2.CacheEntry:
    """The entry of a JSON object. Raises FormatError."""
    rest = dict(body)
    embedding = rest.pop("embedding", None)
    try:
        entry = json_format.ParseDict(rest, cache_pb2.CacheEntry())
    except json_format.ParseError as error:
        raise FormatError("entry", str(error)) from None
    if embedding is not None:
        if not isinstance(embedding, dict) or not isinstance(embedding.get("embedder"), str):
            raise FormatError("entry.embedding", 'an object with "embedder" and "float32" is expected')
        entry.embedding.embedder = embedding["embedder"]
        entry.embedding.values.extend(_unpacked(embedding.get("float32")))
    return entry


def read_items(path: str, *, encoding: str = "utf-8", namespace: str = "", renew: bool = False) -> Iterator[Item]:
    """The items of a file, line by line, however large it is. Raises FormatError naming line and field.

    ``namespace`` is of the lines that name none; ``renew`` takes the times off exported entries, so that they count
    as answered now. Standard input cannot be read twice: see ``files.spooled``.
    """
    name = Path(path).name
    with _reading(path) as raw:
        lines = _csv_rows(raw, encoding) if ".csv" in name.lower() else _json_rows(raw, encoding)
        for number, body in lines:
            try:
                yield Item(number, _item(body, namespace, renew))
            except FormatError as error:
                raise FormatError(error.field, error.message, number) from None


def _item(body: Mapping[str, Any], namespace: str, renew: bool) -> cache_pb2.ImportEntriesRequest:
    if "entry" in body:
        if set(body) != {"entry"} or not isinstance(body["entry"], dict):
            raise FormatError("entry", "an object, and nothing beside it, is expected")
        entry = entry_from_json(body["entry"])
        if renew:
            entry.ClearField("create_time")
            entry.provenance.ClearField("expire_time")
        return cache_pb2.ImportEntriesRequest(entry=entry)
    return cache_pb2.ImportEntriesRequest(pair=_pair(body, namespace))


def _pair(body: Mapping[str, Any], namespace: str) -> cache_pb2.Pair:
    unknown = sorted(set(body) - _PAIR_KEYS)
    if unknown:
        raise FormatError(unknown[0], f"unknown; known are {', '.join(sorted(_PAIR_KEYS))}, or entry")
    if ("question" in body) == ("request" in body):
        raise FormatError("question", "either a question or a request is needed")
    if "request" in body:
        if not isinstance(body["request"], dict):
            raise FormatError("request", "an OpenAI chat-completions body is expected")
        if body.get("system"):
            raise FormatError("system", "goes into the request's messages")
        try:
            request = completion_request(body["request"])
        except FormatError as error:
            raise FormatError(f"request.{error.field}", error.message) from None
    else:
        messages = [(chat_pb2.ROLE_SYSTEM, _text(body, "system")), (chat_pb2.ROLE_USER, _text(body, "question", True))]
        request = chat_pb2.CompletionRequest(messages=[text_message(role, text) for role, text in messages if text])
    request.namespace = _text(body, "namespace") or request.namespace or namespace
    request.tags.update(_tags(body.get("tags")))
    answer = _text(body, "answer", True)
    tier = _text(body, "tier").lower() or "complex"
    if tier not in TIERS:
        raise FormatError("tier", f"unknown tier {tier!r}; known: {', '.join(TIERS)}")
    completion = chat_pb2.Completion(
        message=text_message(chat_pb2.ROLE_ASSISTANT, answer),
        finish_reason=chat_pb2.FINISH_REASON_STOP,
        model=_text(body, "model"),
        # An answer that a person wrote or chose is held to be good enough for every tier.
        tier=TIERS[tier],
    )
    completion.usage.output_token_count = _count(body.get("output_tokens"), "output_tokens")
    return cache_pb2.Pair(request=request, completion=completion)


def _text(body: Mapping[str, Any], field: str, needed: bool = False) -> str:
    value = body.get(field)
    if value is None:
        value = ""
    if not isinstance(value, str):
        raise FormatError(field, f"a string is expected, not {value!r:.40}")
    if needed and not value.strip():
        raise FormatError(field, "is required")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise FormatError(field, "holds half a surrogate pair") from None
    return value


def _count(value: object, field: str) -> int:
    if value is None or value == "":
        return 0
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise FormatError(field, f"a count is expected, not {value!r:.40}")
    return value


def _tags(value: object) -> dict[str, str]:
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        pairs = [part.partition("=") for part in value.split(";") if part.strip()]
        if any(not mark or not key.strip() for key, mark, _ in pairs):
            raise FormatError("tags", "write key=value; key=value")
        return {key.strip(): text.strip() for key, _, text in pairs}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise FormatError("tags", "an object of strings is expected")
    return value


def _json_rows(raw: IO[bytes], encoding: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(raw, start=1):
        text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if not text.strip():
            continue
        try:
            yield number, parse_json(text if encoding == "utf-8" else text.decode(encoding))
        except FormatError as error:
            raise FormatError(error.field, error.message, number) from None
        except UnicodeDecodeError as error:
            raise _not_in(encoding, error, number) from None


def _csv_rows(raw: IO[bytes], encoding: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    # Spreadsheets put a byte order mark before UTF-8.
    text = io.TextIOWrapper(raw, "utf-8-sig" if encoding == "utf-8" else encoding, newline="")
    rows = csv.reader(text, strict=True)
    last = 0
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        unknown = sorted(set(header) - _CSV_COLUMNS)
        if unknown or not {"question", "answer"} <= set(header) or len(set(header)) < len(header):
            named = f"{unknown[0]!r} is unknown" if unknown else "question and answer are needed, each column once"
            raise FormatError("", f"columns: {named}; known are {', '.join(sorted(_CSV_COLUMNS))}", 1)
        last = rows.line_num
        for row in rows:
            # A field may hold line ends: a row is named by its first line.
            number, last = last + 1, rows.line_num
            if not any(cell.strip() for cell in row):
                continue
            if len(row) > len(header):
                raise FormatError("", f"{len(row)} cells under {len(header)} columns", number)
            yield number, dict(zip(header, row, strict=False))
    except csv.Error as error:
        raise FormatError("", f"not CSV: {error}", rows.line_num or last + 1) from None
    except UnicodeDecodeError as error:
        raise _not_in(encoding, error, last + 1) from None
    finally:
        text.detach()  # Who opened the file closes it.


def _not_in(encoding: str, error: UnicodeDecodeError, line: int) -> FormatError:
    advice = "; a file saved by a Korean Excel: --encoding cp949" if encoding == "utf-8" else ""
    return FormatError("", f"not {encoding}: {error.reason}{advice}", line)


@contextmanager
def _reading(path: str) -> Iterator[IO[bytes]]:
    with Path(path).open("rb") as file:
        # By content, for standard input has no name.
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not packed:
            yield file
            return
        with gzip.GzipFile(fileobj=file) as stream:
            try:
                yield stream  # type: ignore[misc]  # A GzipFile reads bytes.
            except (EOFError, OSError, zlib.error) as error:
                raise FormatError("", f"{path}: not whole: {error}") from None


def line_of(error: Exception, items: Iterable[Item]) -> FormatError | None:
    """The line and field that an error of ImportEntries names; None when it names none of these items."""
    field = str(getattr(error, "field", ""))
    head, _, rest = field.partition(".")
    if getattr(error, "code", None) is not grpc.StatusCode.INVALID_ARGUMENT or not head.startswith("items["):
        return None
    number = head.removeprefix("items[").removesuffix("]")
    found = list(items)
    if not number.isdecimal() or int(number) >= len(found):
        return None
    message = str(getattr(error, "message", error)).replace(f"{head}.", "")
    return FormatError(rest, message, found[int(number)].line)


def _floats(values: Iterable[float]) -> bytes:
    numbers = list(values)
    return struct.pack(f"<{len(numbers)}f", *numbers)


def _unpacked(text: object) -> tuple[float, ...]:
    try:
        packed = base64.b64decode(str(text), validate=True)
        return struct.unpack(f"<{len(packed) // 4}f", packed)
    except (ValueError, struct.error) as error:
        raise FormatError("entry.embedding.float32", f"not base64 of float32: {error}") from None

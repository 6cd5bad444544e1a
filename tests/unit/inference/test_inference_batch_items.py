"""What names a batch's items, what an upload takes, and what is read of result files."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import TenthError
from services.inference.batch_items import (
    BatchItem,
    KnownBatches,
    failure_of_status,
    item_of,
    seconds_of,
    tag_of,
)
from services.inference.batch_results import ResultLines
from services.inference.batch_upload import Frame, Limits, Upload
from services.inference.models import parse_catalog

NAMES = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-", min_size=1, max_size=36)


@given(NAMES, st.integers(1, 2_000_000_999), st.integers(0, 10**8), st.uuids())
def test_a_custom_id_tells_what_it_was_made_of(name: str, attempt: int, estimate: int, submission: object) -> None:
    item = BatchItem(name, attempt, estimate, tag_of(str(submission)))
    assert re.fullmatch("[a-zA-Z0-9_-]{1,64}", item.custom_id)
    assert item_of(item.custom_id) == item


@pytest.mark.parametrize("name", ["a/b", "a b", "é", "a" * 60])
def test_a_request_that_has_no_place_in_a_custom_id_is_refused(name: str) -> None:
    with pytest.raises(TenthError) as caught:
        _ = BatchItem(name, 1, 0, tag_of("s")).custom_id
    assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", "generation.request_id")


@pytest.mark.parametrize(
    "name", [None, 7, "", "nobody0", "a-1-1-short", "a-x-1-0123456789", "a-1-²-0123456789", "-1-1-0123456789"]
)
def test_an_id_that_is_not_ours(name: object) -> None:
    assert item_of(name) is None


@pytest.mark.parametrize(
    ("status", "reason", "retryable"),
    [
        (400, "PROVIDER_REJECTED", False),
        (404, "PROVIDER_MODEL_NOT_FOUND", False),
        (408, "PROVIDER_TIMEOUT", True),
        (409, "PROVIDER_FAILED", True),
        (422, "PROVIDER_REJECTED", False),
        (429, "PROVIDER_RATE_LIMITED", True),
        (500, "PROVIDER_FAILED", True),
        (529, "PROVIDER_FAILED", True),
    ],
)
def test_failures_by_status(status: int, reason: str, retryable: bool) -> None:
    failure = failure_of_status(status, "")
    assert (failure.reason, failure.retryable) == (reason, retryable)
    assert failure.message == f"HTTP {status}: no reason given"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (5, 5.0),
        ("1970-01-01T00:00:05Z", 5.0),
        ("1970-01-01T01:00:05+01:00", 5.0),
        ("1970-01-01T00:00:05", 5.0),
        ("soon", None),
        (None, None),
        (True, None),
    ],
)
def test_times_of_providers(value: object, seconds: float | None) -> None:
    assert seconds_of(value) == seconds


def test_the_eldest_known_batches_are_forgotten() -> None:
    known = KnownBatches(most=2)
    for name in ("a", "b", "c"):
        known.add(name, f"tag {name}")
    assert [known.tag(name) for name in ("a", "b", "c")] == [None, "tag b", "tag c"]


def upload(frame: Frame, *items: bytes, limits: Limits | None = None) -> bytes:
    made = Upload(limits or Limits(10, 1000), frame)
    try:
        for number, item in enumerate(items):
            made.add(str(number), item)
        made.finish()
        raw = made.rewound().read()
        assert made.size == len(raw)
        assert made.count == len(items)
        return raw
    finally:
        made.close()


def test_an_upload_is_framed_and_its_size_is_told() -> None:
    assert upload(Frame(), b"{}", b"[]") == b"{}\n[]\n"
    assert json.loads(upload(Frame(b'{"requests":[', b",", b"]}"), b"1", b"2", b"3")) == {"requests": [1, 2, 3]}


@pytest.mark.parametrize("limits", [Limits(2, 1000), Limits(10, 14)])
def test_an_upload_is_refused_at_its_limits(limits: Limits) -> None:
    assert len(upload(Frame(), b"12345", b"123456", limits=limits)) == 13
    with pytest.raises(TenthError) as caught:
        upload(Frame(), b"12345", b"123456", b"1", limits=limits)
    assert (caught.value.code.name, caught.value.reason) == ("INVALID_ARGUMENT", "PROVIDER_BATCH_TOO_LARGE")
    assert caught.value.metadata == {"max_item_count": str(limits.items), "max_byte_count": str(limits.bytes)}
    assert str(limits.bytes) in caught.value.message


class Body:
    """A response's body, in pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


def line(number: int, **more: Any) -> bytes:
    return json.dumps({"custom_id": BatchItem(f"r{number}", 1, 0, tag_of("s")).custom_id, **more}).encode() + b"\n"


async def read(lines: ResultLines, *pieces: bytes) -> list[tuple[str, Any]]:
    response = cast(httpx2.Response, Body(*pieces))
    return [(item.request_id, body.get("n")) async for item, body in lines.read(response, None)]


async def test_lines_come_once_however_they_are_cut() -> None:
    raw = line(1, n=1) + b"\n" + line(2, n=2) + line(1, n=3) + line(3, n="é\u2028")
    for size in (1, 7, 1000):
        lines = ResultLines("b")
        pieces = [raw[start : start + size] for start in range(0, len(raw), size)]
        assert await read(lines, *pieces) == [("r1", 1), ("r2", 2), ("r3", "é\u2028")]
        lines.check(lines.count, 3)
    lines = ResultLines("b")
    assert await read(lines, raw[:-1]) == [("r1", 1), ("r2", 2), ("r3", "é\u2028")], "the last line needs no end"
    lines.check(lines.count, 3)
    assert await read(lines, line(2, n=9), line(4, n=4)) == [("r4", 4)], "two files are one"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (line(1), "PROVIDER_INCOMPLETE"),
        (line(1) + line(2)[:-5], "PROVIDER_INCOMPLETE"),
        (line(1) + b"<html>\n" + line(2), "PROVIDER_GARBAGE"),
        (line(1) + b"[]\n" + line(2), "PROVIDER_GARBAGE"),
        (line(1) + b"[" * 100_000 + b"\n" + line(2), "PROVIDER_GARBAGE"),
        (b"", "PROVIDER_INCOMPLETE"),
    ],
)
async def test_what_is_missing_is_told_after_what_is_there(raw: bytes, reason: str) -> None:
    lines = ResultLines("b")
    good = [name for name, _ in await read(lines, raw)]
    assert good == [f"r{number}" for number in (1, 2) if line(number) in raw]
    with pytest.raises(TenthError) as caught:
        lines.check(lines.count, 2)
    assert caught.value.reason == reason


async def test_strangers_are_left_out() -> None:
    lines = ResultLines("b")
    assert await read(lines, b'{"custom_id": "x"}\n' + line(1, n=1)) == [("r1", 1)]
    lines.check(lines.count, 1)


CATALOG = """
providers:
  p: {{ backend: {backend}, base_url: "{url}"{more} }}
models:
  m: {{ provider: p, provider_model: m, context_window_tokens: 10, max_output_tokens: 5 }}
"""


@pytest.mark.parametrize(
    ("backend", "url", "more", "batches"),
    [
        ("openai", "https://api.openai.com/v1", "", "openai"),
        ("openai", "https://api.openai.com/v1", ", batches: none", "none"),
        ("openai", "https://gateway.example/v1", "", "none"),
        ("openai", "https://gateway.example/v1", ", batches: openai", "openai"),
        ("openai", "https://api.anthropic.com/v1", ", batches: anthropic", "anthropic"),
        ("anthropic", "https://api.anthropic.com/v1", "", "anthropic"),
        ("azure", "https://x.openai.azure.com", ', api_version: "2024-10-21"', "none"),
    ],
)
def test_the_catalogue_says_who_takes_batches(backend: str, url: str, more: str, batches: str) -> None:
    model = parse_catalog(CATALOG.format(backend=backend, url=url, more=more), "c.yaml")["m"]
    assert model.provider.batches == batches
    # The Messages API refuses a temperature, also where the online calls take the compatible endpoint's.
    assert ("temperature" in model.batch_rules.unsupported) == (batches == "anthropic")


@pytest.mark.parametrize(
    ("backend", "more"),
    [
        ("azure", ', api_version: "2024-10-21", batches: openai'),
        ("anthropic", ", batches: openai"),
        ("openai", ", batches: maybe"),
    ],
)
def test_a_batch_interface_that_a_provider_cannot_have_is_refused(backend: str, more: str) -> None:
    with pytest.raises(ValueError, match=r"providers.p.batches"):
        parse_catalog(CATALOG.format(backend=backend, url="https://x", more=more), "c.yaml")

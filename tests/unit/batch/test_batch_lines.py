"""Pieces into lines, lines into requests."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.batch.lines import LineFormatError, LineSplitter, RawLine, read_line

BODY = {"messages": [{"role": "user", "content": "Hello?"}]}


def split(pieces: list[bytes], most: int = 1000) -> list[RawLine]:
    splitter = LineSplitter(most)
    return [line for piece in pieces for line in splitter.feed(piece)] + list(splitter.finish())


def cut(content: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({min(place, len(content)) for place in places} | {len(content)})
    return [content[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@given(
    st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"x").rstrip(b"\r"))),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
    st.lists(st.integers(0, 200)),
)
def test_lines_do_not_depend_on_the_pieces(lines: list[bytes], end: bytes, ended: bool, places: list[int]) -> None:
    content = end.join(lines) + (end if ended else b"")
    wanted = [RawLine(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if wanted and wanted[0].number == 1:
        assert wanted[0].content is not None
        wanted[0] = RawLine(1, wanted[0].content.removeprefix(b"\xef\xbb\xbf"))
        if not wanted[0].content:
            del wanted[0]
    assert split(cut(content, places)) == wanted


@given(st.lists(st.integers(0, 30), min_size=1), st.lists(st.integers(0, 300)), st.sampled_from([b"\n", b"\r\n"]))
def test_a_line_that_is_too_long_costs_only_itself(sizes: list[int], places: list[int], end: bytes) -> None:
    content = b"".join(b"x" * size + end for size in sizes)
    assert split(cut(content, places), most=10) == [
        RawLine(number, b"x" * size if size <= 10 else None) for number, size in enumerate(sizes, start=1) if size
    ]


def test_a_splitter_holds_no_more_than_a_line_may_have() -> None:
    splitter = LineSplitter(1000)
    for _ in range(100):
        assert not list(splitter.feed(b"x" * 999))
    assert len(splitter._begun) <= 1001
    assert list(splitter.feed(b"\nshort\n")) == [RawLine(1, None), RawLine(2, b"short")]


def test_a_line_of_the_batch_format_and_a_body_alone() -> None:
    line = {"custom_id": "q1", "method": "POST", "url": "/v1/chat/completions", "body": BODY}
    custom_id, request = read_line(json.dumps(line).encode(), 7)
    assert custom_id == "q1"
    assert request.messages[0].parts[0].text == "Hello?"
    assert read_line(json.dumps(BODY).encode(), 7) == ("line-7", request)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"custom_id": None}, "custom_id"),
        ({"custom_id": ""}, "custom_id"),
        ({"custom_id": 7}, "custom_id"),
        ({"custom_id": "x" * 257}, "custom_id"),
        ({"custom_id": "a\tb"}, "custom_id"),
        ({"custom_id": "\ud800"}, "custom_id"),
        ({"method": "GET"}, "method"),
        ({"method": None}, "method"),
        ({"url": "/v1/embeddings"}, "url"),
        ({"body": None}, "body"),
        ({"body": []}, "body"),
        ({"body": {}}, "messages"),
        ({"body": {"messages": [{"role": "king", "content": "x"}]}}, "messages[0].role"),
        ({"bodi": {}}, "bodi"),
    ],
)
def test_what_is_wrong_with_a_line_is_named(change: dict[str, object], field: str) -> None:
    line = {"custom_id": "q1", "method": "POST", "url": "/v1/chat/completions", "body": BODY} | change
    with pytest.raises(LineFormatError) as error:
        read_line(json.dumps(line).encode(), 7)
    assert error.value.field == field
    assert error.value.custom_id == ("" if field == "custom_id" else "q1")


@pytest.mark.parametrize("content", [b"{", b"[]", b"7", b'"\xff"', b'{"messages": NaN}', b"[" * 100_000])
def test_what_is_no_json_object_is_told(content: bytes) -> None:
    with pytest.raises(LineFormatError) as error:
        read_line(content, 1)
    assert error.value.field == ""

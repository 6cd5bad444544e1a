"""The batch bench's comparison of books: what counts as billed twice, and what as honest work done again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tenth.type.v1 import receipt_pb2

from bench.batch_books import Compared, attempt_of, booked, compare, holds
from bench.batch_kills import chunks_again

ID = "0f8b2c1e-1111-5222-8333-444455556666"
TAG = "0123456789"


def receipt(request_id: str, attempt: int, *overheads: int, hit: bool = False) -> receipt_pb2.Receipt:
    facts = receipt_pb2.ReceiptFacts(request_id=request_id, attempt=attempt, cache_hit=hit)
    facts.overheads.extend(receipt_pb2.OverheadItem(attempt=number) for number in overheads)
    return receipt_pb2.Receipt(
        facts=facts,
        baseline_nano_usd=100,
        savings=[receipt_pb2.LayerSaving(saving_nano_usd=40)],
        overhead_nano_usd=5,
        actual_nano_usd=65,
    )


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        (f"{ID}/17", (ID, 17)),
        (f"{ID}-3-250-{TAG}", (ID, 3)),
        (ID, None),
        (f"{ID}-3-250-short", None),
        ("", None),
    ],
)
def test_what_a_name_at_the_provider_says(name: str, attempt: tuple[str, int] | None) -> None:
    assert attempt_of(name) == attempt


def test_receipts_hold_answers_and_what_failed_before() -> None:
    held = booked([receipt("a", 2, 1, 0), receipt("b", 0, hit=True)])
    assert held == {("a", 2), ("a", 1)}


def test_the_identity() -> None:
    good = receipt("a", 1)
    assert holds(good)
    good.actual_nano_usd += 1
    assert not holds(good)


@pytest.mark.parametrize(
    ("asked", "receipts", "ledger_requests", "expected"),
    [
        # Each once; a stranger's request does not count.
        (["a/1", f"b-1-10-{TAG}", "z/1"], [receipt("a", 1), receipt("b", 1)], 2, (2, 0, 0, 0)),
        # Again under another number, both booked: honest.
        (["a/1", "a/17"], [receipt("a", 17, 1)], 1, (2, 0, 1, 0)),
        # Again, and the first one is in no receipt.
        (["a/1", "a/17"], [receipt("a", 17)], 1, (2, 1, 1, 0)),
        # The same number again: the books cannot tell them apart.
        (["a/1", "a/1"], [receipt("a", 1)], 1, (2, 1, 0, 0)),
        # The ledger counts a request more than there are items.
        (["a/1"], [receipt("a", 1)], 2, (1, 1, 0, 0)),
        # Booked, but it never arrived at the provider.
        ([], [receipt("a", 1)], 1, (0, 0, 0, 1)),
        # Answered by the cache: nothing was asked.
        ([], [receipt("a", 0, hit=True)], 1, (0, 0, 0, 0)),
    ],
)
def test_three_books_compared(
    asked: Sequence[str],
    receipts: Sequence[receipt_pb2.Receipt],
    ledger_requests: int,
    expected: tuple[int, int, int, int],
) -> None:
    requests, twice, repeated, unasked = expected
    assert compare(asked, receipts, ledger_requests) == Compared(requests, twice, repeated, unasked, 0)


@pytest.mark.parametrize(("items", "chunks"), [(0, 0), (1, 1), (64, 1), (65, 2)])
def test_repeated_items_as_chunks(items: int, chunks: int) -> None:
    assert chunks_again(items, 64) == chunks

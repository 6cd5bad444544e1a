"""Sums: exact to the nano-dollar over any filter and grouping, on both stores."""

from __future__ import annotations

import pytest
from tenth.type.v1 import usage_pb2

from mesh.errors import TenthError
from services.ledger.report import DIMENSIONS, Filter
from services.ledger.tables import SAVINGS
from tests.integration.ledger.ledger_books import SECOND, Books


async def fill(books: Books) -> int:
    """Settle receipts of every shape over three days; returns what they cost."""
    actual = 0
    for index in range(12):
        books.clock.advance(6 * 3600)
        receipt = await books.receipt(
            f"r{index}",
            user_id=("ann", "bob", "")[index % 3],
            project_id=("x", "")[index % 2],
            # Some are longer than the original: compression then saved less than nothing.
            usage=usage_pb2.Usage(input_token_count=700 + 100 * index, output_token_count=37 * index),
            model="big" if index % 4 == 0 else "small",
            cache_hit=index % 5 == 1,
            failed=index == 7,
        )
        assert await books.settle(receipt) == [""]
        actual += receipt.actual_nano_usd
    return actual


@pytest.mark.parametrize("group_by", [(), *((each,) for each in DIMENSIONS), DIMENSIONS, ("day", "model")])
async def test_every_grouping_sums_to_the_same(books: Books, group_by: tuple[str, ...]) -> None:
    actual = await fill(books)
    rows, models = await books.reports.spend(Filter(), group_by)
    assert models == ["big"]
    assert sum(row.request_count for row in rows) == 12
    assert sum(row.amounts["actual"] for row in rows) == actual
    assert min(row.amounts["saving_compression"] for row in rows) < 0 or len(rows) == 1
    assert rows == sorted(rows, key=lambda row: row.group) or "tier" in group_by
    for row in rows:
        saved = sum(row.amounts[name] for name in SAVINGS)
        assert row.amounts["baseline"] - saved + row.amounts["overhead"] == row.amounts["actual"]


async def test_groups_and_filters(books: Books) -> None:
    await fill(books)
    start = books.clock.now - 11 * 6 * 3600 * SECOND
    days, _ = await books.reports.spend(Filter(), ["day"])
    assert [row.group for row in days] == [("2026-06-15",), ("2026-06-16",), ("2026-06-17",), ("2026-06-18",)]
    hours, _ = await books.reports.spend(Filter(end_ns=start + 1), ["hour", "cache", "tier"])
    assert [row.group for row in hours] == [("2026-06-15T18:00Z", "miss", "simple")]
    ann, _ = await books.reports.spend(Filter(user_id="ann", project_id="x"), [])
    assert ann[0].request_count == 2
    nobody, models = await books.reports.spend(Filter(tenant_id="nobody"), [])
    assert (nobody[0].request_count, nobody[0].amounts["actual"], models) == (0, 0, [])
    assert (await books.reports.spend(Filter(tenant_id="nobody"), ["day"]))[0] == []
    total, _ = await books.reports.spend(Filter(), [])
    assert (total[0].failed_count, total[0].cache_hit_count) == (1, 3)


async def test_a_sum_past_64_bits_is_an_error_and_no_wrong_number(books: Books) -> None:
    huge = usage_pb2.Usage(output_token_count=150 * 10**12)  # 7.5 billion USD on the big model.
    for name in ("a", "b"):
        assert await books.settle(await books.receipt(name, model="big", usage=huge)) == [""]
    with pytest.raises(TenthError, match="AMOUNT_OUT_OF_RANGE"):
        await books.reports.spend(Filter(), [])
    assert (await books.reports.status()).identity_violation_count == 0

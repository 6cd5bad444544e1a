"""Money as metrics agrees with the books: once per receipt, corrections by the difference; on both stores."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import usage_pb2

from mesh.testing import memory_metrics, metric_points
from services.ledger.book import Book
from services.ledger.metrics import BookGauges, MoneyMetrics
from services.ledger.reconcile import Sweeper
from tests.integration.ledger.ledger_books import Books

GUESS = usage_pb2.Usage(input_token_count=800, output_token_count=500, estimated=True)
LESS = usage_pb2.Usage(input_token_count=700, output_token_count=300)


@pytest.fixture
async def counted(books: Books) -> AsyncIterator[tuple[Books, InMemoryMetricReader]]:
    """Books whose writes are counted."""
    telemetry, reader = memory_metrics("ledger")
    count = MoneyMetrics(telemetry.meter).count
    book = Book(books.store, books.prices, books.clock, lambda: uuid.uuid4().hex, count)
    sweeper = Sweeper(book, attempt_ttl_seconds=600, unfinished_grace_seconds=900)
    yield replace(books, book=book, sweeper=sweeper), reader
    telemetry.close()


def total(reader: InMemoryMetricReader, name: str) -> int:
    return sum(point.value for point in metric_points(reader, name).values())


def net(reader: InMemoryMetricReader) -> int:
    return total(reader, "tenth.cost") - total(reader, "tenth.cost.credits")


async def test_a_receipt_counts_once_with_few_attributes(counted: tuple[Books, InMemoryMetricReader]) -> None:
    books, reader = counted
    given = await books.receipt("r", user_id="ann", project_id="p")
    await books.settle(given)
    await books.settle(given)
    (attributes,) = metric_points(reader, "tenth.cost")
    assert dict(attributes) == {
        "tenth.tenant_id": "acme",
        "gen_ai.response.model": "small",
        "tenth.tier": "simple",
        "tenth.cache.outcome": "miss",
        "tenth.outcome": "answered",
    }
    assert net(reader) == given.actual_nano_usd
    saved = {dict(key)["tenth.layer"]: point.value for key, point in metric_points(reader, "tenth.savings").items()}
    named = zip(
        ("cache", "routing", "compression", "prompt_cache", "batch", "quantization"), given.savings, strict=True
    )
    assert saved == {name: item.saving_nano_usd for name, item in named if item.saving_nano_usd}


async def test_corrections_and_replacements_count_by_the_difference(
    counted: tuple[Books, InMemoryMetricReader],
) -> None:
    books, reader = counted
    await books.settle(await books.receipt("r", usage=GUESS, payload_digest="a" * 64))
    first = net(reader)
    await books.record(books.attempt("r", ledger_pb2.ATTEMPT_KIND_FINISHED, usage=LESS))
    assert total(reader, "tenth.cost.credits") == first - net(reader) == 500_000
    books.clock.advance(5)
    await books.settle(await books.receipt("r", attempt=2, payload_digest="a" * 64))
    await books.sweeper.sweep()
    stored = await books.stored("r")
    assert stored.overhead_nano_usd
    assert net(reader) == stored.actual_nano_usd
    saved = total(reader, "tenth.savings")
    assert stored.baseline_nano_usd - saved + stored.overhead_nano_usd == stored.actual_nano_usd


async def test_a_lost_request_counts_when_it_is_reconciled(counted: tuple[Books, InMemoryMetricReader]) -> None:
    books, reader = counted
    await books.record(books.attempt("r", ledger_pb2.ATTEMPT_KIND_FAILED))
    assert metric_points(reader, "tenth.cost") == {}
    books.clock.advance(700)
    await books.sweeper.sweep()
    ((attributes, point),) = metric_points(reader, "tenth.cost").items()
    assert (dict(attributes)["tenth.outcome"], dict(attributes)["gen_ai.response.model"]) == ("failed", "none")
    assert point.value == (await books.stored("r")).actual_nano_usd


async def test_a_model_that_no_price_vouches_for_is_no_attribute(counted: tuple[Books, InMemoryMetricReader]) -> None:
    books, reader = counted
    await books.settle(await books.receipt("f", failed=True, model="x" * 200, tier=77))
    await books.settle(await books.receipt("h", cache_hit=True, model="y" * 200))
    found = {
        (dict(key)["gen_ai.response.model"], dict(key)["tenth.tier"]) for key in metric_points(reader, "tenth.cost")
    }
    assert found == {("none", "unspecified"), ("none", "simple")}


async def test_a_write_counts_though_its_caller_has_left(counted: tuple[Books, InMemoryMetricReader]) -> None:
    books, reader = counted
    settlement = await books.settlement(await books.receipt("r"))
    call = asyncio.ensure_future(books.book.settle([settlement]))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    for _ in range(200):
        if net(reader):
            break
        await asyncio.sleep(0.01)
    assert net(reader) == (await books.stored("r")).actual_nano_usd


async def test_gauges_show_what_budgets_have_left(books: Books) -> None:
    telemetry, reader = memory_metrics("ledger")
    gauges = BookGauges(telemetry.meter, books.store, books.admin)
    assert metric_points(reader, "tenth.reservations.open") == {}, "nothing is said before it is known"
    await books.budget(10_000_000)
    await books.budget(1_000_000, name="soft", hard=False)
    await books.book.reserve(books.wanted("open"))
    given = await books.receipt("r")
    await books.settle(given)
    await gauges.refresh()
    left = {
        dict(key)["tenth.budget"]: point.value for key, point in metric_points(reader, "tenth.budget.remaining").items()
    }
    assert left == {
        "all": 10_000_000 - 3_000_000 - given.actual_nano_usd,
        "soft": 1_000_000 - 3_000_000 - given.actual_nano_usd,
    }
    assert total(reader, "tenth.reservations.open") == 1
    telemetry.close()

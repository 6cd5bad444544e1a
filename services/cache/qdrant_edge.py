"""The embedded store: Qdrant's own engine inside this process, one shard in the data directory.

Every write is in the write-ahead log before it returns, so entries survive kill -9. The shard's calls run on one
thread of their own: a long one must not hold up the event loop longer than the GIL does anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import qdrant_edge as edge

from mesh.errors import TenthError
from services.cache.errors import dimension_mismatch, store_in_use, store_unavailable
from services.cache.store import (
    KEYWORD_FIELDS,
    NUMBER_FIELDS,
    Condition,
    Conditions,
    Entry,
    Found,
    from_payload,
    to_payload,
)

T = TypeVar("T")


class QdrantEdgeStore:
    """VectorStore over ``qdrant-edge-py``. One process per directory."""

    name = "qdrant_edge"

    def __init__(self, folder: Path, dimension: int, timeout_seconds: float) -> None:
        self._folder = folder
        self._dimension = dimension
        self._timeout_seconds = timeout_seconds
        self._shard: edge.EdgeShard | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="qdrant-edge")
        self._unflushed = 0

    async def open(self) -> None:
        """Open or create the shard. Raises STORE_DIMENSION_MISMATCH, STORE_IN_USE, STORE_UNAVAILABLE."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._open)

    async def close(self) -> None:
        """Flush and release the directory."""
        if self._shard is not None:
            shard, self._shard = self._shard, None
            await asyncio.get_running_loop().run_in_executor(self._thread, shard.close)
        self._thread.shutdown(wait=True)

    async def ping(self) -> None:
        """Raise when the shard is not open."""
        if self._shard is None:
            raise store_unavailable("the embedded store is not open")

    async def put(self, entry: Entry, vector: Sequence[float]) -> None:
        """Insert or replace."""
        point = edge.Point(entry.entry_id, list(vector), to_payload(entry))
        await self._run(lambda shard: shard.update(edge.UpdateOperation.upsert_points([point])))
        self._unflushed += 1

    async def get(self, entry_id: str) -> Entry | None:
        """By id."""
        records = await self._run(lambda shard: shard.retrieve([entry_id], True, False))
        return _entry(records[0]) if records else None

    async def search(
        self, vector: Sequence[float], conditions: Conditions, limit: int, least: float = -1.0
    ) -> list[Found]:
        """Exact (no graph index): below some ten thousand entries of a scope that is the faster way."""
        request = edge.SearchRequest(
            query=edge.Query.Nearest(list(vector)),
            limit=limit,
            filter=_filter(conditions),
            with_payload=True,
            score_threshold=least,
        )
        points = await self._run(lambda shard: shard.search(request))
        return [Found(_entry(point), float(point.score)) for point in points]

    async def count(self, conditions: Conditions, entry_ids: Sequence[str] = ()) -> int:
        """Exact count."""
        request = edge.CountRequest(exact=True, filter=_filter(conditions, entry_ids))
        return int(await self._run(lambda shard: shard.count(request)))

    async def delete(self, conditions: Conditions, entry_ids: Sequence[str] = ()) -> int:
        """Count, then delete, as one step of the store's thread."""
        chosen = _filter(conditions, entry_ids)

        def delete(shard: edge.EdgeShard) -> int:
            count = shard.count(edge.CountRequest(exact=True, filter=chosen))
            if count:
                shard.update(edge.UpdateOperation.delete_points_by_filter(chosen))
            return int(count)

        count = await self._run(delete)
        self._unflushed += count
        return count

    async def touch(self, used: Mapping[str, tuple[int, float]]) -> None:
        """One small payload write per entry."""

        def touch(shard: edge.EdgeShard) -> None:
            # Setting the payload of an absent point is an error there, and deletions race with hits.
            for record in shard.retrieve(list(used), ["hits"], False):
                hits, at = used[str(record.id)]
                shard.update(edge.UpdateOperation.set_payload([record.id], {"hits": hits, "used": at}))

        await self._run(touch)

    async def set_counts(self, entry_id: str, right_count: int, wrong_count: int) -> None:
        """One small payload write."""
        counts = {"right_count": right_count, "wrong_count": wrong_count}

        def write(shard: edge.EdgeShard) -> None:
            for record in shard.retrieve([entry_id], ["hits"], False):
                shard.update(edge.UpdateOperation.set_payload([record.id], counts))

        await self._run(write)

    async def scroll(
        self, conditions: Conditions, limit: int, after: str = ""
    ) -> tuple[list[tuple[Entry, list[float]]], str]:
        """In the order of ids."""
        request = edge.ScrollRequest(
            offset=after or None, limit=limit, filter=_filter(conditions), with_payload=True, with_vector=True
        )
        records, following = await self._run(lambda shard: shard.scroll(request))
        return [(_entry(record), _vector(record.vector)) for record in records], str(following or "")

    async def least_recently_used(self, limit: int) -> list[str]:
        """Ordered by the index on ``used``."""
        request = edge.ScrollRequest(limit=limit, order_by=edge.OrderBy("used"), with_payload=False)
        records, _ = await self._run(lambda shard: shard.scroll(request))
        return [str(record.id) for record in records]

    async def flush(self) -> None:
        """Write segments, so that the next start has no long log to replay."""
        if self._unflushed:
            self._unflushed = 0
            await self._run(lambda shard: shard.flush())

    def _open(self) -> None:
        config = edge.EdgeConfig(
            vectors=edge.EdgeVectorParams(size=self._dimension, distance=edge.Distance.Cosine), max_search_threads=1
        )
        try:
            if (self._folder / "edge_config.json").exists():
                stored = edge.EdgeShard.load(str(self._folder))
                shard_size = _dimension(stored)
                if shard_size not in (0, self._dimension):
                    stored.close()
                    raise dimension_mismatch(str(self._folder), shard_size, self._dimension)
                self._shard = stored
            else:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._shard = edge.EdgeShard.create(str(self._folder), config)
            indexed = self._shard.info().payload_schema
            for field in KEYWORD_FIELDS:
                if field not in indexed:
                    kind = edge.PayloadSchemaType.Keyword
                    self._shard.update(edge.UpdateOperation.create_field_index(field, kind))
            for field in NUMBER_FIELDS:
                if field not in indexed:
                    self._shard.update(edge.UpdateOperation.create_field_index(field, edge.PayloadSchemaType.Float))
        except TenthError:
            raise
        except Exception as error:
            # The engine has one exception type for everything; its text tells a locked log from the rest.
            if "WouldBlock" in str(error):
                raise store_in_use(str(self._folder)) from error
            raise store_unavailable(f"{self._folder}: {error}") from error

    async def _run(self, work: Callable[[edge.EdgeShard], T]) -> T:
        shard = self._shard
        if shard is None:
            raise store_unavailable("the embedded store is closed")
        call = asyncio.get_running_loop().run_in_executor(self._thread, work, shard)
        try:
            return await asyncio.wait_for(call, self._timeout_seconds)
        except TimeoutError:
            raise store_unavailable(f"no answer within {self._timeout_seconds} s") from None
        except TenthError:
            raise
        except Exception as error:
            # Whatever the engine reports (a full disk, a broken segment), callers go on without the cache.
            raise store_unavailable(str(error)) from error


def _dimension(shard: edge.EdgeShard) -> int:
    """The dimension of an open shard, read off its own refusal of a query of one dimension; 0: not known."""
    try:
        shard.search(edge.SearchRequest(query=edge.Query.Nearest([1.0]), limit=1))
    except Exception as error:
        # "Vector dimension error: expected dim: 384, got 1": the engine tells it nowhere else.
        _, _, rest = str(error).partition("expected dim: ")
        digits = rest.split(",")[0]
        return int(digits) if digits.isdigit() else 0
    return 1


def _entry(record: edge.Record | edge.ScoredPoint) -> Entry:
    return from_payload(str(record.id), record.payload or {})


def _vector(stored: object) -> list[float]:
    return [float(value) for value in stored] if isinstance(stored, list) else []


def _filter(conditions: Conditions, entry_ids: Sequence[str] = ()) -> edge.Filter:
    must: list[Any] = [_condition(condition) for condition in conditions]
    if entry_ids:
        must.append(edge.HasIdCondition(set(entry_ids)))
    return edge.Filter(must=must)


def _condition(condition: Condition) -> edge.FieldCondition:
    if condition.values:
        values = list(condition.values)
        match = edge.MatchValue(values[0]) if len(values) == 1 else edge.MatchAny(values)
        return edge.FieldCondition(condition.field, match=match)
    bounds = edge.RangeFloat(gte=condition.at_least, gt=condition.above, lte=condition.at_most)
    return edge.FieldCondition(condition.field, range=bounds)

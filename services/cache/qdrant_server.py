"""The shared store: a Qdrant server or cluster through its async client.

The same contract tests run on the embedded store, on the client's ``:memory:`` mode, and on a real server where
QDRANT_URL is set.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar

from qdrant_client import AsyncQdrantClient, models

from mesh.errors import TenthError
from services.cache.errors import dimension_mismatch, store_unavailable
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


class QdrantServerStore:
    """VectorStore over ``qdrant_client.AsyncQdrantClient``. Owns the client it is given."""

    name = "qdrant_server"

    def __init__(
        self,
        client: AsyncQdrantClient,
        collection: str,
        dimension: int,
        timeout_seconds: float,
        replica_count: int = 1,
    ) -> None:
        self._client = client
        self._collection = collection
        self._dimension = dimension
        self._timeout_seconds = timeout_seconds
        self._replica_count = replica_count
        self._ready = False

    async def open(self) -> None:
        """Create collection and indexes where absent. A server that is down now may come later: ``ping`` tries again.

        Raises STORE_DIMENSION_MISMATCH.
        """
        try:
            await self._prepare()
        except TenthError as error:
            if error.reason == "STORE_DIMENSION_MISMATCH":
                raise

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def ping(self) -> None:
        """Raise while the server does not answer or the collection is not ready."""
        if not self._ready:
            await self._prepare()
        await self._run(self._client.collection_exists(self._collection))

    async def put(self, entry: Entry, vector: Sequence[float]) -> None:
        """Insert or replace; acknowledged when it is in the server's write-ahead log and visible."""
        point = models.PointStruct(id=entry.entry_id, vector=list(vector), payload=to_payload(entry))
        await self._run(self._client.upsert(self._collection, [point], wait=True))

    async def get(self, entry_id: str) -> Entry | None:
        """By id."""
        records = await self._run(self._client.retrieve(self._collection, [entry_id], with_payload=True))
        return _entry(records[0]) if records else None

    async def search(
        self, vector: Sequence[float], conditions: Conditions, limit: int, least: float = -1.0
    ) -> list[Found]:
        """Nearest by cosine."""
        response = await self._run(
            self._client.query_points(
                self._collection,
                list(vector),
                query_filter=_filter(conditions),
                limit=limit,
                with_payload=True,
                score_threshold=least,
            )
        )
        return [Found(_entry(point), float(point.score)) for point in response.points]

    async def count(self, conditions: Conditions, entry_ids: Sequence[str] = ()) -> int:
        """Exact count."""
        counted = await self._run(
            self._client.count(self._collection, count_filter=_filter(conditions, entry_ids), exact=True)
        )
        return int(counted.count)

    async def delete(self, conditions: Conditions, entry_ids: Sequence[str] = ()) -> int:
        """Count, then delete."""
        count = await self.count(conditions, entry_ids)
        if count:
            selector = models.FilterSelector(filter=_filter(conditions, entry_ids))
            await self._run(self._client.delete(self._collection, selector, wait=True))
        return count

    async def touch(self, used: Mapping[str, tuple[int, float]]) -> None:
        """In one batch, without waiting for it to be visible."""
        known = await self._run(self._client.retrieve(self._collection, list(used), with_payload=False))
        operations: list[Any] = []
        for record in known:
            hits, at = used[str(record.id)]
            payload = models.SetPayload(payload={"hits": hits, "used": at}, points=[record.id])
            operations.append(models.SetPayloadOperation(set_payload=payload))
        if operations:
            await self._run(self._client.batch_update_points(self._collection, operations, wait=False))

    async def set_counts(self, entry_id: str, right_count: int, wrong_count: int) -> None:
        """Visible when it returns."""
        counts = {"right_count": right_count, "wrong_count": wrong_count}
        known = await self._run(self._client.retrieve(self._collection, [entry_id], with_payload=False))
        if known:
            await self._run(self._client.set_payload(self._collection, counts, points=[entry_id], wait=True))

    async def scroll(
        self, conditions: Conditions, limit: int, after: str = ""
    ) -> tuple[list[tuple[Entry, list[float]]], str]:
        """In the order of ids."""
        records, following = await self._run(
            self._client.scroll(
                self._collection,
                scroll_filter=_filter(conditions),
                limit=limit,
                offset=after or None,
                with_payload=True,
                with_vectors=True,
            )
        )
        return [(_entry(record), _vector(record.vector)) for record in records], str(following or "")

    async def least_recently_used(self, limit: int) -> list[str]:
        """Ordered by the index on ``used``."""
        records, _ = await self._run(
            self._client.scroll(self._collection, limit=limit, order_by=models.OrderBy(key="used"), with_payload=False)
        )
        return [str(record.id) for record in records]

    async def flush(self) -> None:
        """The server flushes by itself."""

    async def _prepare(self) -> None:
        vectors = models.VectorParams(size=self._dimension, distance=models.Distance.COSINE)
        if not await self._run(self._client.collection_exists(self._collection)):
            try:
                await self._run(
                    self._client.create_collection(
                        self._collection, vectors_config=vectors, replication_factor=self._replica_count
                    )
                )
            except TenthError:
                # Another replica may have created it in this moment; if not, the next line says what is wrong.
                if not await self._run(self._client.collection_exists(self._collection)):
                    raise
        info = await self._run(self._client.get_collection(self._collection))
        stored = info.config.params.vectors
        size = stored.size if isinstance(stored, models.VectorParams) else 0
        if size != self._dimension:
            raise dimension_mismatch(f"collection {self._collection}", size, self._dimension)
        for field in KEYWORD_FIELDS:
            if field not in info.payload_schema:
                schema = models.KeywordIndexParams(
                    type=models.KeywordIndexType.KEYWORD, is_tenant=True if field == "tenant" else None
                )
                await self._index(field, schema)
        for field in NUMBER_FIELDS:
            if field not in info.payload_schema:
                await self._index(field, models.PayloadSchemaType.FLOAT)
        self._ready = True

    async def _index(self, field: str, schema: models.KeywordIndexParams | models.PayloadSchemaType) -> None:
        await self._run(self._client.create_payload_index(self._collection, field, schema, wait=True))

    async def _run(self, work: Awaitable[T]) -> T:
        try:
            return await asyncio.wait_for(work, self._timeout_seconds)
        except TimeoutError:
            raise store_unavailable(f"no answer within {self._timeout_seconds} s") from None
        except Exception as error:
            # The client raises httpx, gRPC and its own errors; for callers all of them mean: no cache right now.
            raise store_unavailable(f"{type(error).__name__}: {error}") from error


def _entry(record: models.Record | models.ScoredPoint) -> Entry:
    return from_payload(str(record.id), record.payload or {})


def _vector(stored: object) -> list[float]:
    return [float(value) for value in stored] if isinstance(stored, list) else []


def _filter(conditions: Conditions, entry_ids: Sequence[str] = ()) -> models.Filter:
    must: list[Any] = [_condition(condition) for condition in conditions]
    if entry_ids:
        must.append(models.HasIdCondition(has_id=list(entry_ids)))
    return models.Filter(must=must)


def _condition(condition: Condition) -> models.FieldCondition:
    if condition.values:
        values = list(condition.values)
        match = models.MatchValue(value=values[0]) if len(values) == 1 else models.MatchAny(any=values)
        return models.FieldCondition(key=condition.field, match=match)
    bounds = models.Range(gte=condition.at_least, gt=condition.above, lte=condition.at_most)
    return models.FieldCondition(key=condition.field, range=bounds)

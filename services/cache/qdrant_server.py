"""The shared store: a Qdrant server or cluster through its async client.

The same contract tests run on the embedded store, on the client's ``:memory:`` mode, and on a real server where
QDRANT_URL is set.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from mesh.errors import TenthError
from services.cache.errors import dimension_mismatch, store_unavailable
from services.cache.store import (
    KEYWORD_FIELDS,
    NUMBER_FIELDS,
    PREFIX_FIELDS,
    Condition,
    Conditions,
    Entry,
    Found,
    from_payload,
    to_payload,
)

T = TypeVar("T")
log = logging.getLogger("tenth.cache")

_ATTEMPTS = 3
_PAUSE_SECONDS = 0.05
"""Before the second attempt; doubled before each further one."""
_PAGE_POINTS = 1000
_NO_ANSWER = "completion"


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a new collection is made, and how it is written. An existing collection stays as it is."""

    replica_count: int = 1
    """Copies of each shard of the collection."""
    write_replica_count: int = 1
    """Copies that must have a write before it is acknowledged."""
    quantized: bool = True
    """Also keep vectors of one byte a dimension, in memory; searches compare these and then the originals."""


class QdrantServerStore:
    """VectorStore over ``qdrant_client.AsyncQdrantClient``. Owns the client it is given.

    Every call may be made twice with the same outcome, so all are tried again when the server cannot be reached or
    says that it cannot answer now; all attempts together have ``timeout_seconds``.
    """

    name = "qdrant_server"

    def __init__(
        self,
        client: AsyncQdrantClient,
        collection: str,
        dimension: int,
        timeout_seconds: float,
        options: ServerOptions = ServerOptions(),
    ) -> None:
        self._client = client
        self._collection = collection
        self._dimension = dimension
        self._timeout_seconds = timeout_seconds
        self._options = options
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
        if not await self._run(lambda: self._client.collection_exists(self._collection)):
            self._ready = False
            raise store_unavailable(f"collection {self._collection} is gone")

    async def put(self, entry: Entry, vector: Sequence[float]) -> None:
        """Insert or replace; acknowledged when it is in the server's write-ahead log and visible."""
        point = models.PointStruct(id=entry.entry_id, vector=list(vector), payload=to_payload(entry))
        await self._run(lambda: self._client.upsert(self._collection, [point], wait=True))

    async def get(self, entry_id: str) -> Entry | None:
        """By id."""
        records = await self._run(lambda: self._client.retrieve(self._collection, [entry_id], with_payload=True))
        return _entry(records[0]) if records else None

    async def search(
        self, vector: Sequence[float], conditions: Conditions, limit: int, least: float = -1.0
    ) -> list[Found]:
        """Nearest by cosine; of quantized vectors the nearest are compared again with the originals."""
        scoped = _filter(conditions)
        scoped.must_not = [models.FieldCondition(key="scope", match=models.MatchValue(value=""))]
        response = await self._run(
            lambda: self._client.query_points(
                self._collection,
                list(vector),
                query_filter=scoped,
                limit=limit,
                search_params=models.SearchParams(
                    quantization=models.QuantizationSearchParams(rescore=True, oversampling=2.0)
                ),
                with_payload=models.PayloadSelectorExclude(exclude=[_NO_ANSWER]),
                score_threshold=least,
            )
        )
        found = ((_entry(point), float(point.score)) for point in response.points)
        return [Found(entry, cosine) for entry, cosine in found if entry is not None]

    async def count(self, conditions: Conditions, entry_ids: Sequence[str] = ()) -> int:
        """Exact count."""
        chosen = _filter(conditions, entry_ids)
        counted = await self._run(lambda: self._client.count(self._collection, count_filter=chosen, exact=True))
        return int(counted.count)

    async def delete(self, conditions: Conditions, entry_ids: Sequence[str] = ()) -> int:
        """Count, then delete."""
        count = await self.count(conditions, entry_ids)
        if count:
            selector = models.FilterSelector(filter=_filter(conditions, entry_ids))
            await self._run(lambda: self._client.delete(self._collection, selector, wait=True))
        return count

    async def touch(self, used: Mapping[str, tuple[int, float]]) -> None:
        """In one batch, without waiting for it to be visible."""
        known = await self._run(lambda: self._client.retrieve(self._collection, list(used), with_payload=False))
        operations: list[Any] = []
        for record in known:
            hits, at = used[str(record.id)]
            payload = models.SetPayload(payload={"hits": hits, "used": at}, points=[record.id])
            operations.append(models.SetPayloadOperation(set_payload=payload))
        if operations:
            await self._run(lambda: self._client.batch_update_points(self._collection, operations, wait=False))

    async def set_counts(self, entry_id: str, right_count: int, wrong_count: int) -> None:
        """Visible when it returns."""
        counts = {"right_count": right_count, "wrong_count": wrong_count}
        known = await self._run(lambda: self._client.retrieve(self._collection, [entry_id], with_payload=False))
        if known:
            await self._run(lambda: self._client.set_payload(self._collection, counts, points=[entry_id], wait=True))

    async def scroll(
        self, conditions: Conditions, limit: int, after: str = ""
    ) -> tuple[list[tuple[Entry, list[float]]], str]:
        """In the order of ids."""
        records, following = await self._scrolled(_filter(conditions), limit, after, True, True)
        entries = ((_entry(record), _vector(record.vector)) for record in records)
        return [(entry, vector) for entry, vector in entries if entry is not None], following

    async def total_bytes(self, conditions: Conditions) -> int:
        """Added up page by page: as many calls as thousands of entries, so not for every request.

        Entries of revisions that kept no size count for nothing until they expire.
        """
        total, after = 0.0, ""
        while True:
            records, after = await self._scrolled(_filter(conditions), _PAGE_POINTS, after, ["size"], False)
            total += sum(float((record.payload or {}).get("size", 0)) for record in records)
            if not after:
                return int(total)

    async def least_recently_used(self, limit: int, least_bytes: int = 0) -> list[str]:
        """Ordered by the index on ``used``."""
        if limit <= 0 and least_bytes <= 0:
            return []
        wanted, most = limit, 0
        while True:
            if least_bytes > 0:
                wanted = max(_PAGE_POINTS, wanted, 2 * most)
            records, _ = await self._run(
                lambda count=wanted: self._client.scroll(  # type: ignore[misc]  # mypy does not infer a default's type.
                    self._collection, limit=count, order_by=models.OrderBy(key="used"), with_payload=["size"]
                )
            )
            chosen, size = list[str](), 0.0
            for record in records:
                if len(chosen) >= limit and size >= least_bytes:
                    return chosen
                chosen.append(str(record.id))
                size += float((record.payload or {}).get("size", 0))
            if len(records) < wanted or (len(chosen) >= limit and size >= least_bytes):
                return chosen
            # A page ordered by use cannot be gone on from; a longer one is read instead.
            most = wanted

    async def flush(self) -> None:
        """The server flushes by itself."""

    async def _scrolled(
        self, chosen: models.Filter, limit: int, after: str, payload: bool | list[str], vectors: bool
    ) -> tuple[list[models.Record], str]:
        records, following = await self._run(
            lambda: self._client.scroll(
                self._collection,
                scroll_filter=chosen,
                limit=limit,
                offset=after or None,
                with_payload=payload,
                with_vectors=vectors,
            )
        )
        return records, "" if following is None else str(following)

    async def _prepare(self) -> None:
        if not await self._run(lambda: self._client.collection_exists(self._collection)):
            try:
                await self._run(self._create)
            except TenthError:
                # Another replica may have created it in this moment; if not, the next line says what is wrong.
                if not await self._run(lambda: self._client.collection_exists(self._collection)):
                    raise
        info = await self._run(lambda: self._client.get_collection(self._collection))
        stored = info.config.params.vectors
        size = stored.size if isinstance(stored, models.VectorParams) else 0
        if size != self._dimension:
            raise dimension_mismatch(f"collection {self._collection}", size, self._dimension)
        # Making an index that is there already changes nothing, whichever replica is first.
        for field in KEYWORD_FIELDS:
            if field not in info.payload_schema:
                schema = models.KeywordIndexParams(
                    type=models.KeywordIndexType.KEYWORD,
                    is_tenant=True if field == "tenant" else None,
                    prefix=True if field in PREFIX_FIELDS else None,
                )
                await self._index(field, schema)
        for field in NUMBER_FIELDS:
            if field not in info.payload_schema:
                await self._index(field, models.PayloadSchemaType.FLOAT)
        self._ready = True

    def _create(self) -> Awaitable[bool]:
        options = self._options
        scalar = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
        return self._client.create_collection(
            self._collection,
            vectors_config=models.VectorParams(size=self._dimension, distance=models.Distance.COSINE),
            quantization_config=models.ScalarQuantization(scalar=scalar) if options.quantized else None,
            replication_factor=options.replica_count,
            write_consistency_factor=options.write_replica_count,
        )

    async def _index(self, field: str, schema: models.KeywordIndexParams | models.PayloadSchemaType) -> None:
        await self._run(lambda: self._client.create_payload_index(self._collection, field, schema, wait=True))

    async def _run(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                for attempt in range(_ATTEMPTS):
                    try:
                        return await call()
                    except Exception as error:
                        if attempt + 1 == _ATTEMPTS or not _passing(error):
                            raise
                        await asyncio.sleep(_PAUSE_SECONDS * 2**attempt)
        except TimeoutError:
            raise store_unavailable(f"no answer within {self._timeout_seconds} s") from None
        except Exception as error:
            # The client raises httpx, gRPC, pydantic and its own errors; for callers all mean: no cache right now.
            raise store_unavailable(f"{type(error).__name__}: {error}") from error
        raise AssertionError("the last attempt returns or raises")


def _passing(error: Exception) -> bool:
    """True for what another attempt may not meet: no connection, or a server that is starting, full or moving."""
    if isinstance(error, grpc.RpcError):
        return isinstance(error, grpc.aio.AioRpcError) and error.code() == grpc.StatusCode.UNAVAILABLE
    if isinstance(error, UnexpectedResponse):
        return error.status_code in (429, 502, 503, 504)
    return isinstance(error, ResponseHandlingException | ResourceExhaustedResponse | ConnectionError)


def _entry(record: models.Record | models.ScoredPoint) -> Entry | None:
    try:
        return from_payload(str(record.id), record.payload or {})
    except (KeyError, ValueError, TypeError) as error:
        log.warning("point %s is none of this cache's and not used: %s", record.id, error)
        return None


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
    if condition.prefix:
        return models.FieldCondition(key=condition.field, match=models.MatchPrefix(prefix=condition.prefix))
    bounds = models.Range(gte=condition.at_least, gt=condition.above, lte=condition.at_most)
    return models.FieldCondition(key=condition.field, range=bounds)

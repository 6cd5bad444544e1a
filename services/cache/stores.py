"""Which vector store the settings choose. Each is imported only when it is chosen."""

from __future__ import annotations

from pathlib import Path

from services.cache.settings import CacheSettings
from services.cache.store import VectorStore


def make_store(settings: CacheSettings, data_dir: Path, dimension: int) -> VectorStore:
    """The store, not yet open."""
    timeout = settings.store_timeout_seconds
    if not settings.qdrant_url:
        from services.cache.qdrant_edge import QdrantEdgeStore

        return QdrantEdgeStore(data_dir / "cache", dimension, timeout)
    from qdrant_client import AsyncQdrantClient

    from services.cache.qdrant_server import QdrantServerStore, ServerOptions

    key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
    client = AsyncQdrantClient(
        url=settings.qdrant_url,
        api_key=key,
        prefer_grpc=settings.qdrant_prefer_grpc,
        timeout=max(1, round(timeout)),
        check_compatibility=False,
    )
    options = ServerOptions(
        settings.qdrant_replica_count, settings.qdrant_write_replica_count, settings.qdrant_quantized
    )
    return QdrantServerStore(client, settings.qdrant_collection, dimension, timeout, options)

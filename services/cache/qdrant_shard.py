"""Entries of the embedded store's first form, a writable shard of the engine: taken over once, then removed."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import qdrant_edge as edge

from services.cache.errors import dimension_mismatch
from services.cache.sqlite import EntryTable
from services.cache.store import from_payload

log = logging.getLogger("tenth.cache")
_PAGE_ROWS = 500


def take_over(folder: Path, table: EntryTable, dimension: int) -> None:
    """Copy what a shard in the folder holds into the table, and remove the shard; does nothing when there is none.

    Killed half-way it begins again, replacing what it copied. Raises STORE_DIMENSION_MISMATCH.
    """
    config = folder / "edge_config.json"
    if not config.exists():
        return
    shard = edge.EdgeShard.load(str(folder))
    try:
        offset, count = None, 0
        while True:
            request = edge.ScrollRequest(offset=offset, limit=_PAGE_ROWS, with_payload=True, with_vector=True)
            records, offset = shard.scroll(request)
            entries = []
            for record in records:
                vector = np.asarray(record.vector, np.float32)
                if len(vector) != dimension:
                    raise dimension_mismatch(str(folder), len(vector), dimension)
                entries.append((from_payload(str(record.id), record.payload or {}), vector))
            table.put(entries)
            count += len(entries)
            if offset is None:
                break
    finally:
        shard.close()
    log.info("%d entries of an earlier form were taken over", count)
    config.unlink()
    for name in ("segments", "temp_segments", "wal"):
        shutil.rmtree(folder / name, ignore_errors=True)

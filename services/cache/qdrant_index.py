"""The vector index of the embedded store: a shard of Qdrant's engine that is built once and only read afterwards.

The engine holds the GIL through its calls (making one of 100,000 vectors takes seconds), so it is built in a process
of its own, ``python -m services.cache.qdrant_index DATABASE FOLDER DIMENSION``, from the SQLite file, which another
process may read at any time. A folder is used only if it is complete: its list of files, with checksums, is written
last. The index knows a vector's sequence number and scope, nothing else.

It has no graph. Vectors of one byte a dimension are compared one after the other: 0.3 ms for 10,000 and 3 ms for
100,000 of 384 dimensions, all of the ten nearest found, whatever the data. HNSW (M 16, ef 128) took 0.2 and 0.6 ms,
but 30 times as long to build, and of vectors without structure it found 68 of 100 at 10,000.
"""

from __future__ import annotations

import array
import json
import os
import shutil
import sqlite3
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import qdrant_edge as edge

_FILES = "files.json"
_PAGE_ROWS = 500
_MOST_SHARE = 0.9
"""A scope with more of the index than this is searched without a filter, which costs a third more than comparing;
what is of another scope does not meet the conditions on its row."""


class IndexBroken(Exception):  # noqa: N818  (Named by what is wrong.)
    """The index cannot be used; what it was built from can."""


class VectorIndex:
    """An index that was built, open for searching from one thread at a time."""

    def __init__(self, folder: Path, *, check: bool) -> None:
        """Open; ``check`` compares the files with their checksums first. Raises IndexBroken."""
        try:
            noted = json.loads((folder / _FILES).read_text("utf-8"))
            if check and noted["files"] != _checksums(folder / "shard"):
                raise IndexBroken(f"{folder} is damaged")
            self.last_seq = int(noted["last_seq"])
            self.count = int(noted["count"])
            scope, count = noted["largest"]
            self._nearly_all = scope if count > _MOST_SHARE * self.count else None
            self._shard = edge.EdgeShard.load(str(folder / "shard"))
        except IndexBroken:
            raise
        except BaseException as error:
            raise _broken(folder, error) from error
        self.folder = folder

    def search(self, vector: Sequence[float], scopes: Sequence[str] | None, limit: int) -> list[tuple[int, float]]:
        """Sequence numbers of the nearest vectors of the scopes (None: of all) with cosines, best first.

        A few may be of other scopes. Cosines are those of int8 vectors, good to about 0.01. Raises IndexBroken.
        """
        chosen = None
        if scopes is not None and tuple(scopes) != (self._nearly_all,):
            match = edge.MatchValue(scopes[0]) if len(scopes) == 1 else edge.MatchAny(list(scopes))
            chosen = edge.Filter(must=[edge.FieldCondition("scope", match=match)])
        request = edge.SearchRequest(
            query=edge.Query.Nearest(list(vector)),
            limit=limit,
            filter=chosen,
            params=edge.SearchParams(quantization=edge.QuantizationSearchParams(rescore=False)),
            with_payload=False,
        )
        try:
            return [(int(point.id), float(point.score)) for point in self._shard.search(request)]
        except BaseException as error:
            raise _broken(self.folder, error) from error

    def close(self) -> None:
        """Let go of the files."""
        self._shard.close()


def build(database: Path, folder: Path, dimension: int) -> None:
    """Build the index of all rows with a scope into a new folder."""
    shard = folder / "shard"
    shard.mkdir(parents=True)
    made = edge.EdgeShard.create(str(shard), _config(dimension))
    made.update(edge.UpdateOperation.create_field_index("scope", edge.KeywordIndexParams()))
    connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    # One view of all rows, whatever is written in the meantime.
    connection.execute("BEGIN")
    last_seq = connection.execute("SELECT coalesce(max(seq), 0) FROM entries").fetchone()[0]
    rows = connection.execute("SELECT seq, scope, vector FROM entries WHERE scope != '' ORDER BY seq")
    largest = connection.execute(
        "SELECT scope, count(*) FROM entries WHERE scope != '' GROUP BY scope ORDER BY 2 DESC LIMIT 1"
    ).fetchone()
    count = 0
    while page := rows.fetchmany(_PAGE_ROWS):
        count += len(page)
        points = [edge.Point(seq, array.array("f", vector).tolist(), {"scope": scope}) for seq, scope, vector in page]
        made.update(edge.UpdateOperation.upsert_points(points))
    connection.close()
    made.flush()
    made.optimize()
    made.flush()
    made.close()
    # The engine rewrites its configuration when it first loads a shard; and this one is known to load.
    edge.EdgeShard.load(str(shard)).close()
    noted = {"last_seq": last_seq, "count": count, "largest": largest or ["", 0], "files": _checksums(shard)}
    part = folder / f"{_FILES}.part"
    part.write_text(json.dumps(noted), "utf-8")
    part.rename(folder / _FILES)


def remove(folder: Path) -> None:
    """Delete an index that no one uses."""
    shutil.rmtree(folder, ignore_errors=True)


def _config(dimension: int) -> edge.EdgeConfig:
    return edge.EdgeConfig(
        # Halves, on disk: candidates are compared exactly with the vectors of their rows, so these are read only to
        # build. What a search reads is one byte for each dimension.
        vectors=edge.EdgeVectorParams(
            size=dimension,
            distance=edge.Distance.Cosine,
            datatype=edge.VectorStorageDatatype.Float16,
            memory=edge.Memory.Cold,
        ),
        hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=10, max_indexing_threads=1),
        quantization_config=edge.ScalarQuantizationConfig(
            edge.ScalarType.Int8, quantile=0.99, memory=edge.Memory.Pinned
        ),
        optimizers=edge.EdgeOptimizersConfig(
            default_segment_number=1, indexing_threshold=1, max_segment_size=1_000_000_000
        ),
        max_search_threads=1,
        # Nothing is written to it after it is built.
        wal_enabled=False,
    )


def _checksums(folder: Path) -> dict[str, list[int]]:
    sums: dict[str, list[int]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = checksum = 0
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                size += len(block)
                checksum = zlib.crc32(block, checksum)
        sums[path.relative_to(folder).as_posix()] = [size, checksum]
    return sums


def _broken(folder: Path, error: BaseException) -> IndexBroken:
    # The engine panics with an exception of its own that is no Exception; the process's own signals are not caught.
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return IndexBroken(f"{folder}: {error}")
    raise error


def main() -> None:
    """Build as the command line says, behind whatever else runs on this machine."""
    _, database, folder, dimension = sys.argv
    os.nice(10)
    if sys.platform == "linux":
        import ctypes

        # End with the process that asked (PR_SET_PDEATHSIG): no one would use the index.
        ctypes.CDLL(None).prctl(1, 9)
    build(Path(database), Path(folder), int(dimension))


if __name__ == "__main__":
    main()

"""Files of the commands: standard input that can be read twice, and output that appears whole or not at all."""

from __future__ import annotations

import gzip
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

STANDARD = "-"
"""Standard input or output, as a file's name."""


@contextmanager
def spooled(path: str) -> Iterator[str]:
    """A path that can be read twice: standard input is put into a file first. Raises FileNotFoundError."""
    if path != STANDARD:
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} is no file")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="tenth-") as folder:
        copy = Path(folder) / "items.jsonl"
        with copy.open("wb") as file:
            for block in iter(lambda: sys.stdin.buffer.read(1 << 20), b""):
                file.write(block)
        yield str(copy)


@contextmanager
def whole(path: str) -> Iterator[IO[bytes]]:
    """A file to write that appears whole or not at all, readable by its owner alone; ``-``: standard output.

    One that ends in ``.gz`` is packed. Raises IsADirectoryError, FileNotFoundError.
    """
    if path == STANDARD:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a directory")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} is no directory")
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as raw:
            if target.suffix == ".gz":
                with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
                    yield packed  # type: ignore[misc]  # A GzipFile writes bytes.
            else:
                yield raw
            raw.flush()
            os.fsync(raw.fileno())
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

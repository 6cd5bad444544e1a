"""Vectors of the compressor's retrieval sets, made once and kept: ``python -m bench.compressor_vectors --data DIR``.

Written where ``services.compressor.fit --vectors`` reads them. Questions, chunks, and sentences with the title of their
chunk before them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.cache_vectors import FOLDER, KeptEncoder, batches
from services.cache.embedding import load_encoder
from services.compressor.datasets import READERS, Case, read
from services.compressor.documents import prepare
from services.compressor.fit import digest
from services.compressor.ranking import Floats
from services.compressor.sentences import Kind

EMBEDDER, ARTICLE_EMBEDDER = "multilingual-e5-small", "all-MiniLM-L6-v2"


def embed(encoder: KeptEncoder, name: str, cases: Sequence[Case], *, sentences: bool) -> dict[bytes, Floats]:
    """Vectors by digest of text; kept in a file under this name, also what was made before an interruption."""
    wanted = set(_texts(cases))
    encoder.load(name)
    try:
        if sentences:
            wanted |= set(_sentences(cases))
        for block in batches(wanted, f"embedding {name}"):
            encoder.encode(block)
    finally:
        encoder.save(name)
    texts = sorted(wanted)
    return {digest(text): vector for text, vector in zip(texts, encoder.encode(texts), strict=True)} if texts else {}


def _texts(cases: Sequence[Case]) -> Iterator[str]:
    for case in cases:
        yield case.question
        yield from case.earlier[:1]
        yield from case.chunks


def _sentences(cases: Sequence[Case]) -> Iterator[str]:
    for text in sorted({chunk for case in cases for chunk in case.chunks}):
        document = prepare(text, len)
        for place, unit in enumerate(document.units):
            if unit.kind is not Kind.HEADING:
                yield document.embedded_text(place)


def main() -> None:
    """Embed every set that is there."""
    parser = argparse.ArgumentParser(prog="python -m bench.compressor_vectors", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the layout of the evaluation data")
    parser.add_argument("--models", type=Path, default=Path(".models"), help="folder of model folders")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    encoder = KeptEncoder(load_encoder(arguments.models, EMBEDDER), arguments.models / EMBEDDER, arguments.out)
    for name in READERS:
        if (arguments.data / "compressor" / f"{name}.jsonl.gz").is_file():
            found = embed(encoder, f"compressor_{name}", read(arguments.data, name, arguments.seed), sentences=True)
            print(f"{name}: {len(found)} vectors")


if __name__ == "__main__":
    main()

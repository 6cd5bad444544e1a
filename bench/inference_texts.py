"""The texts whose perplexity is measured: read from the evaluation data at run time, never kept."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Text:
    """Where a text stands."""

    file: str
    """Under the data folder, without its ending."""
    field_said: str


TEXTS: Mapping[str, Text] = {
    "": Text("compressor/nq_gold_passages", "gold passages, encyclopedia prose"),
    "held_out": Text("workload/arena_hard_500", "answers of gpt-4-0613, chat and code"),
}
"""By what stands behind the names of its figures. No recipe of this project was calibrated on the second file."""
_ANSWERS_OF = "gpt-4-0613"


def read_text(data: Path, text: Text) -> str:
    """The rows of a file as one text, each once, in their order. Raises OSError when it is absent, ValueError when it
    holds nothing."""
    with gzip.open(data / f"{text.file}.jsonl.gz", "rt", encoding="utf-8") as lines:
        pieces = [_piece(json.loads(line)) for line in lines]
    kept = list(dict.fromkeys(piece for piece in pieces if piece))
    if not kept:
        raise ValueError("no text in it")
    return "\n\n".join(kept)


def _piece(row: Mapping[str, Any]) -> str:
    if "gold_text" in row:
        return str(row["gold_text"])
    return str(row["answers"].get(_ANSWERS_OF, {}).get("text", ""))

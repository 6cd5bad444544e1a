"""What every encoder reads of a sentence-transformers folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GRAPHS = {"int8": Path("onnx") / "model_int8.onnx", "fp32": Path("onnx") / "model.onnx"}
"""Where the exported encoder lies in a model folder, by the precision that it multiplies in."""
KOREAN_PROBE = "결제 취소는 어떻게 하나요? 왜 값이 안 맞는지 얇은 책을 읽고 싶어요."
"""Syllables, common and rare, that a tokenizer must keep."""


def max_tokens(folder: Path) -> int:
    """Most tokens that the model was made to read."""
    limit = int(_read(folder / "config.json")["max_position_embeddings"])
    own = folder / "sentence_bert_config.json"
    return min(limit, int(_read(own).get("max_seq_length") or limit)) if own.exists() else limit


def prompt(folder: Path) -> str:
    """What the model wants before every text: the folder's default prompt, such as "query: ", or nothing."""
    own = folder / "config_sentence_transformers.json"
    content = _read(own) if own.exists() else {}
    name = content.get("default_prompt_name")
    return str(content["prompts"][name]) if name else ""


def loses_korean(tokens: Sequence[str]) -> bool:
    """True when Hangul becomes unknown tokens, or syllables come apart into conjoining jamo, in ``KOREAN_PROBE``.

    all-MiniLM-L6-v2 does both, which makes different Korean sentences look alike.
    """
    unknown = any(token in ("[UNK]", "<unk>") for token in tokens)
    jamo = any("\u1100" <= letter <= "\u11ff" for token in tokens for letter in token)
    return unknown or jamo


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content

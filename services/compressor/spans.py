"""A span of a text and its kind."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """What a protected span holds."""

    CODE = "code"
    JSON = "json"
    SQL = "sql"
    TABLE = "table"
    URL = "url"
    EMAIL = "email"
    PATH = "path"
    IDENTIFIER = "identifier"
    QUOTATION = "quotation"
    NUMBER = "number"
    NEGATION = "negation"


SOFT = frozenset({Kind.NUMBER, Kind.NEGATION})
HARD = frozenset(Kind) - SOFT


class Span(NamedTuple):
    """``text[start:end]``; a tuple, since a long text has many."""

    start: int
    end: int
    kind: Kind

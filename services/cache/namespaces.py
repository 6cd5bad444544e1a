"""The rules of each namespace: how sure a hit must be, how long answers live, who may share them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Mode(StrEnum):
    """How answers are found by meaning."""

    STRICT = "strict"
    """The same question in other words."""
    FAQ = "faq"
    """A curated set of answers: questions with the same intent share one."""
    OFF = "off"
    """Exact hits only."""


@dataclass(frozen=True, slots=True)
class NamespacePolicy:
    """What holds in one namespace of a tenant."""

    mode: Mode = Mode.STRICT
    max_wrong_hits_per_thousand: float = 5.0
    """Most wrong semantic hits per thousand lookups that the threshold is chosen for, above 0 to 1,000."""
    ttl_seconds: float = 3600.0
    sharing_user_count: int = 2
    """Independent users that must have got the same answer before others do; 1: shared at once. Requests without a
    user are the tenant's own and are shared at once."""
    writes_per_minute: float = 6000.0
    """Answers stored per minute, all users of the namespace together."""
    user_writes_per_minute: float = 60.0
    """Answers stored per minute for one user."""
    judge_model: str = ""
    """Catalogue id of the model that judges near misses, in the background; empty: none."""

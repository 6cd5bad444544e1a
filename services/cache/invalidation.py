"""Which entries an invalidation means: conditions for the store, and tests for what it has no condition for. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tenth.cache.v1 import cache_pb2

from mesh.errors import invalid_argument
from services.cache.messages import tag_keywords
from services.cache.store import HEAD_LETTERS, Condition, Conditions, Entry, folded, question_of


@dataclass(frozen=True, slots=True)
class Selection:
    """All conditions must hold, and the test where there is one."""

    conditions: Conditions
    matching: Callable[[Entry], bool] | None = None


def selection(tenant_id: str, request: cache_pb2.InvalidateEntriesRequest) -> Selection:
    """What a request selects, ids apart, always within a tenant; the first condition is the tenant's.

    Raises INVALID_ARGUMENT for a beginning that is nothing but white space: every question begins so.
    """
    conditions = [Condition("tenant", (tenant_id,))]
    if request.namespace:
        conditions.append(Condition("namespace", (request.namespace,)))
    if request.document_id:
        conditions.append(Condition("document_ids", (request.document_id,)))
    conditions.extend(Condition("tags", (keyword,)) for keyword in tag_keywords(request.tags))
    beginning = folded(request.question_prefix)
    if request.question_prefix and not beginning:
        raise invalid_argument("holds no letter", field="question_prefix")
    if len(beginning) >= HEAD_LETTERS:
        # The index narrows it down to a few; the rest of a long beginning is compared below.
        conditions.append(Condition("question_head", (beginning[:HEAD_LETTERS],)))
    namespaces = request.namespace_prefix
    if not (beginning or namespaces):
        return Selection(tuple(conditions))

    def matching(entry: Entry) -> bool:
        return entry.namespace.startswith(namespaces) and question_of(entry).startswith(beginning)

    return Selection(tuple(conditions), matching)

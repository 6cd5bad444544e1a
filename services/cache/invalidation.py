"""Which entries an invalidation means, as conditions for the store. Pure."""

from __future__ import annotations

from tenth.cache.v1 import cache_pb2

from mesh.errors import invalid_argument
from services.cache.messages import tag_keywords
from services.cache.store import Condition, Conditions, folded, question_begins


def selection(tenant_id: str, request: cache_pb2.InvalidateEntriesRequest) -> Conditions:
    """What a request selects, ids apart, always within a tenant; the first condition is the tenant's.

    Raises INVALID_ARGUMENT for a beginning that is nothing but white space: every question begins so.
    """
    conditions = [Condition("tenant", (tenant_id,))]
    if request.namespace:
        conditions.append(Condition("namespace", (request.namespace,)))
    if request.namespace_prefix:
        conditions.append(Condition("namespace", prefix=request.namespace_prefix))
    if request.document_id:
        conditions.append(Condition("document_ids", (request.document_id,)))
    conditions.extend(Condition("tags", (keyword,)) for keyword in tag_keywords(request.tags))
    if request.question_prefix:
        if not folded(request.question_prefix):
            raise invalid_argument("holds no letter", field="question_prefix")
        conditions.append(question_begins(request.question_prefix))
    return tuple(conditions)

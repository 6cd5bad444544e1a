"""What is remembered of decisions, for feedback and later learning: in memory, bounded, oldest forgotten first.

Kept are features, never text. Entries belong to a tenant; another tenant's request_id finds nothing.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, replace

from services.router.catalog import Tier
from services.router.features import Features


@dataclass(frozen=True, slots=True)
class Outcome:
    """One decision, and how it turned out once somebody said so."""

    user_id: str = ""
    model: str = ""
    complexity: float = 0.0
    features: Features | None = None
    label: Tier | None = None
    """What the `llm` strategy's model said; asked only once per request."""
    classifier_attempts: int = 0
    score: float | None = None
    comment: str = ""


class OutcomeLog:
    """Outcomes by tenant and request, and the counts of decisions."""

    def __init__(self, capacity: int) -> None:
        """Remember at most ``capacity`` requests; 0 remembers none."""
        self._capacity = capacity
        self._entries: OrderedDict[tuple[str, str], Outcome] = OrderedDict()
        self.decision_counts: Counter[str] = Counter()
        self.unparsable_count = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, tenant_id: str, request_id: str) -> Outcome:
        """What is known of a request; an empty outcome when nothing is."""
        return self._entries.get((tenant_id, request_id), Outcome())

    def put(self, tenant_id: str, request_id: str, outcome: Outcome) -> None:
        """Remember a request anew or in its place."""
        self._entries[tenant_id, request_id] = outcome
        while len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def report(self, tenant_id: str, request_id: str, score: float, comment: str) -> None:
        """Note feedback, also on a request that another replica decided. The last report of a request stands."""
        self.put(tenant_id, request_id, replace(self.get(tenant_id, request_id), score=score, comment=comment))

    def delete_user(self, tenant_id: str, user_id: str) -> int:
        """Forget a user's requests; how many there were."""
        keys = [key for key, outcome in self._entries.items() if key[0] == tenant_id and outcome.user_id == user_id]
        for key in keys:
            del self._entries[key]
        return len(keys)

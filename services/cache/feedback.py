"""What reports say about semantic hits: which namespaces broke their bound, which entries err. Pure.

A state machine over small JSON events: each change is one event, ``Evidence.apply`` replays them after a restart, and
``Evidence.snapshot`` writes the whole state as events again.

A report may be about three kinds of served answers, and only one kind speaks for the namespace's bound:

- ``semantic``: this replica served the stored answer to a question in other words. It counts against the bound.
- ``elsewhere``: the same, served by another replica. It counts for the error ratios, which all replicas share, but not
  against the bound: the lookups that it would have to be compared with are in the other replica's books.
- ``exact``: the answer was wrong for its own question. The model erred, not the cache.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import unquote

CONFIDENCE = 0.95
LEAST_WRONG_REPORTS = 3
"""Fewer wrong reports suspend nothing, however few lookups there were."""
NAMESPACE_PRIOR_REPORTS = 50.0
"""Pseudo-reports at the expected error that a namespace's error ratio is shrunk by."""
ENTRY_PRIOR_REPORTS = 5.0
"""Pseudo-reports at the namespace's ratio that an entry's ratio is shrunk by."""
LEAST_FACTOR, MOST_FACTOR = 0.25, 20.0

Event = dict[str, Any]
"""JSON values alone."""


class Served(StrEnum):
    """How the answer that a report is about was served."""

    EXACT = "exact"
    SEMANTIC = "semantic"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True)
class ReportName:
    """What a report's id says. ``served`` is None and ``namespace`` empty where it does not."""

    served: Served | None
    namespace: str
    report_id: str


@dataclass(frozen=True, slots=True)
class Report:
    """One verdict on a served answer. ``namespace`` is empty when nobody knows it."""

    tenant: str
    namespace: str
    entry_id: str
    served: Served
    correct: bool
    report: str = ""
    """Digest of the report's id; empty: it counts whenever it comes."""
    retired: bool = False
    """Its entry was deleted because of it."""
    question: str = ""
    """Digest of the question it was served for; the question itself is not kept."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of a report that came before."""

    correct: bool
    retired: bool


@dataclass(slots=True)
class Standing:
    """The evidence of one namespace."""

    lookups: int = 0
    """Semantic lookups on this replica."""
    hits: int = 0
    right: int = 0
    wrong: int = 0
    wrong_here: int = 0
    """Wrong reports of hits that this replica served."""
    suspended: str = ""
    """Why it serves exact hits only; empty when it does not."""


@dataclass(slots=True)
class EntryCounts:
    """The reports of one entry; ``semantic_*`` are those of semantic hits."""

    namespace: str = ""
    right: int = 0
    wrong: int = 0
    semantic_right: int = 0
    semantic_wrong: int = 0


@dataclass(slots=True)
class _Tenant:
    namespaces: OrderedDict[str, Standing] = field(default_factory=OrderedDict)
    entries: OrderedDict[str, EntryCounts] = field(default_factory=OrderedDict)
    seen: OrderedDict[str, Seen] = field(default_factory=OrderedDict)


class Evidence:
    """All evidence of one replica, bounded per tenant so that none can push out another's. One event loop."""

    def __init__(
        self, expected_error: float = 0.01, *, max_namespaces: int = 1000, max_entries: int = 10_000,
        max_reports: int = 10_000,
    ) -> None:  # fmt: skip
        """``expected_error``: the share of semantic hits, 0..1, that the shipped calibration expects to be wrong."""
        if not 0 < expected_error < 1:
            raise ValueError("expected_error must be between 0 and 1")
        self._expected_error = expected_error
        self._max_namespaces = max_namespaces
        self._max_entries = max_entries
        self._max_reports = max_reports
        self._tenants: dict[str, _Tenant] = {}
        self._looked: dict[tuple[str, str], tuple[int, int]] = {}

    def is_suspended(self, tenant: str, namespace: str) -> str:
        """Why a namespace serves exact hits only; empty when it serves by meaning."""
        known = self._tenants.get(tenant)
        standing = known.namespaces.get(namespace) if known is not None else None
        return standing.suspended if standing is not None else ""

    def error_factor(self, tenant: str, namespace: str, entry_id: str) -> float:
        """What to multiply the calibrated probability of being wrong by, 0.25..20; 1 without any report.

        Empirical Bayes in two steps: the namespace's share of wrong among reported semantic hits is shrunk to the
        expected error, the entry's own to the namespace's. Rises with wrong reports, falls with right ones.
        """
        known = self._tenants.get(tenant)
        if known is None:
            return 1.0
        standing = known.namespaces.get(namespace, _NO_STANDING)
        reports = standing.right + standing.wrong
        ratio = (standing.wrong + NAMESPACE_PRIOR_REPORTS * self._expected_error) / (reports + NAMESPACE_PRIOR_REPORTS)
        own = known.entries.get(entry_id)
        if own is not None:
            reports = own.semantic_right + own.semantic_wrong
            ratio = (own.semantic_wrong + ENTRY_PRIOR_REPORTS * ratio) / (reports + ENTRY_PRIOR_REPORTS)
        return min(MOST_FACTOR, max(LEAST_FACTOR, ratio / self._expected_error))

    def standing(self, tenant: str, namespace: str) -> Standing:
        """The evidence of a namespace, to read."""
        known = self._tenants.get(tenant)
        return known.namespaces.get(namespace, Standing()) if known is not None else Standing()

    def namespaces(self, tenant: str) -> tuple[str, ...]:
        """The namespaces of a tenant that there is any evidence of."""
        known = self._tenants.get(tenant)
        return tuple(known.namespaces) if known is not None else ()

    def entry_counts(self, tenant: str, entry_id: str) -> EntryCounts:
        """The reports of an entry, to read."""
        known = self._tenants.get(tenant)
        return known.entries.get(entry_id, EntryCounts()) if known is not None else EntryCounts()

    def seen(self, tenant: str, report: str) -> Seen | None:
        """What became of the report with this digest, if it came before."""
        known = self._tenants.get(tenant)
        return known.seen.get(report) if known is not None and report else None

    def looked(self, tenant: str, namespace: str, hit: bool) -> None:
        """A lookup went through the semantic stage. Written down later, by ``take_looked``."""
        standing = self._standing(tenant, namespace)
        standing.lookups += 1
        standing.hits += hit
        lookups, hits = self._looked.get((tenant, namespace), (0, 0))
        self._looked[tenant, namespace] = (lookups + 1, hits + hit)

    def take_looked(self) -> list[Event]:
        """The lookups since the last call, to write down; they count already.

        What is lost with a killed process makes the evidence stricter, never laxer.
        """
        looked, self._looked = self._looked, {}
        return [
            {"kind": "looked", "tenant": tenant, "namespace": namespace, "lookups": lookups, "hits": hits}
            for (tenant, namespace), (lookups, hits) in looked.items()
        ]

    def report(self, report: Report, max_wrong_hits_per_thousand: float) -> list[Event]:
        """Count a report, and suspend its namespace if that breaks the bound. Returns the events to write down.

        Empty when the report was counted before.
        """
        if self.seen(report.tenant, report.report) is not None:
            return []
        event: Event = {
            "kind": "report",
            "tenant": report.tenant,
            "namespace": report.namespace,
            "entry": report.entry_id,
            "served": report.served.value,
            "correct": report.correct,
            "report": report.report,
            "retired": report.retired,
            "question": report.question,
        }
        self.apply(event)
        events = [event]
        if report.namespace and not report.correct and report.served is Served.SEMANTIC:
            standing = self._standing(report.tenant, report.namespace)
            reason = broken_bound(standing.wrong_here, standing.lookups, max_wrong_hits_per_thousand)
            if reason and not standing.suspended:
                event = {"kind": "suspended", "tenant": report.tenant, "namespace": report.namespace, "reason": reason}
                self.apply(event)
                events.append(event)
        return events

    def restore(self, tenant: str, namespace: str) -> list[Event]:
        """End a suspension; the evidence of the namespace and its entries starts anew. Returns the events."""
        if tenant not in self._tenants or namespace not in self._tenants[tenant].namespaces:
            return []
        event: Event = {"kind": "restored", "tenant": tenant, "namespace": namespace}
        self.apply(event)
        return [event]

    def apply(self, event: Mapping[str, Any]) -> None:
        """Replay one event. Raises KeyError, TypeError or ValueError when it is none."""
        kind, tenant = event["kind"], str(event["tenant"])
        if kind == "looked":
            standing = self._standing(tenant, str(event["namespace"]))
            standing.lookups += int(event["lookups"])
            standing.hits += int(event["hits"])
        elif kind == "report":
            self._count(tenant, event)
        elif kind == "suspended":
            self._standing(tenant, str(event["namespace"])).suspended = str(event["reason"])
        elif kind == "restored":
            self._forget(tenant, str(event["namespace"]))
        elif kind == "namespace":
            counts = {name: int(event[name]) for name in ("lookups", "hits", "right", "wrong", "wrong_here")}
            self._tenant(tenant).namespaces[str(event["namespace"])] = Standing(
                **counts, suspended=str(event["suspended"])
            )
        elif kind == "entry":
            counts = {name: int(event[name]) for name in ("right", "wrong", "semantic_right", "semantic_wrong")}
            self._tenant(tenant).entries[str(event["entry"])] = EntryCounts(str(event["namespace"]), **counts)
        elif kind == "seen":
            seen = Seen(bool(event["correct"]), bool(event["retired"]))
            self._tenant(tenant).seen[str(event["report"])] = seen
        else:
            raise ValueError(f"no event is a {kind!r}")

    def snapshot(self) -> Iterator[Event]:
        """The whole state as events. Lookups not yet taken are part of it: take them before."""
        for tenant, known in self._tenants.items():
            for namespace, standing in known.namespaces.items():
                yield {
                    "kind": "namespace", "tenant": tenant, "namespace": namespace, "lookups": standing.lookups,
                    "hits": standing.hits, "right": standing.right, "wrong": standing.wrong,
                    "wrong_here": standing.wrong_here, "suspended": standing.suspended,
                }  # fmt: skip
            for entry_id, own in known.entries.items():
                yield {
                    "kind": "entry", "tenant": tenant, "entry": entry_id, "namespace": own.namespace,
                    "right": own.right, "wrong": own.wrong, "semantic_right": own.semantic_right,
                    "semantic_wrong": own.semantic_wrong,
                }  # fmt: skip
            for report, seen in known.seen.items():
                yield {
                    "kind": "seen", "tenant": tenant, "report": report, "correct": seen.correct,
                    "retired": seen.retired,
                }  # fmt: skip

    def _count(self, tenant: str, event: Mapping[str, Any]) -> None:
        known = self._tenant(tenant)
        served, correct = Served(event["served"]), bool(event["correct"])
        namespace, report, entry_id = str(event["namespace"]), str(event["report"]), str(event["entry"])
        if report:
            known.seen[report] = Seen(correct, bool(event["retired"]))
            _bound(known.seen, self._max_reports)
        own = known.entries.pop(entry_id, None) or EntryCounts()
        known.entries[entry_id] = own  # The entry reported longest ago goes first.
        _bound(known.entries, self._max_entries)
        own.namespace = namespace or own.namespace
        own.right += correct
        own.wrong += not correct
        if served is Served.EXACT:
            return
        own.semantic_right += correct
        own.semantic_wrong += not correct
        if namespace:
            standing = self._standing(tenant, namespace)
            standing.right += correct
            standing.wrong += not correct
            standing.wrong_here += served is Served.SEMANTIC and not correct

    def _forget(self, tenant: str, namespace: str) -> None:
        known = self._tenant(tenant)
        known.namespaces.pop(namespace, None)
        self._looked.pop((tenant, namespace), None)
        for entry_id in [entry_id for entry_id, own in known.entries.items() if own.namespace == namespace]:
            del known.entries[entry_id]

    def _tenant(self, tenant: str) -> _Tenant:
        return self._tenants.setdefault(tenant, _Tenant())

    def _standing(self, tenant: str, namespace: str) -> Standing:
        known = self._tenant(tenant).namespaces
        standing = known.get(namespace)
        if standing is None:
            if len(known) >= self._max_namespaces:
                # Callers name namespaces as they like: those without a report go first, a suspended one last.
                victim = min(known, key=lambda name: (bool(known[name].suspended), known[name].wrong > 0))
                self._forget(tenant, victim)
            standing = known[namespace] = Standing()
        return standing


_NO_STANDING = Standing()


def parse_report_id(text: str) -> ReportName:
    """Take a report's id apart: ``KIND:ID`` or ``KIND@NAMESPACE:ID``, with the namespace percent-encoded.

    KIND is "semantic", "exact" or "elsewhere". Whoever served the answer knows how it was found and where it was kept;
    the entry itself may be gone by now. Any other text is an id alone.
    """
    head, colon, report_id = text.partition(":")
    kind, _, namespace = head.partition("@")
    if not colon or kind not in tuple(Served):
        return ReportName(None, "", text)
    return ReportName(Served(kind), unquote(namespace), report_id)


def digest(*parts: str) -> str:
    """Hex SHA-256 of some texts, to remember that they were seen and not what they say."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        whole.update(b"%d:" % len(data) + data)
    return whole.hexdigest()


def broken_bound(wrong: int, lookups: int, max_wrong_hits_per_thousand: float) -> str:
    """Why a namespace has broken its bound, in words; empty when it has not.

    Broken: at least three wrong reports, and even the lower end of the exact one-sided 95% confidence interval of the
    rate of wrong hits is above the bound.
    """
    if wrong < LEAST_WRONG_REPORTS:
        return ""
    lookups = max(lookups, wrong)  # Lookups of the last moments before a kill are not in the books.
    least = lower_bound(wrong, lookups) * 1000
    if least <= max_wrong_hits_per_thousand:
        return ""
    return (
        f"{wrong} of {lookups} lookups by meaning were reported wrong: at least {least:.3g} per 1,000 "
        f"({CONFIDENCE:.0%} confidence), the bound is {max_wrong_hits_per_thousand:g}"
    )


def lower_bound(count: int, trials: int) -> float:
    """The lower end of the exact one-sided 95% confidence interval of a rate, 0..1 (Clopper and Pearson, 1934)."""
    if count <= 0:
        return 0.0
    low, high = 0.0, count / trials
    for _ in range(60):
        middle = (low + high) / 2
        if binomial_tail(count, trials, middle) < 1 - CONFIDENCE:
            low = middle
        else:
            high = middle
    return low


def binomial_tail(least: int, trials: int, rate: float) -> float:
    """The chance of at least ``least`` successes in ``trials`` at a rate of 0..1, by the exact sum."""
    if least <= 0 or rate >= 1:
        return 1.0 if least <= trials else 0.0
    if least > trials or rate <= 0:
        return 0.0
    odds = rate / (1 - rate)
    if least > trials * rate:
        # Above the mean the terms fall from the first on.
        term = total = _binomial(least, trials, rate)
        for count in range(least, trials):
            term *= odds * (trials - count) / (count + 1)
            total += term
            if term < total * 1e-17:
                break
        return min(1.0, total)
    term = total = _binomial(least - 1, trials, rate)
    for count in range(least - 1, 0, -1):
        term *= count / (odds * (trials - count + 1))
        total += term
        if term < total * 1e-17:
            break
    return max(0.0, 1.0 - total)


def _binomial(count: int, trials: int, rate: float) -> float:
    log_choose = math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
    return math.exp(log_choose + count * math.log(rate) + (trials - count) * math.log1p(-rate))


def _bound(memory: OrderedDict[str, Any], most: int) -> None:
    while len(memory) > most:
        memory.popitem(last=False)

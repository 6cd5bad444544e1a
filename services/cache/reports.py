"""Reports on served answers: a wrong one is retired at once, and every one is evidence, kept on disk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from opentelemetry.metrics import Meter

from services.cache.aliases import aliases_of_entries, source_of
from services.cache.answers import AnswerCache
from services.cache.feedback import Event, Evidence, Report, Seen, Served, Standing, digest, parse_report_id
from services.cache.feedback_journal import FeedbackJournal
from services.cache.keys import canonical_text
from services.cache.namespaces import NamespacePolicy
from services.cache.store import Condition, Entry

log = logging.getLogger("tenth.cache.feedback")

Policies = Callable[[str, str], NamespacePolicy]
"""The rules in force by tenant and namespace."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a report did. ``suspended`` says why its namespace serves exact hits only; empty when it does not."""

    retired: bool
    suspended: str


@asynccontextmanager
async def keeping_reports(
    folder: Path, evidence: Evidence, answers: AnswerCache, policies: Policies, flush_seconds: float, meter: Meter
) -> AsyncIterator[Reports]:
    """Reports; fills the evidence with what was left in a folder and writes it down while open. Raises UNAVAILABLE."""
    journal = FeedbackJournal(folder, evidence)
    await journal.open()
    keeper = asyncio.create_task(journal.flush_for_ever(flush_seconds))
    try:
        yield Reports(answers, evidence, journal, policies, meter)
    finally:
        keeper.cancel()
        await journal.close()


class Reports:
    """Takes reports in and keeps the evidence."""

    def __init__(
        self, answers: AnswerCache, evidence: Evidence, journal: FeedbackJournal, policies: Policies, meter: Meter
    ) -> None:
        self.evidence = evidence
        self._answers = answers
        self._journal = journal
        self.policies = policies
        self._reports = meter.create_counter(
            "tenth.cache.reports", unit="{report}", description="Reports on served answers, each counted once"
        )
        self._suspensions = meter.create_counter(
            "tenth.cache.suspensions", unit="{namespace}", description="Namespaces that broke their bound"
        )

    async def take(self, tenant: str, entry_id: str, correct: bool, question: str, report_id: str) -> Outcome:
        """One report. Raises UNAVAILABLE when the store or the disk is: report again, under the same id.

        ``report_id`` as ``parse_report_id`` reads it. Without a kind in it, a report whose ``question`` is the entry's
        own is about an exact hit, and any other about a semantic one.
        """
        name = parse_report_id(report_id)
        entry = await self._answers.entry(entry_id, tenant)
        namespace = entry.namespace if entry is not None else name.namespace
        namespace = namespace or self.evidence.entry_counts(tenant, entry_id).namespace
        report = digest("report", name.report_id) if name.report_id else ""
        before = self.evidence.seen(tenant, report)
        if before is not None:
            retired = await self._again(tenant, entry_id, correct, before)
            await self._journal.flush()
            return Outcome(retired, self.evidence.is_suspended(tenant, namespace))
        # First the deletion: whatever happens next, this answer is served no more.
        retired = not correct and await self._retire(tenant, entry_id)
        served = _served(entry, name.served, question)
        taken = Report(
            tenant, namespace, entry_id, served, correct, report, retired,
            digest("question", question) if question else "",
        )  # fmt: skip
        bound = self.policies(tenant, namespace).max_wrong_hits_per_thousand
        events = self.evidence.report(taken, bound)
        self._say(events, served, correct)
        if entry is not None and correct:
            counts = self.evidence.entry_counts(tenant, entry_id)
            await self._answers.set_counts(entry, counts.right, counts.wrong)
        await self._journal.append(events)
        return Outcome(retired, self.evidence.is_suspended(tenant, namespace))

    async def restore(self, tenant: str, namespace: str) -> Standing:
        """A person ends a suspension; the evidence begins anew. Raises UNAVAILABLE when that cannot be kept."""
        suspended = self.evidence.is_suspended(tenant, namespace)
        await self._journal.append(self.evidence.restore(tenant, namespace))
        if suspended:
            log.warning("namespace %r of tenant %s serves by meaning again", namespace, tenant)
        return replace(self.evidence.standing(tenant, namespace))

    async def _again(self, tenant: str, entry_id: str, correct: bool, before: Seen) -> bool:
        """A report that was counted before. Who changes their mind from right to wrong is heard all the same."""
        if not correct and before.correct:
            return await self._retire(tenant, entry_id)
        return before.retired and not correct

    async def _retire(self, tenant: str, entry_id: str) -> bool:
        own = Condition("tenant", (tenant,))
        count = await self._answers.delete((own,), [entry_id], False)
        # The same answer under other questions.
        await self._answers.delete((own, aliases_of_entries([entry_id])), (), False)
        return count > 0

    def _say(self, events: list[Event], served: Served, correct: bool) -> None:
        for event in events:
            if event["kind"] == "report":
                self._reports.add(1, {"tenth.cache.kind": served.value, "tenth.cache.correct": correct})
            elif event["kind"] == "suspended":
                self._suspensions.add(1)
                log.warning(
                    "namespace %r of tenant %s serves exact hits only: %s",
                    event["namespace"], event["tenant"], event["reason"],
                )  # fmt: skip


def _served(entry: Entry | None, said: Served | None, question: str) -> Served:
    if entry is not None and source_of(entry.tags) and said is not Served.ELSEWHERE:
        return Served.SEMANTIC  # Whoever hits an alias gets what was decided by meaning, if by a judge.
    if said is not None:
        return said
    if entry is not None and question and canonical_text(question) in (entry.turn, entry.question):
        return Served.EXACT
    return Served.SEMANTIC

"""The RPCs of learning from traffic: feedback, completions, the outcome log, replays and the report."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tenth.router.v1 import router_pb2, router_pb2_grpc

from mesh.auth import current_identity
from mesh.catalog import CatalogError
from mesh.errors import Code, TenthError, invalid_argument, required
from services.router import outcome_messages as messages
from services.router import replay, report
from services.router.catalog import Catalog
from services.router.decision import Strategy
from services.router.errors import Reason
from services.router.health import Health
from services.router.outcomes import RequestMemory
from services.router.report_messages import replayed_message, report_message
from services.router.sqlite import OutcomeLog

_MAX_YAML_CHARACTERS = 4_000_000


@dataclass(frozen=True, slots=True)
class ReplayPolicy:
    """Under what recorded requests are decided again. ``None`` and empty keep what is loaded, or each outcome's own."""

    catalog: Catalog
    rules_yaml: str = ""
    strategy: Strategy | None = None
    quality_target: float | None = None


class Replayer(Protocol):
    """Makes a policy for replays."""

    def __call__(self, policy: ReplayPolicy) -> replay.DecideAgain:
        """The policy. Raises CatalogError when the rules are wrong."""
        ...


@dataclass(frozen=True, slots=True)
class Training:
    """What the loaded heads know of their training."""

    heads_version: str = ""
    feature_quantiles: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """The 11 deciles of each feature."""


@dataclass(frozen=True, slots=True)
class Learning:
    """What learning needs. ``catalog`` and ``training`` say what is loaded now."""

    log: OutcomeLog
    memory: RequestMemory
    catalog: Callable[[], Catalog]
    parse_catalog: Callable[[str, str], Catalog]
    """Of a file's text and name; raises CatalogError."""
    replayer: Replayer
    training: Callable[[], Training]
    report_entries: int
    """Most outcomes that a report reads, the newest ones."""


class LearningServicer(router_pb2_grpc.RouterServiceServicer):
    """The part of the router's service that learns. RouterServicer extends it."""

    def __init__(self, learning: Learning, health: Health) -> None:
        """Keep and read outcomes by way of ``learning``; tell ``health`` which models answer and which fail."""
        self._learning = learning
        self._health = health
        self._log = learning.log
        self._memory = learning.memory

    async def RecordCompletion(
        self, request: router_pb2.RecordCompletionRequest, context: Any
    ) -> router_pb2.RecordCompletionResponse:
        """Note what became of a request."""
        identity = current_identity()
        completion = messages.completion_of(request)
        self._log.completed(identity.tenant_id, request.request_id, identity.user_id, completion)
        catalog = self._learning.catalog()
        for failed in completion.failed_models:
            if catalog.model(failed) is not None:
                self._health.note_failure(failed)
        if catalog.model(completion.model) is not None:
            self._health.note_success(completion.model)
        return router_pb2.RecordCompletionResponse()

    async def ReportOutcome(
        self, request: router_pb2.ReportOutcomeRequest, context: Any
    ) -> router_pb2.ReportOutcomeResponse:
        """Note feedback."""
        identity = current_identity()
        feedback = messages.feedback_of(request)
        self._log.judged(identity.tenant_id, request.request_id, identity.user_id, feedback)
        return router_pb2.ReportOutcomeResponse()

    async def DeleteUserOutcomes(
        self, request: router_pb2.DeleteUserOutcomesRequest, context: Any
    ) -> router_pb2.DeleteUserOutcomesResponse:
        """Forget a user of the calling tenant."""
        if not request.user_id:
            raise required("user_id")
        tenant_id = current_identity().tenant_id
        self._memory.delete_user(tenant_id, request.user_id)
        try:
            count = await self._log.delete_user(tenant_id, request.user_id)
        except sqlite3.Error as error:
            raise _unavailable() from error
        return router_pb2.DeleteUserOutcomesResponse(outcome_count=count)

    async def ListOutcomes(
        self, request: router_pb2.ListOutcomesRequest, context: Any
    ) -> router_pb2.ListOutcomesResponse:
        """The tenant's outcomes in the order in which they were first heard of."""
        size, after = messages.page_size(request.page_size), messages.after_of(request.page_token)
        start = messages.start_of(request)
        try:
            rows = await self._log.page(
                current_identity().tenant_id,
                after=after,
                limit=size + 1,
                start_time=start,
                with_embeddings=not request.without_embeddings,
            )
        except sqlite3.Error as error:
            raise _unavailable() from error
        page = rows[:size]
        return router_pb2.ListOutcomesResponse(
            outcomes=[messages.outcome_message(outcome) for _, outcome in page],
            next_page_token=messages.page_token(page[-1][0]) if len(rows) > size else "",
        )

    async def ReplayOutcomes(
        self, request: router_pb2.ReplayOutcomesRequest, context: Any
    ) -> router_pb2.ReplayOutcomesResponse:
        """Decide recorded requests again."""
        if len(request.outcomes) > messages.MAX_PAGE:
            raise invalid_argument(f"at most {messages.MAX_PAGE} outcomes", field="outcomes")
        for name in ("catalog_yaml", "rules_yaml"):
            if len(getattr(request, name)) > _MAX_YAML_CHARACTERS:
                raise invalid_argument(f"at most {_MAX_YAML_CHARACTERS} characters", field=name)
        target = request.quality_target if request.HasField("quality_target") else None
        if target is not None and not 0.0 < target <= 1.0:
            raise invalid_argument("quality_target must be above 0 up to 1", field="quality_target")
        strategy = messages.strategy_of(request.strategy, "strategy")
        if strategy in (Strategy.LLM, Strategy.OVERRIDE):
            raise invalid_argument("a replay calls no model: this strategy cannot be replayed", field="strategy")
        tenant_id = current_identity().tenant_id
        replayed = await asyncio.to_thread(self._replay, request, tenant_id, strategy, target)
        return router_pb2.ReplayOutcomesResponse(outcomes=replayed)

    async def GetReport(self, request: router_pb2.GetReportRequest, context: Any) -> router_pb2.GetReportResponse:
        """The report of the tenant's newest outcomes."""
        start = messages.start_of(request)
        try:
            outcomes = await self._log.newest(current_identity().tenant_id, self._learning.report_entries, start)
        except sqlite3.Error as error:
            raise _unavailable() from error
        training = self._learning.training()
        built = await asyncio.to_thread(
            report.build,
            outcomes,
            training.feature_quantiles,
            heads_version=training.heads_version,
            dropped_count=self._log.dropped_count,
        )
        return report_message(built)

    async def GetStats(self, request: router_pb2.GetStatsRequest, context: Any) -> router_pb2.GetStatsResponse:
        """Counts since the start."""
        return router_pb2.GetStatsResponse(
            decision_counts=self._memory.decision_counts,
            unparsable_classification_count=self._memory.unparsable_count,
        )

    def _replay(
        self,
        request: router_pb2.ReplayOutcomesRequest,
        tenant_id: str,
        strategy: Strategy | None,
        quality_target: float | None,
    ) -> list[router_pb2.ReplayedOutcome]:
        catalog = self._learning.catalog()
        if request.catalog_yaml:
            try:
                catalog = self._learning.parse_catalog(request.catalog_yaml, "catalog_yaml")
            except CatalogError as error:
                raise invalid_argument(str(error), field="catalog_yaml") from None
        try:
            decide_again = self._learning.replayer(ReplayPolicy(catalog, request.rules_yaml, strategy, quality_target))
        except CatalogError as error:
            raise invalid_argument(str(error), field="rules_yaml") from None
        replayed = []
        for index, message in enumerate(request.outcomes):
            at = f"outcomes[{index}]"
            outcome = messages.outcome_of(message, tenant_id, at)
            if not outcome.model:
                raise required(f"{at}.model")
            replayed.append(replayed_message(replay.decide(outcome, decide_again, catalog)))
        return replayed


def _unavailable() -> TenthError:
    return TenthError(Code.UNAVAILABLE, Reason.OUTCOME_LOG_UNAVAILABLE, "the outcome log cannot be read or written", "")

"""tenth.router.v1.RouterService: proto to plain and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, cast

from tenth.router.v1 import router_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.auth import current_identity
from mesh.catalog import WatchedFile
from mesh.errors import invalid_argument
from mesh.telemetry import annotate
from services.router import checking, confidence
from services.router.asked import asked_of
from services.router.catalog import Catalog, Tier
from services.router.catalog_messages import catalog_model
from services.router.confidence import Confidence
from services.router.decide import Decider
from services.router.decision import Candidate, Decision, Strategy
from services.router.health import Health
from services.router.learning import Learning, LearningServicer
from services.router.outcomes import outcome_of


class RouterServicer(LearningServicer):
    """Chooses models."""

    def __init__(
        self,
        catalog: WatchedFile[Catalog],
        decider: Decider,
        learning: Learning,
        health: Health,
        confidence: Confidence,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``now`` is Unix seconds."""
        super().__init__(learning, health)
        self._catalog = catalog
        self._decider = decider
        self._confidence = confidence
        self._now = now

    async def SelectModel(self, request: router_pb2.SelectModelRequest, context: Any) -> router_pb2.SelectModelResponse:
        """Choose a model, its fallbacks, and say why."""
        asked = asked_of(request, current_identity())
        decision, preferred, overheads = await self._decider.decide(asked)
        annotate(_attributes(decision))
        if not request.dry_run:
            self._memory.decision_counts[decision.route.model.name] += 1
            if asked.request_id:
                self._log.decided(outcome_of(asked, decision, self._now(), preferred))
        return _response(decision, overheads)

    async def CheckAnswer(self, request: router_pb2.CheckAnswerRequest, context: Any) -> router_pb2.CheckAnswerResponse:
        """Whether a cascade's first answer may be given."""
        model = self._catalog.current.model(request.completion.model)
        reply = checking.verdict(request, self._confidence, model.quality_like if model else "")
        annotate(
            {
                "tenth.router.accepted": reply.accepted,
                "tenth.router.confidence": reply.confidence,
                "tenth.router.reason": reply.reason,
            }
        )
        return reply

    async def ListModels(self, request: router_pb2.ListModelsRequest, context: Any) -> router_pb2.ListModelsResponse:
        """The catalogue, by tier then name; the page token is the number of models before the page."""
        catalog = self._catalog.current
        if request.page_size < 0:
            raise invalid_argument("page_size is negative", field="page_size")
        token = request.page_token
        if token and not (token.isascii() and token.isdigit()):
            raise invalid_argument("page_token is not one of ours", field="page_token")
        models = sorted(catalog.models, key=lambda model: (model.tier, model.name))
        start = int(token or 0)
        end = start + min(request.page_size or 100, 1000)
        down = self._health.down()
        return router_pb2.ListModelsResponse(
            models=[catalog_model(model, down) for model in models[start:end]],
            next_page_token=str(end) if end < len(models) else "",
            catalog_version=catalog.version,
        )


def _response(decision: Decision, overheads: Any) -> router_pb2.SelectModelResponse:
    route = decision.route
    response = router_pb2.SelectModelResponse(
        model=route.model.name,
        tier=_tier(route.model.tier),
        fallback_models=[model.name for model in route.fallbacks],
        strategy=_strategy(decision.strategy),
        reason=route.reason,
        candidates=[_candidate(item) for item in route.candidates],
        complexity=decision.complexity,
        overheads=cast("list[receipt_pb2.OverheadItem]", overheads),
        exploration=cast(router_pb2.Exploration.ValueType, decision.exploration.value),
        propensity=decision.propensity,
        out_of_distribution=decision.out_of_distribution,
        quality_target=decision.quality_target,
        quality_price=decision.quality_price,
        heads_version=decision.heads_version,
        catalog_version=decision.catalog_version,
        rule=decision.rule,
    )
    if decision.cascade is not None:
        response.cascade.CopyFrom(
            router_pb2.CascadePlan(
                escalation_model=decision.cascade.escalation.name,
                escalation_tier=_tier(decision.cascade.escalation.tier),
                min_confidence=decision.cascade.min_confidence,
                top_logprobs_count=confidence.TOP_LOGPROBS,
            )
        )
    if decision.shadow is not None:
        response.shadow.CopyFrom(
            router_pb2.ShadowDecision(model=decision.shadow.model, strategy=_strategy(decision.shadow.strategy))
        )
    return response


def _attributes(decision: Decision) -> Mapping[str, str | float | bool]:
    route = decision.route
    chosen = next(item for item in route.candidates if item.model is route.model)
    attributes: dict[str, str | float | bool] = {
        "tenth.router.model": route.model.name,
        "tenth.router.tier": route.model.tier.name.lower(),
        "tenth.router.strategy": decision.strategy.name.lower(),
        "tenth.router.complexity": decision.complexity,
        "tenth.router.expected_cost_nano_usd": chosen.expected_cost_nano_usd,
        "tenth.router.reason": route.reason,
    }
    attributes["tenth.router.success_probability"] = chosen.success_probability
    attributes["tenth.router.quality_target"] = decision.quality_target
    attributes["tenth.router.exploration"] = decision.exploration.name.lower()
    attributes["tenth.router.out_of_distribution"] = decision.out_of_distribution
    attributes["tenth.router.candidates"] = " | ".join(map(_described, route.candidates))
    if decision.rule:
        attributes["tenth.router.rule"] = decision.rule
    if decision.shadow is not None:
        attributes["tenth.router.shadow_model"] = decision.shadow.model
    return attributes


def _described(item: Candidate) -> str:
    cost = "price unknown" if item.expected_cost_nano_usd < 0 else f"{item.expected_cost_nano_usd / 1e9:.6f} USD"
    rejected = f" ({item.rejected_reason})" if item.rejected_reason else ""
    return f"{item.model.name} {item.success_probability:.2f} {cost}{rejected}"


def _candidate(item: Candidate) -> router_pb2.RouteCandidate:
    return router_pb2.RouteCandidate(
        model=item.model.name,
        tier=_tier(item.model.tier),
        success_probability=item.success_probability,
        expected_cost_nano_usd=item.expected_cost_nano_usd,
        rejected_reason=item.rejected_reason,
        expected_output_token_count=item.expected_output_tokens,
        utility=item.utility,
    )


def _tier(tier: Tier) -> chat_pb2.Tier.ValueType:
    return cast(chat_pb2.Tier.ValueType, tier.value)


def _strategy(strategy: Strategy) -> router_pb2.Strategy.ValueType:
    return cast(router_pb2.Strategy.ValueType, strategy.value)

"""Outcomes, and what comes with them: proto to plain and back."""

from __future__ import annotations

import base64
import binascii
import math
from typing import cast

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from tenth.router.v1 import router_pb2
from tenth.type.v1 import chat_pb2, usage_pb2

from mesh.errors import invalid_argument, required
from services.router.catalog import Tier
from services.router.decision import Demand, Embedding, Exploration, Needs, Shadow, Strategy
from services.router.outcomes import (
    Completion,
    Feedback,
    Outcome,
    RecordedCandidate,
    ScoreSource,
)

MAX_PAGE = 1000
_DEFAULT_PAGE = 100
_MOST_CHARACTERS = 256
_MOST_FAILED = 100
_TOKEN = "o1:"  # noqa: S105  (how a page token begins, no secret)
_MORE_USAGE = (
    "cached_input_token_count",
    "cache_write_5m_token_count",
    "cache_write_1h_token_count",
    "reasoning_output_token_count",
    "estimated",
)
_SOURCES = {
    router_pb2.FEEDBACK_SOURCE_UNSPECIFIED: ScoreSource.CALLER,
    router_pb2.FEEDBACK_SOURCE_CALLER: ScoreSource.CALLER,
    router_pb2.FEEDBACK_SOURCE_JUDGE: ScoreSource.JUDGE,
}


def page_size(wanted: int) -> int:
    """Outcomes on a page. Raises INVALID_FIELD."""
    if not 0 <= wanted <= MAX_PAGE:
        raise invalid_argument(f"page_size must be within 0..{MAX_PAGE}", field="page_size")
    return wanted or _DEFAULT_PAGE


def page_token(after: int) -> str:
    """The token of the page that begins after a sequence number."""
    return base64.urlsafe_b64encode(f"{_TOKEN}{after}".encode()).decode().rstrip("=")


def after_of(token: str) -> int:
    """The sequence number that a token stands for; 0 of none. Raises INVALID_FIELD."""
    if not token:
        return 0
    try:
        text = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode("ascii")
        number = text.removeprefix(_TOKEN)
        if text.startswith(_TOKEN) and number.isdigit() and int(number) < 2**63:
            return int(number)
    except (binascii.Error, ValueError):
        pass
    raise invalid_argument("page_token is not one of ours", field="page_token")


def start_of(message: router_pb2.ListOutcomesRequest | router_pb2.GetReportRequest) -> float:
    """The start time, Unix seconds; 0 where none is given. Raises INVALID_FIELD."""
    if not message.HasField("start_time"):
        return 0.0
    return _seconds(message.start_time, "start_time")


def feedback_of(message: router_pb2.ReportOutcomeRequest) -> Feedback:
    """Feedback. The comment is not kept: no text is. Raises REQUIRED_FIELD, INVALID_FIELD."""
    _check_id(message.request_id, "request_id")
    if not (math.isfinite(message.score) and 0.0 <= message.score <= 1.0):
        raise invalid_argument("score must be within 0..1", field="score")
    if message.source not in _SOURCES:
        raise invalid_argument(f"{message.source} is no source", field="source")
    return Feedback(message.score, _SOURCES[message.source])


def completion_of(message: router_pb2.RecordCompletionRequest, at: str = "") -> Completion:
    """What became of a request; ``at`` is the field's path, with a dot. Raises REQUIRED_FIELD, INVALID_FIELD."""
    _check_id(message.request_id, f"{at}request_id")
    if len(message.failed_models) > _MOST_FAILED:
        raise invalid_argument(f"at most {_MOST_FAILED} models", field=f"{at}failed_models")
    for name in ("model", "escalated_from"):
        _check_name(getattr(message, name), f"{at}{name}")
    for index, name in enumerate(message.failed_models):
        _check_name(name, f"{at}failed_models[{index}]")
    usage = message.usage
    counts = {name: int(getattr(usage, name)) for name in _MORE_USAGE if getattr(usage, name)}
    for name in ("input_token_count", "output_token_count", *counts):
        if getattr(usage, name) < 0:
            raise invalid_argument(f"{name} is negative", field=f"{at}usage.{name}")
    if message.cost_nano_usd < 0:
        raise invalid_argument("cost_nano_usd is negative", field=f"{at}cost_nano_usd")
    seconds = message.duration.ToNanoseconds() / 1e9
    if seconds < 0:
        raise invalid_argument("duration is negative", field=f"{at}duration")
    return Completion(
        model=message.model,
        input_tokens=usage.input_token_count,
        output_tokens=usage.output_token_count,
        finish_reason=int(message.finish_reason),
        failed_models=tuple(message.failed_models),
        escalated_from=message.escalated_from,
        cost_nano_usd=message.cost_nano_usd,
        seconds=seconds,
        more_usage=counts,
    )


def completion_message(request_id: str, completion: Completion) -> router_pb2.RecordCompletionRequest:
    """A completion as its message."""
    usage = usage_pb2.Usage(input_token_count=completion.input_tokens, output_token_count=completion.output_tokens)
    for name, count in completion.more_usage.items():
        setattr(usage, name, bool(count) if name == "estimated" else count)
    duration = Duration()
    duration.FromNanoseconds(round(completion.seconds * 1e9))
    return router_pb2.RecordCompletionRequest(
        request_id=request_id,
        model=completion.model,
        usage=usage,
        finish_reason=cast(chat_pb2.FinishReason.ValueType, completion.finish_reason),
        failed_models=completion.failed_models,
        escalated_from=completion.escalated_from,
        cost_nano_usd=completion.cost_nano_usd,
        duration=duration,
    )


def outcome_message(outcome: Outcome) -> router_pb2.Outcome:
    """An outcome as its message. Without feedback, a refused first answer shows as a score of 0 by "escalation"."""
    needs, demand = outcome.demand.needs, outcome.demand
    message = router_pb2.Outcome(
        request_id=outcome.request_id,
        user_id=outcome.user_id,
        project_id=outcome.project_id,
        tags=outcome.tags,
        strategy=_strategy(outcome.strategy),
        model=outcome.model,
        tier=_tier(outcome.tier),
        exploration=cast(router_pb2.Exploration.ValueType, int(outcome.exploration)),
        propensity=outcome.propensity,
        preferred_model=outcome.preferred_model,
        features=outcome.features,
        language=outcome.language,
        candidates=[_candidate_message(item) for item in outcome.candidates],
        demand=router_pb2.OutcomeDemand(
            needs=router_pb2.ModelAbilities(
                tools=needs.tools, json_schema=needs.json_schema, vision=needs.vision, korean=needs.korean
            ),
            prompt_token_count=demand.prompt_token_count,
            max_output_token_count=demand.max_output_tokens or 0,
            tier_floor=_tier(demand.floor),
            tier_ceiling=_tier(demand.ceiling),
            model=demand.model,
        ),
        quality_target=outcome.quality_target,
        complexity=outcome.complexity,
        out_of_distribution=outcome.out_of_distribution,
        heads_version=outcome.heads_version,
        catalog_version=outcome.catalog_version,
        rule=outcome.rule,
    )
    message.decide_time.FromNanoseconds(round(outcome.decide_time * 1e9))
    if outcome.shadow is not None:
        message.shadow.model = outcome.shadow.model
        message.shadow.strategy = _strategy(outcome.shadow.strategy)
    if outcome.embedding is not None:
        message.embedding.values.extend(outcome.embedding.vector.tolist())
        message.embedding.embedder = outcome.embedding.version
    if outcome.completion is not None:
        message.completion.CopyFrom(completion_message(outcome.request_id, outcome.completion))
    if outcome.feedback is not None:
        message.score, message.score_source = outcome.feedback.score, outcome.feedback.source.value
    elif outcome.completion is not None and outcome.completion.escalated_from:
        message.score, message.score_source = 0.0, ScoreSource.ESCALATION.value
    return message


def outcome_of(message: router_pb2.Outcome, tenant_id: str, at: str) -> Outcome:
    """An outcome as plain data; ``at`` is its path, as ``outcomes[3]``. Raises REQUIRED_FIELD, INVALID_FIELD."""
    _check_id(message.request_id, f"{at}.request_id")
    demand, needs = message.demand, message.demand.needs
    target = message.quality_target
    if not 0.0 <= target <= 1.0:
        raise invalid_argument("quality_target must be within 0..1", field=f"{at}.quality_target")
    if not 0.0 <= message.propensity <= 1.0:
        raise invalid_argument("propensity must be within 0..1", field=f"{at}.propensity")
    for name in ("prompt_token_count", "max_output_token_count"):
        if getattr(demand, name) < 0:
            raise invalid_argument(f"{name} is negative", field=f"{at}.demand.{name}")
    for name, value in message.features.items():
        if not math.isfinite(value):
            raise invalid_argument(f"{name} is not finite", field=f"{at}.features")
    completion = completion_of(message.completion, f"{at}.completion.") if message.HasField("completion") else None
    return Outcome(
        tenant_id=tenant_id,
        request_id=message.request_id,
        decide_time=_seconds(message.decide_time, f"{at}.decide_time"),
        user_id=message.user_id,
        project_id=message.project_id,
        tags=dict(message.tags),
        strategy=strategy_of(message.strategy, f"{at}.strategy"),
        model=message.model,
        tier=tier_of(message.tier, f"{at}.tier"),
        exploration=_exploration(message.exploration, f"{at}.exploration"),
        propensity=message.propensity or 1.0,
        preferred_model=message.preferred_model,
        shadow=_shadow(message, at),
        features=dict(message.features),
        language=message.language,
        embedding=_embedding(message, at),
        candidates=tuple(
            _candidate(item, f"{at}.candidates[{index}]") for index, item in enumerate(message.candidates)
        ),
        demand=Demand(
            needs=Needs(needs.tools, needs.json_schema, needs.vision, needs.korean),
            prompt_token_count=demand.prompt_token_count,
            max_output_tokens=demand.max_output_token_count or None,
            quality_target=target or None,
            floor=tier_of(demand.tier_floor, f"{at}.demand.tier_floor"),
            ceiling=tier_of(demand.tier_ceiling, f"{at}.demand.tier_ceiling"),
            model=demand.model,
        ),
        quality_target=target,
        complexity=message.complexity,
        out_of_distribution=message.out_of_distribution,
        heads_version=message.heads_version,
        catalog_version=message.catalog_version,
        rule=message.rule,
        completion=completion,
        feedback=_feedback(message, at),
    )


def strategy_of(number: int, field: str) -> Strategy | None:
    """A strategy; None where it is not set. Raises INVALID_FIELD."""
    if not number:
        return None
    try:
        return Strategy(number)
    except ValueError:
        raise invalid_argument(f"{number} is no strategy", field=field) from None


def tier_of(number: int, field: str) -> Tier | None:
    """A tier; None where it is not set. Raises INVALID_FIELD."""
    if not number:
        return None
    try:
        return Tier(number)
    except ValueError:
        raise invalid_argument(f"{number} is no tier", field=field) from None


def _feedback(message: router_pb2.Outcome, at: str) -> Feedback | None:
    if not message.HasField("score"):
        return None
    if not (math.isfinite(message.score) and 0.0 <= message.score <= 1.0):
        raise invalid_argument("score must be within 0..1", field=f"{at}.score")
    try:
        source = ScoreSource(message.score_source or ScoreSource.CALLER)
    except ValueError:
        raise invalid_argument(
            f"{message.score_source!r} is no source of feedback", field=f"{at}.score_source"
        ) from None
    return None if source is ScoreSource.ESCALATION else Feedback(message.score, source)


def _candidate(message: router_pb2.RouteCandidate, at: str) -> RecordedCandidate:
    tier = tier_of(message.tier, f"{at}.tier")
    if tier is None:
        raise required(f"{at}.tier")
    return RecordedCandidate(
        model=message.model,
        tier=tier,
        success_probability=message.success_probability,
        expected_cost_nano_usd=message.expected_cost_nano_usd,
        expected_output_tokens=message.expected_output_token_count,
        utility=message.utility,
        rejected_reason=message.rejected_reason,
    )


def _candidate_message(item: RecordedCandidate) -> router_pb2.RouteCandidate:
    return router_pb2.RouteCandidate(
        model=item.model,
        tier=_tier(item.tier),
        success_probability=item.success_probability,
        expected_cost_nano_usd=item.expected_cost_nano_usd,
        rejected_reason=item.rejected_reason,
        expected_output_token_count=item.expected_output_tokens,
        utility=item.utility,
    )


def _shadow(message: router_pb2.Outcome, at: str) -> Shadow | None:
    strategy = strategy_of(message.shadow.strategy, f"{at}.shadow.strategy")
    return Shadow(message.shadow.model, strategy) if strategy is not None else None


def _embedding(message: router_pb2.Outcome, at: str) -> Embedding | None:
    if not message.embedding.values:
        return None
    vector = np.asarray(message.embedding.values, np.float32)
    if not np.isfinite(vector).all():
        raise invalid_argument("a value is not finite", field=f"{at}.embedding.values")
    return Embedding(vector, message.embedding.embedder)


def _exploration(number: int, field: str) -> Exploration:
    try:
        return Exploration(number)
    except ValueError:
        raise invalid_argument(f"{number} is no exploration", field=field) from None


def _check_id(request_id: str, field: str) -> None:
    if not request_id:
        raise required(field)
    _check_name(request_id, field)


def _check_name(name: str, field: str) -> None:
    # They are written to disk as they come.
    if len(name) > _MOST_CHARACTERS:
        raise invalid_argument(f"at most {_MOST_CHARACTERS} characters", field=field)


def _seconds(time: Timestamp, field: str) -> float:
    if not 0 <= time.nanos < 10**9 or not -62_135_596_800 <= time.seconds <= 253_402_300_799:
        raise invalid_argument("not a time", field=field)
    return time.seconds + time.nanos / 1e9


def _tier(tier: Tier | None) -> chat_pb2.Tier.ValueType:
    return cast(chat_pb2.Tier.ValueType, int(tier or 0))


def _strategy(strategy: Strategy | None) -> router_pb2.Strategy.ValueType:
    return cast(router_pb2.Strategy.ValueType, int(strategy or 0))

"""SelectModel's request, from proto to plain."""

from __future__ import annotations

import math

import numpy as np
from google.protobuf.duration_pb2 import Duration
from tenth.router.v1 import router_pb2
from tenth.type.v1 import chat_pb2

from mesh.auth import Identity
from mesh.errors import invalid_argument, required
from services.router import features, policy
from services.router.catalog import Tier
from services.router.decision import Asked, CascadeUse, Demand, Embedding, Needs, Strategy


def asked_of(request: router_pb2.SelectModelRequest, identity: Identity) -> Asked:
    """What routing is asked. Raises INVALID_FIELD naming the field."""
    asked = request.request
    if not asked.messages:
        raise required("request.messages")
    prompt = prompt_of(asked)
    found = features.extract(prompt)
    return Asked(
        tenant_id=identity.tenant_id,
        user_id=asked.user_id or identity.user_id,
        project_id=asked.project_id or identity.project_id,
        request_id=asked.request_id,
        tags=dict(asked.tags),
        prompt=prompt,
        found=found,
        demand=demand_of(request, prompt, found),
        embedding=embedding_of(request),
        strategy=_strategy(request.strategy),
        cascade=_cascade(asked.policy.cascade_mode),
        streaming=request.streaming,
        dry_run=request.dry_run,
        classifier_attempt=request.classifier_attempt,
    )


def prompt_of(request: chat_pb2.CompletionRequest) -> features.Prompt:
    """What the features look at."""
    question, system_chars, total_chars, user_turns, images = "", 0, 0, 0, 0
    for message in request.messages:
        chars = 0
        for part in message.parts:
            chars += len(part.text)
            images += part.HasField("image")
        chars += sum(len(call.arguments_json) for call in message.tool_calls)
        total_chars += chars
        if message.role == chat_pb2.ROLE_SYSTEM:
            system_chars += chars
        elif message.role == chat_pb2.ROLE_USER:
            user_turns += 1
            question = "\n".join(part.text for part in message.parts if part.text)
    chunks = request.retrieved_chunks
    kind = request.response_format.kind
    return features.Prompt(
        question=question,
        system_chars=system_chars,
        history_chars=max(0, total_chars - system_chars - len(question)),
        user_turn_count=user_turns,
        chunk_count=len(chunks),
        chunk_chars=sum(len(chunk.text) for chunk in chunks),
        chunk_hangul_share=features.hangul_share("".join(chunk.text[:200] for chunk in chunks[:8])),
        tool_count=len(request.tools),
        image_count=images,
        wants_schema=kind == chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA,
        wants_json=kind == chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT,
    )


def demand_of(request: router_pb2.SelectModelRequest, prompt: features.Prompt, found: features.Features) -> Demand:
    """What the request asks of routing. Raises INVALID_FIELD for a quality target outside 0..1."""
    asked = request.request
    bounds = asked.policy
    quality = bounds.quality_target if bounds.HasField("quality_target") else None
    if quality is not None and not 0.0 < quality <= 1.0:
        raise invalid_argument("quality_target must be above 0 up to 1", field="request.policy.quality_target")
    korean = features.is_korean(prompt, found)
    chars = prompt.system_chars + prompt.history_chars + len(prompt.question) + prompt.chunk_chars
    chars += sum(len(tool.parameters_json_schema) + len(tool.description) + 60 for tool in asked.tools)
    chars += len(asked.response_format.json_schema)
    # Half of a Korean prompt's characters are blanks, digits and Latin at most; the estimate stays on the high side.
    hangul = chars * 3 // 4 if korean else 0
    sampling = asked.sampling
    return Demand(
        needs=Needs(
            tools=bool(asked.tools) and asked.tool_choice.mode != chat_pb2.TOOL_CHOICE_MODE_NONE,
            json_schema=prompt.wants_schema or prompt.wants_json,
            vision=prompt.image_count > 0,
            korean=korean,
        ),
        prompt_token_count=policy.estimate_tokens(chars, hangul, len(asked.messages), prompt.image_count),
        max_output_tokens=sampling.max_output_tokens if sampling.HasField("max_output_tokens") else None,
        quality_target=quality,
        floor=_bound(bounds.tier_floor, "request.policy.tier_floor"),
        ceiling=_bound(bounds.tier_ceiling, "request.policy.tier_ceiling"),
        budget_ceiling=_bound(request.tier_ceiling, "tier_ceiling"),
        excluded_models=frozenset(request.excluded_models),
        model=bounds.model,
        seconds_left=_seconds(request.time_left) if request.HasField("time_left") else None,
    )


def embedding_of(request: router_pb2.SelectModelRequest) -> Embedding | None:
    """The question's vector as the cache made it; None without one."""
    given = request.embedding
    return Embedding(np.asarray(given.values, np.float32), given.embedder) if given.values else None


def _bound(value: int, field: str) -> Tier | None:
    if value == chat_pb2.TIER_UNSPECIFIED:
        return None
    try:
        return Tier(value)
    except ValueError:
        raise invalid_argument(f"{value} is no tier", field=field) from None


def _strategy(value: int) -> Strategy | None:
    if value == router_pb2.STRATEGY_UNSPECIFIED:
        return None
    try:
        strategy = Strategy(value)
    except ValueError:
        raise invalid_argument(f"{value} is no strategy", field="strategy") from None
    # A caller names a model in the policy; rules are the operator's.
    return None if strategy in (Strategy.OVERRIDE, Strategy.RULES) else strategy


def _cascade(value: int) -> CascadeUse:
    try:
        return CascadeUse(value)
    except ValueError:
        raise invalid_argument(f"{value} is no cascade mode", field="request.policy.cascade_mode") from None


def _seconds(duration: Duration) -> float:
    seconds = duration.seconds + duration.nanos / 1e9
    if not math.isfinite(seconds):
        raise invalid_argument("time_left is no duration", field="time_left")
    return max(0.0, seconds)

"""Outcomes as rows of the log: JSON for what is only read back whole, float16 for the embedding. Pure."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from services.router.catalog import Tier
from services.router.decision import Demand, Embedding, Exploration, Needs, Shadow, Strategy
from services.router.outcomes import NOTHING_ASKED, Completion, Outcome, RecordedCandidate

_NEEDS = ("tools", "json_schema", "vision", "korean")


def decision_text(outcome: Outcome) -> str:
    """The decision of an outcome as JSON, without what has columns of its own."""
    demand, shadow = outcome.demand, outcome.shadow
    return json.dumps(
        {
            "project": outcome.project_id,
            "tags": dict(outcome.tags),
            "strategy": outcome.strategy,
            "model": outcome.model,
            "tier": outcome.tier,
            "exploration": outcome.exploration,
            "propensity": outcome.propensity,
            "preferred": outcome.preferred_model,
            "shadow": [shadow.model, shadow.strategy] if shadow else None,
            "features": dict(outcome.features),
            "language": outcome.language,
            "candidates": [
                [
                    item.model,
                    item.tier,
                    item.success_probability,
                    item.expected_cost_nano_usd,
                    item.expected_output_tokens,
                    item.utility,
                    item.rejected_reason,
                ]
                for item in outcome.candidates
            ],
            "needs": [name for name in _NEEDS if getattr(demand.needs, name)],
            "prompt_tokens": demand.prompt_token_count,
            "max_output_tokens": demand.max_output_tokens,
            "floor": demand.floor,
            "ceiling": demand.ceiling,
            "named": demand.model,
            "target": outcome.quality_target,
            "complexity": outcome.complexity,
            "unlike": outcome.out_of_distribution,
            "heads": outcome.heads_version,
            "catalog": outcome.catalog_version,
            "rule": outcome.rule,
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


def decision_fields(text: str | None) -> dict[str, Any]:
    """The fields of Outcome that a decision's JSON gives; none where there is no decision."""
    if not text:
        return {}
    raw = json.loads(text)
    return {
        "project_id": raw["project"],
        "tags": raw["tags"],
        "strategy": Strategy(raw["strategy"]) if raw["strategy"] else None,
        "model": raw["model"],
        "tier": _tier(raw["tier"]),
        "exploration": Exploration(raw["exploration"]),
        "propensity": raw["propensity"],
        "preferred_model": raw["preferred"],
        "shadow": Shadow(raw["shadow"][0], Strategy(raw["shadow"][1])) if raw["shadow"] else None,
        "features": raw["features"],
        "language": raw["language"],
        "candidates": tuple(RecordedCandidate(model, Tier(tier), *rest) for model, tier, *rest in raw["candidates"]),
        "demand": Demand(
            needs=Needs(**dict.fromkeys(raw["needs"], True)),
            prompt_token_count=raw["prompt_tokens"],
            max_output_tokens=raw["max_output_tokens"],
            quality_target=raw["target"] or None,
            floor=_tier(raw["floor"]),
            ceiling=_tier(raw["ceiling"]),
            model=raw["named"],
        )
        if raw["model"]
        else NOTHING_ASKED,
        "quality_target": raw["target"],
        "complexity": raw["complexity"],
        "out_of_distribution": raw["unlike"],
        "heads_version": raw["heads"],
        "catalog_version": raw["catalog"],
        "rule": raw["rule"],
    }


def completion_text(completion: Completion) -> str:
    """A completion as JSON."""
    return json.dumps(
        [
            completion.model,
            completion.input_tokens,
            completion.output_tokens,
            completion.finish_reason,
            completion.failed_models,
            completion.escalated_from,
            completion.cost_nano_usd,
            completion.seconds,
            dict(completion.more_usage),
        ],
        ensure_ascii=False,
        separators=(",", ":"),
    )


def completion_of(text: str | None) -> Completion | None:
    """The completion of a JSON text."""
    if not text:
        return None
    model, read, written, reason, failed, *rest = json.loads(text)
    return Completion(model, read, written, reason, tuple(failed), *rest)


def vector_bytes(embedding: Embedding) -> bytes:
    """The vector as little-endian float16: half the bytes, 3 decimal digits, which is more than any head can tell."""
    return embedding.vector.astype("<f2").tobytes()


def embedding_of(data: bytes | None, version: str) -> Embedding | None:
    """The embedding of its bytes."""
    return Embedding(np.frombuffer(data, "<f2").astype(np.float32), version) if data else None


def _tier(number: int | None) -> Tier | None:
    return Tier(number) if number else None

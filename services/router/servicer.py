"""tenth.router.v1.RouterService: proto to plain and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
from google.protobuf.duration_pb2 import Duration
from tenth.router.v1 import router_pb2
from tenth.type.v1 import chat_pb2

from mesh.auth import Identity, current_identity
from mesh.catalog import WatchedFile
from mesh.errors import invalid_argument, required
from mesh.telemetry import annotate
from services.router import classifier, features, policy
from services.router.catalog import Catalog, Model, Tier
from services.router.decision import UNKNOWN_COST, Asked, Decision, Demand, Embedding, Needs, Strategy
from services.router.learning import Learning, LearningServicer
from services.router.llm import FIRST_ATTEMPT, LlmClassifier
from services.router.outcomes import outcome_of

_STRATEGIES: Mapping[str, router_pb2.Strategy.ValueType] = {
    "features": router_pb2.STRATEGY_FEATURES,
    "llm": router_pb2.STRATEGY_LLM,
}


class RouterServicer(LearningServicer):
    """Chooses models. Stateless but for the bounded outcome log."""

    def __init__(
        self,
        catalog: WatchedFile[Catalog],
        thresholds: classifier.Thresholds,
        default_strategy: str,
        llm: LlmClassifier,
        learning: Learning,
        new_id: Callable[[], str],
        now: Callable[[], float] = time.time,
    ) -> None:
        """``new_id`` names requests that come without an id, for the classifier's attempts; ``now`` is Unix seconds."""
        super().__init__(learning)
        self._catalog = catalog
        self._thresholds = thresholds
        self._default_strategy = _STRATEGIES[default_strategy]
        self._llm = llm
        self._new_id = new_id
        self._now = now

    async def SelectModel(self, request: router_pb2.SelectModelRequest, context: Any) -> router_pb2.SelectModelResponse:
        """Choose a model, its fallbacks, and say why."""
        asked = request.request
        if not asked.messages:
            raise required("request.messages")
        identity = current_identity()
        catalog = self._catalog.current
        prompt = prompt_of(asked)
        found = features.extract(prompt)
        demand = demand_of(request, prompt, found)
        judgement, strategy, why, overheads = await self._judge(request, identity, catalog, prompt, found)
        route = policy.choose(catalog, demand, judgement, self._thresholds, why)
        chosen = next(item for item in route.candidates if item.model is route.model)
        annotate(
            {
                "tenth.router.model": route.model.name,
                "tenth.router.tier": route.model.tier.name.lower(),
                "tenth.router.strategy": router_pb2.Strategy.Name(strategy).removeprefix("STRATEGY_").lower(),
                "tenth.router.complexity": judgement.complexity,
                "tenth.router.expected_cost_nano_usd": chosen.expected_cost_nano_usd,
                "tenth.router.reason": route.reason,
            }
        )
        if not request.dry_run:
            self._memory.decision_counts[route.model.name] += 1
            if asked.request_id:
                target = self._thresholds.quality_target if demand.quality_target is None else demand.quality_target
                decision = Decision(
                    route, Strategy(strategy), judgement.complexity, target, 0.0, catalog_version=catalog.version
                )
                plain = Asked(
                    tenant_id=identity.tenant_id,
                    user_id=asked.user_id or identity.user_id,
                    project_id=asked.project_id or identity.project_id,
                    request_id=asked.request_id,
                    tags=dict(asked.tags),
                    prompt=prompt,
                    found=found,
                    demand=demand,
                    embedding=_embedding(request),
                )
                self._log.decided(outcome_of(plain, decision, self._now()))
        return router_pb2.SelectModelResponse(
            model=route.model.name,
            tier=_tier(route.model.tier),
            fallback_models=[model.name for model in route.fallbacks],
            strategy=strategy,
            reason=route.reason,
            candidates=[
                router_pb2.RouteCandidate(
                    model=item.model.name,
                    tier=_tier(item.model.tier),
                    success_probability=item.success_probability,
                    expected_cost_nano_usd=item.expected_cost_nano_usd,
                    rejected_reason=item.rejected_reason,
                )
                for item in route.candidates
            ],
            complexity=judgement.complexity,
            overheads=overheads,
        )

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
        return router_pb2.ListModelsResponse(
            models=[_model(model) for model in models[start:end]],
            next_page_token=str(end) if end < len(models) else "",
            catalog_version=catalog.version,
        )

    async def _judge(
        self,
        request: router_pb2.SelectModelRequest,
        identity: Identity,
        catalog: Catalog,
        prompt: features.Prompt,
        found: features.Features,
    ) -> tuple[classifier.Judgement, router_pb2.Strategy.ValueType, str, list[Any]]:
        """The judgement, the strategy that made it, why, and what it cost."""
        by_features = classifier.judge(found)
        cues = f" ({', '.join(by_features.cues)})" if by_features.cues else ""
        why = f"features, {found.language}{cues}"
        if request.request.policy.model:
            return by_features, router_pb2.STRATEGY_OVERRIDE, why, []
        strategy = request.strategy or self._default_strategy
        if strategy != router_pb2.STRATEGY_LLM:
            return by_features, router_pb2.STRATEGY_FEATURES, why, []
        tenant_id, request_id = identity.tenant_id, request.request.request_id or self._new_id()
        kept = self._memory.get(tenant_id, request_id)
        if kept.label is not None:
            label = kept.label
            why = f"classified before as {label.name.lower()}"
            return classifier.judge_label(label, by_features), router_pb2.STRATEGY_LLM, why, []
        failure = self._cannot_ask(request, catalog)
        if failure:
            return by_features, router_pb2.STRATEGY_FEATURES, f"{why}, {failure}", []
        attempt = request.classifier_attempt or FIRST_ATTEMPT + kept.classifier_attempts
        # Noted before the call: an attempt number is never used twice, however the call ends.
        self._memory.put(tenant_id, request_id, replace(kept, classifier_attempts=kept.classifier_attempts + 1))
        model, project_id = catalog.classifier_model, request.request.project_id
        answer = await self._llm.classify(model, prompt.question, request_id, attempt, project_id)
        overheads = list(answer.overheads)
        if answer.tier is None:
            reason = f"{why}, since the classifier {model} failed: {answer.failure}"
            return by_features, router_pb2.STRATEGY_FEATURES, reason, overheads
        label = answer.tier
        if answer.parsed:
            why = f"{model} says {label.name.lower()}"
        else:
            self._memory.unparsable_count += 1
            why = f"{model} gave no label, medium is assumed"
        noted = self._memory.get(tenant_id, request_id)
        self._memory.put(tenant_id, request_id, replace(noted, label=label, user_id=request.request.user_id))
        return classifier.judge_label(label, by_features), router_pb2.STRATEGY_LLM, why, overheads

    @staticmethod
    def _cannot_ask(request: router_pb2.SelectModelRequest, catalog: Catalog) -> str:
        if request.dry_run:
            return "since a dry run spends nothing on the classifier"
        return "" if catalog.classifier_model else "since the catalogue names no classifier_model"


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
    )


def _embedding(request: router_pb2.SelectModelRequest) -> Embedding | None:
    given = request.embedding
    return Embedding(np.asarray(given.values, np.float32), given.embedder) if given.values else None


def _bound(value: int, field: str) -> Tier | None:
    if value == chat_pb2.TIER_UNSPECIFIED:
        return None
    try:
        return Tier(value)
    except ValueError:
        raise invalid_argument(f"{value} is no tier", field=field) from None


def _tier(tier: Tier) -> chat_pb2.Tier.ValueType:
    return cast(chat_pb2.Tier.ValueType, tier.value)


def _model(model: Model) -> router_pb2.CatalogModel:
    abilities, price = model.abilities, model.price
    first_token = Duration()
    first_token.FromNanoseconds(round(model.first_token_seconds * 1e9))
    return router_pb2.CatalogModel(
        model=model.name,
        provider=model.provider,
        tier=_tier(model.tier),
        context_window_tokens=model.context_window_tokens,
        abilities=router_pb2.ModelAbilities(
            tools=abilities.tools,
            json_schema=abilities.json_schema,
            vision=abilities.vision,
            korean=abilities.korean,
        ),
        self_hosted=model.self_hosted,
        routable=model.routable,
        quality_like=model.quality_like,
        output_tokens_per_second=model.output_tokens_per_second,
        time_to_first_token=first_token if model.first_token_seconds else None,
        healthy=True,
        input_nano_usd_per_million_tokens=price.input if price is not None else UNKNOWN_COST,
        output_nano_usd_per_million_tokens=price.output if price is not None else UNKNOWN_COST,
    )

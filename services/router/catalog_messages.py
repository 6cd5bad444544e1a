"""The catalogue's models as messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from tenth.router.v1 import router_pb2
from tenth.type.v1 import chat_pb2

from services.router.catalog import Model
from services.router.decision import UNKNOWN_COST


def catalog_model(model: Model, health: Mapping[str, str]) -> router_pb2.CatalogModel:
    """A model of the catalogue; ``health`` has the reason of each model that is down. An unknown price is -1."""
    abilities, price = model.abilities, model.price
    message = router_pb2.CatalogModel(
        model=model.name,
        provider=model.provider,
        tier=cast(chat_pb2.Tier.ValueType, model.tier.value),
        context_window_tokens=model.context_window_tokens,
        abilities=router_pb2.ModelAbilities(
            tools=abilities.tools,
            json_schema=abilities.json_schema,
            vision=abilities.vision,
            korean=abilities.korean,
            logprobs=abilities.logprobs,
        ),
        self_hosted=model.self_hosted,
        routable=model.routable,
        quality_like=model.arm,
        output_tokens_per_second=model.output_tokens_per_second,
        healthy=model.name not in health,
        input_nano_usd_per_million_tokens=UNKNOWN_COST if price is None else price.input,
        output_nano_usd_per_million_tokens=UNKNOWN_COST if price is None else price.output,
    )
    if model.first_token_seconds:
        message.time_to_first_token.FromNanoseconds(round(model.first_token_seconds * 1e9))
    return message

"""A model of the catalogue as a message."""

from __future__ import annotations

from tenth.type.v1 import chat_pb2

from services.router.catalog import Abilities, Model, ReferencePrice, Tier
from services.router.catalog_messages import catalog_model

BARE = Model("m", "p", Tier.MEDIUM, 8000, 4000, 100, Abilities())
FULL = Model(
    name="m",
    provider="p",
    tier=Tier.COMPLEX,
    context_window_tokens=8000,
    max_output_tokens=4000,
    expected_output_tokens=100,
    abilities=Abilities(tools=True, json_schema=True, vision=True, korean=True),
    self_hosted=True,
    routable=False,
    price=ReferencePrice(0, 7),
    quality_like="gpt-4-1106",
    output_tokens_per_second=76.0,
    first_token_seconds=0.98,
)


def test_what_is_not_known_is_said_to_be_unknown() -> None:
    message = catalog_model(BARE, {})
    assert (message.model, message.provider, message.tier) == ("m", "p", chat_pb2.TIER_MEDIUM)
    assert (message.input_nano_usd_per_million_tokens, message.output_nano_usd_per_million_tokens) == (-1, -1)
    assert message.output_tokens_per_second == 0.0
    assert not message.HasField("time_to_first_token")
    assert message.quality_like == "class:medium"
    assert message.routable
    assert message.healthy
    assert not message.abilities.tools


def test_every_field_is_filled() -> None:
    message = catalog_model(FULL, {"m": "401", "other": "down"})
    unset = {field.name for field in message.DESCRIPTOR.fields} - {field.name for field, _ in message.ListFields()}
    # A price of nothing, a model by name only, and one that is down: zero values that are meant.
    assert unset == {"input_nano_usd_per_million_tokens", "routable", "healthy"}
    assert message.time_to_first_token.ToMilliseconds() == 980
    assert message.quality_like == "gpt-4-1106"
    assert message.output_nano_usd_per_million_tokens == 7
    assert not message.healthy


def test_the_health_of_others_is_not_its_own() -> None:
    assert catalog_model(BARE, {"n": "down"}).healthy

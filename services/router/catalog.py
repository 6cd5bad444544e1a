"""The model catalogue: the parts of ``deploy/catalog.yaml`` that routing needs.

Prices here are reference prices for estimating; the ledger owns the prices that are charged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum

from mesh.catalog import ABILITY_KEYS, MODEL_KEYS, PRICE_KEYS, ROUTING_KEYS, Entry, open_catalog, text_version


class Tier(IntEnum):
    """Model tiers, from cheapest to strongest; the numbers are those of tenth.type.v1.Tier."""

    SIMPLE = 1
    MEDIUM = 2
    COMPLEX = 3


TIER_NAMES = {tier.name.lower(): tier for tier in Tier}


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a model can do."""

    tools: bool = False
    json_schema: bool = False
    vision: bool = False
    korean: bool = False


@dataclass(frozen=True, slots=True)
class ReferencePrice:
    """Nano-USD per million tokens."""

    input: int
    output: int


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the catalogue."""

    name: str
    provider: str
    tier: Tier
    context_window_tokens: int
    max_output_tokens: int
    expected_output_tokens: int
    abilities: Abilities
    self_hosted: bool = False
    routable: bool = True
    price: ReferencePrice | None = None
    quality_like: str = ""
    """Arm of the heads whose recorded outcomes stand for this model's; empty: the class of its tier."""
    output_tokens_per_second: float = 0.0
    """As measured; 0: not measured."""
    first_token_seconds: float = 0.0
    """Time to its first token, as measured; 0: not measured."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """The models in file order, the first able one of a tier being preferred, and the routing section."""

    models: tuple[Model, ...]
    default_tier: Tier
    classifier_model: str
    version: str

    def model(self, name: str) -> Model | None:
        """The model of that name."""
        return next((model for model in self.models if model.name == name), None)


_CPU_ENTRY, _GPU_ENTRY = "cpu", "gpu:"


def parse_catalog(text: str, name: str, now: datetime) -> Catalog:
    """Read a catalogue; ``name`` is the file's, for messages. Raises CatalogError."""
    root = open_catalog(text, name)
    prices = dict(_prices(root, now))
    models = tuple(_models(root, prices))
    if not models:
        raise root.wrong("models", "at least one is needed")
    routing = root.mapping("routing", ROUTING_KEYS)
    classifier = routing.text("classifier_model", "")
    if classifier and classifier not in {model.name for model in models}:
        raise routing.wrong("classifier_model", f"{classifier!r} is not in models")
    return Catalog(
        models=models,
        default_tier=_tier(routing, "default_tier", "medium"),
        classifier_model=classifier,
        version=text_version(text),
    )


def _models(root: Entry, prices: dict[str, ReferencePrice]) -> Iterator[Model]:
    for name, entry in root.mapping("models", None).mappings(MODEL_KEYS):
        abilities = entry.mapping("abilities", ABILITY_KEYS)
        window = entry.integer("context_window_tokens")
        yield Model(
            name=name,
            provider=entry.text("provider"),
            tier=_tier(entry, "tier"),
            context_window_tokens=window,
            max_output_tokens=entry.integer("max_output_tokens", window),
            expected_output_tokens=entry.integer("expected_output_tokens", 200),
            abilities=Abilities(**{key: abilities.boolean(key, False) for key in ABILITY_KEYS}),
            self_hosted=entry.boolean("self_hosted", False),
            routable=entry.boolean("routable", True),
            price=prices.get(name),
        )


def _prices(root: Entry, now: datetime) -> Iterator[tuple[str, ReferencePrice]]:
    """The newest row of each model that holds now, oldest first, so that a dict keeps the newest."""
    rows = []
    for row in root.sequence("prices", PRICE_KEYS):
        model = row.text("model")
        if model == _CPU_ENTRY or model.startswith(_GPU_ENTRY):
            continue
        starts, ends = row.instant("valid_from"), row.instant("valid_to") if "valid_to" in row else None
        price = ReferencePrice(row.usd("input"), row.usd("output"))
        if starts <= now and (ends is None or now < ends) and row.boolean("confirmed", True):
            rows.append((starts, model, price))
    for _, model, price in sorted(rows, key=lambda row: row[0]):
        yield model, price


def _tier(entry: Entry, key: str, default: str | None = None) -> Tier:
    return TIER_NAMES[entry.choice(key, tuple(TIER_NAMES), default)]

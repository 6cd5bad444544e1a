"""The model catalogue: the parts of ``deploy/catalog.yaml`` that routing needs.

Prices here are reference prices for estimating; the ledger owns the prices that are charged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum

from mesh.catalog import (
    ABILITY_KEYS,
    MODEL_KEYS,
    PRICE_KEYS,
    PROVIDER_KEYS,
    ROUTING_KEYS,
    Entry,
    open_catalog,
    text_version,
)

log = logging.getLogger("tenth.catalog")


class Tier(IntEnum):
    """Model tiers, from cheapest to strongest; the numbers are those of tenth.type.v1.Tier."""

    SIMPLE = 1
    MEDIUM = 2
    COMPLEX = 3


TIER_NAMES = {tier.name.lower(): tier for tier in Tier}
CLASS_OF_TIER: Mapping[Tier, str] = {
    Tier.SIMPLE: "class:small",
    Tier.MEDIUM: "class:medium",
    Tier.COMPLEX: "class:large",
}
"""The class of models whose recorded outcomes stand for a tier's, unless ``quality_like`` says otherwise."""
_CLASS = "class:"
MAX_TOKENS_PER_SECOND = 100_000.0
MAX_FIRST_TOKEN_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a model can do."""

    tools: bool = False
    json_schema: bool = False
    vision: bool = False
    korean: bool = False
    logprobs: bool = False
    """Gives log probabilities of its tokens: only such a model begins a cascade."""


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

    @property
    def arm(self) -> str:
        """The arm of the heads that stands for it: ``quality_like``, or the class of its tier."""
        return self.quality_like or CLASS_OF_TIER[self.tier]


@dataclass(frozen=True, slots=True)
class Catalog:
    """The models in file order, the first able one of a tier being preferred, and the routing section."""

    models: tuple[Model, ...]
    default_tier: Tier
    classifier_model: str
    version: str
    quality_lines: Mapping[str, int] = field(default_factory=dict)
    """Line of each model's ``quality_like`` in the file, for messages; of the model itself where it has none."""

    def model(self, name: str) -> Model | None:
        """The model of that name."""
        return next((model for model in self.models if model.name == name), None)


_CPU_ENTRY, _GPU_ENTRY = "cpu", "gpu:"


class CatalogReader:
    """Reads catalogues and warns of each routable model without a price, once for as long as it has none."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        """``now`` says which prices hold."""
        self._now = now
        self._warned: frozenset[str] = frozenset()

    def __call__(self, text: str, name: str) -> Catalog:
        """The catalogue of a file. Raises CatalogError."""
        catalog = parse_catalog(text, name, self._now())
        bare = {model.name: catalog.quality_lines[model.name] for model in unpriced(catalog)}
        for model, line in bare.items():
            if model not in self._warned:
                log.warning(
                    "%s:%d: models.%s has no price that holds now: its cost is unknown (-1), and it is chosen by tier "
                    "order only",
                    name,
                    line,
                    model,
                )
        self._warned = frozenset(bare)
        return catalog


def parse_catalog(text: str, name: str, now: datetime) -> Catalog:
    """Read a catalogue; ``name`` is the file's, for messages. Raises CatalogError naming file, line and key."""
    root = open_catalog(text, name)
    providers = frozenset(provider for provider, _ in root.mapping("providers", None).mappings(PROVIDER_KEYS))
    prices = dict(_prices(root, now))
    entries = dict(root.mapping("models", None).mappings(MODEL_KEYS))
    models = tuple(_model(model, entry, providers, prices) for model, entry in entries.items())
    if not models:
        raise root.wrong("models", "at least one is needed")
    routing = root.mapping("routing", ROUTING_KEYS)
    classifier = routing.text("classifier_model", "")
    if classifier and classifier not in entries:
        raise routing.wrong("classifier_model", f"{classifier!r} is not in models")
    return Catalog(
        models=models,
        default_tier=_default_tier(root, routing, models),
        classifier_model=classifier,
        version=text_version(text),
        quality_lines={model: entry.line("quality_like") for model, entry in entries.items()},
    )


def unpriced(catalog: Catalog) -> tuple[Model, ...]:
    """The models that the router may choose without knowing what they cost."""
    return tuple(model for model in catalog.models if model.routable and model.price is None)


def unknown_arms(catalog: Catalog, arms: Collection[str]) -> list[tuple[str, str, int]]:
    """Models that stand for an arm which the heads lack: model, arm, and the line that says so."""
    return [
        (model.name, model.arm, catalog.quality_lines.get(model.name, 0))
        for model in catalog.models
        if model.arm not in arms
    ]


def _model(name: str, entry: Entry, providers: Collection[str], prices: Mapping[str, ReferencePrice]) -> Model:
    provider = entry.text("provider")
    if provider not in providers:
        raise entry.wrong("provider", f"{provider!r} is not in providers")
    abilities = entry.mapping("abilities", ABILITY_KEYS)
    window = entry.integer("context_window_tokens")
    most = entry.integer("max_output_tokens", window)
    if most > window:
        raise entry.wrong("max_output_tokens", f"{most} is more than the context window of {window}")
    return Model(
        name=name,
        provider=provider,
        tier=_tier(entry, "tier"),
        context_window_tokens=window,
        max_output_tokens=most,
        expected_output_tokens=entry.integer("expected_output_tokens", min(200, most)),
        abilities=Abilities(**{key: abilities.boolean(key, False) for key in ABILITY_KEYS}),
        self_hosted=entry.boolean("self_hosted", False),
        routable=entry.boolean("routable", True),
        price=prices.get(name),
        quality_like=_quality_like(entry),
        output_tokens_per_second=entry.number("output_tokens_per_second", 0.0, above=0, most=MAX_TOKENS_PER_SECOND),
        first_token_seconds=entry.number("first_token_seconds", 0.0, above=0, most=MAX_FIRST_TOKEN_SECONDS),
    )


def _quality_like(entry: Entry) -> str:
    arm = entry.text("quality_like", "")
    if arm.startswith(_CLASS) and arm not in CLASS_OF_TIER.values():
        raise entry.wrong("quality_like", f"{arm!r} is none of {', '.join(CLASS_OF_TIER.values())}")
    if arm != arm.strip() or len(arm.split()) > 1 or ("quality_like" in entry and not arm):
        raise entry.wrong("quality_like", f"{arm!r} is neither a class nor the name of an arm")
    return arm


def _default_tier(root: Entry, routing: Entry, models: Collection[Model]) -> Tier:
    """The tier that the file names; without one medium, or the nearest that has a model, a stronger one first."""
    filled = {model.tier for model in models if model.routable}
    if not filled:
        raise root.wrong("models", "none is routable")
    if "default_tier" in routing:
        tier = _tier(routing, "default_tier")
        if tier not in filled:
            raise routing.wrong("default_tier", f"no routable model is of tier {tier.name.lower()}")
        return tier
    return next(tier for tier in (Tier.MEDIUM, Tier.COMPLEX, Tier.SIMPLE) if tier in filled)


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

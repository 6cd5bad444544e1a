"""The model catalogue: the parts of ``deploy/catalog.yaml`` that routing needs, checked strictly, reloaded on change.

Prices here are reference prices for estimating; the ledger owns the prices that are charged.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mesh import money

log = logging.getLogger("tenth.router.catalog")


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


class CatalogError(ValueError):
    """The catalogue file is wrong; the text names file, line and key."""


# Keys of other services' concern are known here, so that a misspelt key is still refused.
_SECTIONS = {"providers", "routing", "models", "prices"}
_ROUTING_KEYS = {"default_tier", "classifier_model"}
_MODEL_KEYS = {
    "provider",
    "provider_model",
    "tier",
    "context_window_tokens",
    "max_output_tokens",
    "tokenizer",
    "abilities",
    "self_hosted",
    "routable",
    "expected_output_tokens",
}
_ABILITY_KEYS = {"tools", "json_schema", "vision", "korean"}
_PRICE_KEYS = {
    "model",
    "valid_from",
    "valid_to",
    "input",
    "output",
    "cached_input",
    "cache_write_5m",
    "cache_write_1h",
    "batch_input",
    "batch_output",
    "quantized_input",
    "quantized_output",
    "cpu_hour",
    "source",
    "confirmed",
}
_CPU_ENTRY = "cpu"


def parse_catalog(text: str, name: str, now: datetime) -> Catalog:
    """Read a catalogue; ``name`` is the file's, for messages. Raises CatalogError."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise CatalogError(f"{name}: not YAML: {error}") from None
    if node is None:
        raise CatalogError(f"{name}: empty")
    root = _Mapping(_Source(name), node, "", _SECTIONS)
    prices = dict(_prices(root, now))
    models = tuple(_models(root, prices))
    if not models:
        raise root.wrong("models: at least one is needed")
    routing = root.mapping("routing", _ROUTING_KEYS)
    classifier = routing.text("classifier_model", "")
    if classifier and classifier not in {model.name for model in models}:
        raise routing.wrong(f"classifier_model: {classifier!r} is not in models", "classifier_model")
    return Catalog(
        models=models,
        default_tier=_tier(routing, "default_tier", Tier.MEDIUM),
        classifier_model=classifier,
        version=hashlib.sha256(text.encode()).hexdigest()[:16],
    )


def _models(root: _Mapping, prices: dict[str, ReferencePrice]) -> Iterator[Model]:
    section = root.mapping("models", None)
    for name in section.names:
        entry = section.mapping(name, _MODEL_KEYS)
        abilities = entry.mapping("abilities", _ABILITY_KEYS)
        window = entry.integer("context_window_tokens")
        yield Model(
            name=name,
            provider=entry.text("provider"),
            tier=_tier(entry, "tier", None),
            context_window_tokens=window,
            max_output_tokens=entry.integer("max_output_tokens", window),
            expected_output_tokens=entry.integer("expected_output_tokens", 200),
            abilities=Abilities(**{key: abilities.boolean(key, False) for key in _ABILITY_KEYS}),
            self_hosted=entry.boolean("self_hosted", False),
            routable=entry.boolean("routable", True),
            price=prices.get(name),
        )


def _prices(root: _Mapping, now: datetime) -> Iterator[tuple[str, ReferencePrice]]:
    """The newest row of each model that holds now, oldest first, so that a dict keeps the newest."""
    rows = []
    for row in root.sequence("prices", _PRICE_KEYS):
        model = row.text("model")
        if model == _CPU_ENTRY:
            continue
        starts, ends = row.instant("valid_from"), row.instant("valid_to", optional=True)
        price = ReferencePrice(row.usd("input"), row.usd("output"))
        if starts is not None and starts <= now and (ends is None or now < ends) and row.boolean("confirmed", True):
            rows.append((starts, model, price))
    for _, model, price in sorted(rows, key=lambda row: row[0]):
        yield model, price


def _tier(mapping: _Mapping, key: str, default: Tier | None) -> Tier:
    name = mapping.text(key, default.name.lower() if default else None)
    tier = TIER_NAMES.get(name)
    if tier is None:
        raise mapping.wrong(f"{key}: {name!r} is none of {', '.join(TIER_NAMES)}", key)
    return tier


@dataclass(frozen=True, slots=True)
class _Source:
    name: str

    def wrong(self, node: Node, path: str, message: str) -> CatalogError:
        where = f"{path}." if path else ""
        return CatalogError(f"{self.name}:{node.start_mark.line + 1}: {where}{message}")


class _Mapping:
    """A YAML mapping whose keys are checked and whose values are typed, every complaint with its line."""

    def __init__(self, source: _Source, node: Node, path: str, allowed: set[str] | None) -> None:
        self._source, self._node, self._path = source, node, path
        self._values: dict[str, Node] = {}
        if not isinstance(node, MappingNode):
            raise source.wrong(node, path, "must be a mapping")
        for key, value in node.value:
            name = str(key.value)
            if allowed is not None and name not in allowed:
                raise source.wrong(key, path, f"{name}: unknown key")
            if name in self._values:
                raise source.wrong(key, path, f"{name}: given twice")
            self._values[name] = value

    def wrong(self, message: str, key: str = "") -> CatalogError:
        return self._source.wrong(self._values.get(key, self._node), self._path, message)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._values)

    def mapping(self, key: str, allowed: set[str] | None) -> _Mapping:
        node = self._values.get(key) or MappingNode("", [], self._node.start_mark, self._node.end_mark)
        return _Mapping(self._source, node, f"{self._path}.{key}" if self._path else key, allowed)

    def sequence(self, key: str, allowed: set[str]) -> Iterator[_Mapping]:
        node = self._values.get(key)
        if node is None:
            return
        if not isinstance(node, SequenceNode):
            raise self.wrong(f"{key}: must be a list", key)
        for index, item in enumerate(node.value):
            yield _Mapping(self._source, item, f"{key}[{index}]", allowed)

    def text(self, key: str, default: str | None = None) -> str:
        node = self._values.get(key)
        if node is None:
            if default is None:
                raise self.wrong(f"{key}: required")
            return default
        if not isinstance(node, ScalarNode) or not node.value:
            raise self.wrong(f"{key}: must be text", key)
        return str(node.value)

    def integer(self, key: str, default: int | None = None) -> int:
        text = self.text(key, None if default is None else str(default))
        if not text.isascii() or not text.isdigit() or int(text) < 1:
            raise self.wrong(f"{key}: {text!r} is not a whole number of at least 1", key)
        return int(text)

    def boolean(self, key: str, default: bool) -> bool:
        text = self.text(key, str(default).lower())
        if text not in ("true", "false"):
            raise self.wrong(f"{key}: {text!r} is neither true nor false", key)
        return text == "true"

    def usd(self, key: str) -> int:
        try:
            return money.parse_usd(self.text(key))
        except ValueError as error:
            raise error if isinstance(error, CatalogError) else self.wrong(f"{key}: {error}", key) from None

    def instant(self, key: str, *, optional: bool = False) -> datetime | None:
        text = self.text(key, "" if optional else None)
        if not text:
            return None
        try:
            value = datetime.fromisoformat(text)
        except ValueError:
            raise self.wrong(f"{key}: {text!r} is not a date", key) from None
        return value if value.tzinfo else value.replace(tzinfo=UTC)


class CatalogFile:
    """The catalogue in force. ``watch`` reads a changed file beside the running requests; a bad one is not taken."""

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        """Read the file. Raises CatalogError or OSError."""
        self._path = path
        self._now = now
        self._signature = self._stat()
        self.current = self._read()

    async def watch(self, interval_seconds: float) -> None:
        """Look for changes until cancelled."""
        while True:
            await asyncio.sleep(interval_seconds)
            await self.refresh()

    async def refresh(self) -> bool:
        """Take the file if it has changed and is good; True when it was taken."""
        try:
            signature = await asyncio.to_thread(self._stat)
            if signature == self._signature:
                return False
            self._signature = signature
            self.current = await asyncio.to_thread(self._read)
        except (CatalogError, OSError) as error:
            log.error("the changed catalogue is not taken, the old one stays: %s", error)
            return False
        log.info("catalogue %s taken from %s", self.current.version, self._path)
        return True

    def _stat(self) -> tuple[int, int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> Catalog:
        return parse_catalog(self._path.read_text("utf-8"), self._path.name, self._now())

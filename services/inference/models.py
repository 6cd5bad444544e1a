"""The catalogue as inference sees it: which model is served by which provider, checked strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from services.inference.policy import Ability

_SECTIONS = {"providers", "routing", "models", "prices"}
_PROVIDER_KEYS = {"backend", "base_url", "key_env", "key_file"}
# Keys of other services' concern are known here, so that a misspelt key is still refused.
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
_BACKENDS = ("vllm", "openai")


class CatalogError(ValueError):
    """The catalogue file is wrong; the text names file and key."""


@dataclass(frozen=True, slots=True)
class Provider:
    """Who runs models. ``backend`` is "vllm" (this process) or "openai" (an HTTP endpoint speaking its format)."""

    name: str
    backend: str
    base_url: str = ""
    key_env: str = ""
    key_file: Path | None = None

    @property
    def wants_key(self) -> bool:
        """False for endpoints without keys, e.g. a vLLM server of one's own."""
        return bool(self.key_env or self.key_file)


@dataclass(frozen=True, slots=True)
class Model:
    """One catalogue model."""

    name: str
    provider: Provider
    provider_model: str
    context_window: int
    max_output: int
    ability: Ability


def parse_catalog(text: str, source: str) -> dict[str, Model]:
    """The models by name. Raises CatalogError naming what is wrong."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CatalogError(f"{source}: not YAML: {error}") from None
    root = _mapping(raw, source, "the file", _SECTIONS)
    providers = {
        name: _provider(name, entry, source)
        for name, entry in _mapping(root.get("providers"), source, "providers").items()
    }
    return {
        name: _model(name, entry, providers, source)
        for name, entry in _mapping(root.get("models"), source, "models").items()
    }


def local_model(models: Mapping[str, Model], wanted: str) -> Model | None:
    """The model that this replica's engine serves: one engine per process. Raises ValueError."""
    if wanted == "none":
        return None
    if wanted:
        model = models.get(wanted)
        if model is None or model.provider.backend != "vllm":
            raise ValueError(f"{wanted!r} is no model of a vllm provider")
        return model
    local = [model for model in models.values() if model.provider.backend == "vllm"]
    if len({model.provider_model for model in local}) > 1:
        names = ", ".join(model.name for model in local)
        raise ValueError(f"the catalogue has several local models ({names}) and a replica serves one: name it")
    return local[0] if local else None


def _provider(name: str, raw: Any, source: str) -> Provider:
    where = f"providers.{name}"
    entry = _mapping(raw, source, where, _PROVIDER_KEYS)
    backend = entry.get("backend")
    if backend not in _BACKENDS:
        raise CatalogError(f"{source}: {where}.backend: {backend!r} is none of {', '.join(_BACKENDS)}")
    base_url = _text(entry, "base_url", source, where, "")
    if backend == "openai" and not base_url.startswith(("http://", "https://")):
        raise CatalogError(f"{source}: {where}.base_url: an http: or https: URL is needed")
    key_file = _text(entry, "key_file", source, where, "")
    return Provider(
        name, backend, base_url, _text(entry, "key_env", source, where, ""), Path(key_file) if key_file else None
    )


def _model(name: str, raw: Any, providers: Mapping[str, Provider], source: str) -> Model:
    where = f"models.{name}"
    entry = _mapping(raw, source, where, _MODEL_KEYS)
    provider = providers.get(_text(entry, "provider", source, where))
    if provider is None:
        raise CatalogError(f"{source}: {where}.provider: {entry['provider']!r} is not in providers")
    abilities = _mapping(entry.get("abilities") or {}, source, f"{where}.abilities", _ABILITY_KEYS)
    for key, value in abilities.items():
        if not isinstance(value, bool):
            raise CatalogError(f"{source}: {where}.abilities.{key}: true or false is needed")
    return Model(
        name=name,
        provider=provider,
        provider_model=_text(entry, "provider_model", source, where),
        context_window=_count(entry, "context_window_tokens", source, where),
        max_output=_count(entry, "max_output_tokens", source, where),
        ability=Ability(**{key: value for key, value in abilities.items() if key != "korean"}),
    )


def _mapping(raw: Any, source: str, where: str, keys: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise CatalogError(f"{source}: {where}: a mapping is needed")
    unknown = sorted(str(key) for key in raw if keys is not None and key not in keys)
    if unknown:
        raise CatalogError(f"{source}: {where}: unknown key {unknown[0]!r}")
    return raw


def _text(entry: dict[str, Any], key: str, source: str, where: str, default: str | None = None) -> str:
    value = entry.get(key, default)
    if not isinstance(value, str) or (default is None and not value):
        raise CatalogError(f"{source}: {where}.{key}: a text is needed")
    return value


def _count(entry: dict[str, Any], key: str, source: str, where: str) -> int:
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CatalogError(f"{source}: {where}.{key}: a whole number of at least 1 is needed")
    return value

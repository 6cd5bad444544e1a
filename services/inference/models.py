"""The catalogue as inference sees it: which model is served by which provider."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mesh.catalog import ABILITY_KEYS, MODEL_KEYS, PROVIDER_KEYS, Entry, open_catalog
from services.inference.policy import Ability
from services.inference.usage import Family, family_of

_BACKENDS = ("vllm", "openai")


@dataclass(frozen=True, slots=True)
class Provider:
    """Who runs models. ``backend`` is "vllm" (this process) or "openai" (an HTTP endpoint speaking its format);
    ``family`` says how it counts what was used."""

    name: str
    backend: str
    base_url: str = ""
    key_env: str = ""
    key_file: Path | None = None
    family: Family = Family.UNKNOWN

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
    root = open_catalog(text, source)
    providers = {
        name: _provider(name, entry)
        for name, entry in root.mapping("providers", None, required=True).mappings(PROVIDER_KEYS)
    }
    return {
        name: _model(name, entry, providers)
        for name, entry in root.mapping("models", None, required=True).mappings(MODEL_KEYS)
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


def _provider(name: str, entry: Entry) -> Provider:
    backend = entry.choice("backend", _BACKENDS)
    base_url = entry.text("base_url", "")
    if backend == "openai" and not base_url.startswith(("http://", "https://")):
        raise entry.wrong("base_url", "an http: or https: URL is needed")
    key_file = entry.text("key_file", "")
    if "usage" in entry:
        family = Family(entry.choice("usage", [each.value for each in Family]))
    else:
        family = family_of(backend, urlsplit(base_url).hostname or "")
    return Provider(name, backend, base_url, entry.text("key_env", ""), Path(key_file) if key_file else None, family)


def _model(name: str, entry: Entry, providers: Mapping[str, Provider]) -> Model:
    provider = providers.get(entry.text("provider"))
    if provider is None:
        raise entry.wrong("provider", f"{entry.text('provider')!r} is not in providers")
    abilities = entry.mapping("abilities", ABILITY_KEYS)
    return Model(
        name=name,
        provider=provider,
        provider_model=entry.text("provider_model"),
        context_window=entry.integer("context_window_tokens"),
        max_output=entry.integer("max_output_tokens"),
        ability=Ability(**{key: abilities.boolean(key, False) for key in ABILITY_KEYS - {"korean", "logprobs"}}),
    )

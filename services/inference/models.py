"""The catalogue as inference sees it: which model is served by which provider."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from mesh.catalog import ABILITY_KEYS, MODEL_KEYS, PROVIDER_KEYS, Entry, open_catalog
from services.inference.call import DROP, LIMIT_NAMES, PARAMETERS, REFUSE, CallRules
from services.inference.policy import Ability
from services.inference.usage import Family, family_of

_BACKENDS = ("vllm", "openai", "azure", "anthropic")
_BATCHES: Mapping[str, tuple[str, ...]] = {
    "openai": ("none", "openai", "anthropic"),
    "anthropic": ("none", "anthropic"),
}
"""The batch interfaces that a backend's provider may have; the others have none."""
_BY_BACKEND: Mapping[str, Mapping[str, str]] = {
    # The Messages API of 2026-10-21 refuses a request that has them at all; the others it never had.
    "anthropic": {
        "temperature": DROP,
        "top_p": DROP,
        "seed": DROP,
        "frequency_penalty": DROP,
        "presence_penalty": DROP,
        "logprobs": REFUSE,
    }
}
"""Parameters that a whole backend does not take; an entry's own word goes before it."""


@dataclass(frozen=True, slots=True)
class Provider:
    """Who runs models. ``backend`` is "vllm" (this process), "openai" (an HTTP endpoint speaking its format), "azure"
    (the same with Azure's paths, which ``api_version`` belongs to) or "anthropic" (the Messages API); ``family`` says
    how it counts what was used. ``max_concurrent_requests`` 0: no limit. ``batches`` is the batch interface that it
    has: "openai", "anthropic" or "none"."""

    name: str
    backend: str
    base_url: str = ""
    key_env: str = ""
    key_file: Path | None = None
    family: Family = Family.UNKNOWN
    api_version: str = ""
    max_concurrent_requests: int = 0
    batches: str = "none"

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
    rules: CallRules = field(default_factory=CallRules)
    batch_rules: CallRules = field(default_factory=CallRules)
    """The same for its provider's batches, which may be of another format than its online calls."""
    adapter: str = ""
    """A LoRA adapter's folder under the models directory, put on the provider's model; empty: none."""
    tool_format: str = ""
    """The name of vLLM's parser of the local model's tool calls; empty: it calls none."""


def parse_catalog(text: str, source: str) -> dict[str, Model]:
    """The models by name. Raises CatalogError naming what is wrong."""
    root = open_catalog(text, source)
    entries = dict(root.mapping("providers", None, required=True).mappings(PROVIDER_KEYS))
    providers = {name: _provider(name, entry) for name, entry in entries.items()}
    models: dict[str, Model] = {}
    for name, entry in root.mapping("models", None, required=True).mappings(MODEL_KEYS):
        model = models[name] = _model(name, entry, providers, entries)
        if model.tool_format and tool_format_of(models, model) != model.tool_format:
            raise entry.wrong("tool_format", f"another model of {model.provider_model} has another")
    return models


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
    # The engine has the plain model's name, where the catalogue has one beside those with adapters.
    return next((model for model in local if not model.adapter), local[0] if local else None)


def tool_format_of(models: Mapping[str, Model], local: Model) -> str:
    """The format of tool calls of a local engine: of the model itself, or one that shares its engine; empty: none."""
    shared = (
        model.tool_format
        for model in models.values()
        if model.provider.backend == "vllm" and model.provider_model == local.provider_model
    )
    return next(filter(None, shared), "")


def _provider(name: str, entry: Entry) -> Provider:
    backend = entry.choice("backend", _BACKENDS)
    base_url = entry.text("base_url", "")
    if backend != "vllm" and not base_url.startswith(("http://", "https://")):
        raise entry.wrong("base_url", "an http: or https: URL is needed")
    key_file = entry.text("key_file", "")
    if "usage" in entry:
        family = Family(entry.choice("usage", [each.value for each in Family]))
    else:
        family = family_of(backend, urlsplit(base_url).hostname or "")
    if ("api_version" in entry) != (backend == "azure"):
        raise entry.wrong("api_version", "needed by the backend azure, and by no other")
    return Provider(
        name,
        backend,
        base_url,
        entry.text("key_env", ""),
        Path(key_file) if key_file else None,
        family,
        entry.text("api_version", ""),
        entry.integer("max_concurrent_requests", 0),
        entry.choice("batches", _BATCHES.get(backend, ("none",)), _batches(backend, urlsplit(base_url).hostname)),
    )


def _batches(backend: str, host: str | None) -> str:
    """The batch interface of a provider whose entry names none: servers that only speak OpenAI's format have none."""
    if backend == "anthropic":
        return "anthropic"
    return "openai" if backend == "openai" and host == "api.openai.com" else "none"


def _rules(backend: str, *entries: Entry) -> CallRules:
    """How a model is called: by its backend, its provider's entry and its own, the later before the earlier."""
    unsupported = dict(_BY_BACKEND.get(backend, {}))
    limit_name, hedge = "", 0.0
    for entry in entries:
        declared = entry.mapping("unsupported", PARAMETERS)
        for name in declared:
            unsupported[name] = declared.choice(name, (DROP, REFUSE, "take"))
            if name == "prompt_cache_hint" and unsupported[name] == REFUSE:
                raise declared.wrong(name, "nobody asks for it: it can be dropped, not refused")
        if "output_limit_name" in entry:
            limit_name = entry.choice("output_limit_name", LIMIT_NAMES)
        if "hedge_after_seconds" in entry:
            hedge = entry.number("hedge_after_seconds", above=0)
            if backend == "vllm":
                raise entry.wrong("hedge_after_seconds", "an engine of one's own is not asked twice")
    return CallRules({name: what for name, what in unsupported.items() if what != "take"}, limit_name, hedge)


def _model(name: str, entry: Entry, providers: Mapping[str, Provider], entries: Mapping[str, Entry]) -> Model:
    provider = providers.get(entry.text("provider"))
    if provider is None:
        raise entry.wrong("provider", f"{entry.text('provider')!r} is not in providers")
    if "adapter" in entry and provider.backend != "vllm":
        raise entry.wrong("adapter", "only an engine of one's own takes adapters (backend: vllm)")
    abilities = entry.mapping("abilities", ABILITY_KEYS)
    if "tool_format" in entry and provider.backend != "vllm":
        raise entry.wrong("tool_format", "only an engine of one's own reads tool calls itself (backend: vllm)")
    if provider.backend == "vllm" and abilities.boolean("tools", False) != ("tool_format" in entry):
        raise entry.wrong("tool_format", "a local model has it if, and only if, its abilities have tools: true")
    return Model(
        name=name,
        provider=provider,
        provider_model=entry.text("provider_model"),
        context_window=entry.integer("context_window_tokens"),
        max_output=entry.integer("max_output_tokens"),
        ability=Ability(**{key: abilities.boolean(key, False) for key in ABILITY_KEYS - {"korean", "logprobs"}}),
        rules=_rules(provider.backend, entries[provider.name], entry),
        batch_rules=_rules(
            provider.backend if provider.batches == "none" else provider.batches, entries[provider.name], entry
        ),
        adapter=entry.text("adapter", ""),
        tool_format=entry.text("tool_format") if "tool_format" in entry else "",
    )

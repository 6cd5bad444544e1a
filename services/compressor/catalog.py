"""What the compressor needs of ``deploy/catalog.yaml``: a model's tokenizer, context window, prices and prompt cache.

Prices here are reference prices for weighing a cut; the ledger owns those that are charged. A model's ``prompt_cache``
keys take the place of its provider's defaults, each by itself.

| provider | least tokens | step | kept | read | written |
|---|---|---|---|---|---|
| openai | 1,024 | 128 | 5 to 10 minutes | price row (0.1x to 0.5x by model) | as input |
| anthropic | 512 to 4,096 by model | 1 | 5 minutes (1 hour at 2x) | 0.1x | 1.25x |
| gemini | 2,048 to 4,096 by model | 1 | not promised | 0.1x | as input |
| own vLLM | 16, its block | 16 | until evicted | price row | as input |

(OpenAI: platform.openai.com/docs/guides/prompt-caching; Anthropic: docs.claude.com, prompt caching; Gemini:
ai.google.dev/gemini-api/docs/caching; vLLM: automatic prefix caching, ``block_size``.) Another provider is taken to
cache like OpenAI where its price row says ``cached_input``, and not at all where it does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from mesh.catalog import MODEL_KEYS, PRICE_KEYS, PROMPT_CACHE_KEYS, PROVIDER_KEYS, Entry, open_catalog
from services.compressor.money import CacheTerms, InputPrice

TOKENIZERS = ("o200k_base", "cl100k_base", "claude", "local")

_CPU, _GPU = "cpu", "gpu:"
_TTL_SECONDS: Final = 300.0
MOST_MULTIPLIER = 100.0
_TERMS: Mapping[str, CacheTerms] = {
    "openai": CacheTerms(1024, 1024, 128, _TTL_SECONDS),
    "anthropic": CacheTerms(512, 4096, 1, _TTL_SECONDS, marked=True),
    "gemini": CacheTerms(2048, 4096, 1, _TTL_SECONDS),
    "vllm": CacheTerms(16, 16, 16, _TTL_SECONDS),
}
_MULTIPLIERS: Mapping[str, tuple[float, float]] = {"anthropic": (0.1, 1.25), "gemini": (0.1, 1.0)}
"""Read and write prices as shares of the input price, where no row says them."""
_HOSTS = {"openai.com": "openai", "anthropic.com": "anthropic", "googleapis.com": "gemini"}


@dataclass(frozen=True, slots=True)
class DatedPrice:
    """The prices of a model from one instant up to another; None is open."""

    starts: datetime
    ends: datetime | None
    price: InputPrice
    output: int | None = None
    """Nano-USD per million output tokens; None: not known."""


@dataclass(frozen=True, slots=True)
class Model:
    """How a model's tokens are counted, how many it takes, and what they cost."""

    name: str
    tokenizer: str
    provider_model: str
    context_window_tokens: int
    prices: tuple[DatedPrice, ...] = ()
    """Newest first."""
    cache: CacheTerms | None = None
    """When its provider caches the start of a prompt; None: not known to."""
    cpu_hour_nano_usd: int = 0
    """What an hour of one core costs; 0: not known."""

    def price(self, at: datetime) -> InputPrice | None:
        """The input price that holds at an instant."""
        row = self._row(at)
        return None if row is None else row.price

    def output_price(self, at: datetime) -> int | None:
        """The price of output tokens that holds at an instant, nano-USD per million."""
        row = self._row(at)
        return None if row is None else row.output

    def _row(self, at: datetime) -> DatedPrice | None:
        held = (row for row in self.prices if row.starts <= at and (row.ends is None or at < row.ends))
        return next(held, None)


@dataclass(frozen=True, slots=True)
class _Row:
    """A price row as it stands in the file, nano-USD per million tokens."""

    starts: datetime
    ends: datetime | None
    input: int
    cached: int | None
    written: int | None
    output: int | None


def parse_catalog(text: str, name: str) -> dict[str, Model]:
    """The models by name; ``name`` is the file's, for messages. Raises CatalogError."""
    root = open_catalog(text, name)
    providers = {key: _style(key, entry) for key, entry in root.mapping("providers", None).mappings(PROVIDER_KEYS)}
    rows, cpu_hour = _prices(root)
    result = {}
    for model, entry in root.mapping("models", None, required=True).mappings(MODEL_KEYS):
        style = providers.get(entry.text("provider", ""), "unknown")
        own = entry.mapping("prompt_cache", PROMPT_CACHE_KEYS)
        terms = _terms(own, style, any(row.cached is not None for row in rows.get(model, ())))
        read, written = _multipliers(own, style)
        result[model] = Model(
            name=model,
            tokenizer=entry.choice("tokenizer", TOKENIZERS),
            context_window_tokens=entry.integer("context_window_tokens"),
            provider_model=entry.text("provider_model"),
            prices=tuple(_dated(row, read, written) for row in rows.get(model, ())),
            cache=terms,
            cpu_hour_nano_usd=cpu_hour,
        )
    return result


def _style(name: str, entry: Entry) -> str:
    """Whose prompt cache a provider's is like: what ``usage`` says, else by its host or backend."""
    usage = entry.text("usage", "")
    if usage:
        return usage
    style = {"vllm": "vllm", "anthropic": "anthropic", "azure": "openai"}.get(entry.text("backend", ""))
    if style:
        return style
    host = entry.text("base_url", "").partition("://")[2].partition("/")[0].partition(":")[0]
    return next((style for end, style in _HOSTS.items() if host == end or host.endswith(f".{end}")), "unknown")


def _terms(own: Entry, style: str, priced: bool) -> CacheTerms | None:
    base = _TERMS.get(style)
    if base is None:
        if not (priced or any(True for _ in own)):
            return None
        base = _TERMS["openai"]
    given = "minimum_tokens" in own
    return CacheTerms(
        possible_tokens=own.integer("minimum_tokens") if given else base.possible_tokens,
        certain_tokens=own.integer("minimum_tokens") if given else base.certain_tokens,
        step_tokens=own.integer("step_tokens", base.step_tokens),
        ttl_seconds=own.number("ttl_seconds", base.ttl_seconds, above=0),
        marked=base.marked,
    )


@dataclass(frozen=True, slots=True)
class _Multiplier:
    """A price as a share of the input price: the file's own word, and the provider's usual one."""

    own: float | None
    usual: float

    def of(self, whole: int, row: int | None) -> int:
        """The file's own word goes before a price row, the row before what is usual."""
        if self.own is not None:
            return round(whole * self.own)
        return row if row is not None else round(whole * self.usual)


def _multipliers(own: Entry, style: str) -> tuple[_Multiplier, _Multiplier]:
    read = own.number("read_multiplier", above=0, most=1) if "read_multiplier" in own else None
    written = own.number("write_multiplier", above=0, most=MOST_MULTIPLIER) if "write_multiplier" in own else None
    usual_read, usual_written = _MULTIPLIERS.get(style, (1.0, 1.0))
    return _Multiplier(read, usual_read), _Multiplier(written, usual_written)


def _dated(row: _Row, read: _Multiplier, written: _Multiplier) -> DatedPrice:
    price = InputPrice(row.input, read.of(row.input, row.cached), written.of(row.input, row.written))
    return DatedPrice(row.starts, row.ends, price, row.output)


def _prices(root: Entry) -> tuple[Mapping[str, Sequence[_Row]], int]:
    """The confirmed rows of each model, newest first, and the newest price of a CPU hour."""
    rows: dict[str, list[_Row]] = {}
    cpu: tuple[datetime, int] | None = None
    for row in root.sequence("prices", PRICE_KEYS):
        model = row.text("model")
        starts = row.instant("valid_from")
        if model == _CPU:
            hour = row.usd("cpu_hour")
            cpu = max(cpu, (starts, hour)) if cpu is not None else (starts, hour)
        elif not model.startswith(_GPU) and row.boolean("confirmed", True):
            rows.setdefault(model, []).append(
                _Row(
                    starts,
                    row.instant("valid_to") if "valid_to" in row else None,
                    row.usd("input"),
                    row.usd("cached_input") if "cached_input" in row else None,
                    row.usd("cache_write_5m") if "cache_write_5m" in row else None,
                    row.usd("output") if "output" in row else None,
                )
            )
    for them in rows.values():
        them.sort(key=lambda row: row.starts, reverse=True)
    return rows, 0 if cpu is None else cpu[1]

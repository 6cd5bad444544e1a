"""The catalogue as the compressor reads it: prices by date, prompt caches by provider, complaints with their line."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from mesh.catalog import CatalogError
from services.compressor.catalog import Model, parse_catalog
from services.compressor.money import CacheTerms, InputPrice

NOW = datetime(2026, 11, 26, tzinfo=UTC)
TEXT = """
providers:
  openai: { backend: openai, base_url: "https://api.openai.com/v1" }
  claude: { backend: openai, base_url: "https://api.anthropic.com/v1/" }
  google: { backend: openai, base_url: "https://generativelanguage.googleapis.com/v1beta/openai/" }
  own: { backend: vllm }
  gateway: { backend: openai, base_url: "https://openai.com.example.org/v1" }
  named: { backend: openai, base_url: "https://example.org/v1", usage: anthropic }
models:
  model: { provider: PROVIDER, provider_model: m, tokenizer: cl100k_base, context_window_tokens: 8192 CACHE }
prices:
  - { model: model, valid_from: 2025-01-01, input: "3", output: "9", source: s }
  - { model: model, valid_from: 2026-01-01, input: "1", output: "4", source: s ROW }
  - { model: model, valid_from: 2027-01-01, input: "2", output: "4", source: s }
  - { model: cpu, valid_from: 2025-01-01, cpu_hour: "0.04", source: s }
"""


def model(provider: str = "openai", cache: str = "", row: str = "") -> Model:
    text = TEXT.replace("PROVIDER", provider).replace("CACHE", cache).replace("ROW", row)
    return parse_catalog(text, "file.yaml")["model"]


def test_the_shipped_file() -> None:
    models = parse_catalog(Path("deploy/catalog.yaml").read_text("utf-8"), "deploy/catalog.yaml")
    opus = models["claude-opus-4-7"]
    assert opus.price(NOW) == InputPrice(5_000_000_000, 500_000_000, 6_250_000_000)
    assert opus.price(datetime(2025, 6, 1, tzinfo=UTC)) == InputPrice(15_000_000_000, 1_500_000_000, 18_750_000_000)
    assert opus.cache is not None
    assert opus.cache.marked
    assert models["gpt-4o"].cache == CacheTerms(1024, 1024, 128)
    assert models["smollm2-135m"].cache == CacheTerms(16, 16, 16)
    assert {each.cpu_hour_nano_usd for each in models.values()} == {40_000_000}


@pytest.mark.parametrize(
    ("provider", "row", "price"),
    [
        ("openai", "", InputPrice(10**9, 10**9, 10**9)),
        ("openai", ', cached_input: "0.25"', InputPrice(10**9, 250_000_000, 10**9)),
        ("claude", "", InputPrice(10**9, 100_000_000, 1_250_000_000)),
        ("named", ', cache_write_5m: "1.5"', InputPrice(10**9, 100_000_000, 1_500_000_000)),
        ("google", "", InputPrice(10**9, 100_000_000, 10**9)),
    ],
)
def test_prices_of_the_cache_come_from_the_row_else_from_the_provider(
    provider: str, row: str, price: InputPrice
) -> None:
    found = model(provider, row=row)
    assert found.price(NOW) == price
    assert found.price(datetime(2024, 1, 1, tzinfo=UTC)) is None


def test_the_price_of_output_is_that_of_its_time() -> None:
    models = parse_catalog(Path("deploy/catalog.yaml").read_text(), "catalog.yaml")
    assert models["claude-opus-4-7"].output_price(datetime(2026, 1, 1, tzinfo=UTC)) == 75_000_000_000
    assert models["claude-opus-4-7"].output_price(NOW) == 25_000_000_000
    assert models["claude-opus-4-7"].output_price(datetime(2024, 1, 1, tzinfo=UTC)) is None


def test_an_unknown_provider_caches_where_its_row_says_so() -> None:
    assert model("gateway").cache is None
    assert model("gateway", row=', cached_input: "0.5"').cache == CacheTerms(1024, 1024, 128)
    assert model("gateway", ", prompt_cache: { minimum_tokens: 64 }").cache == CacheTerms(64, 64, 128)


def test_the_models_own_words_go_first() -> None:
    terms = "minimum_tokens: 2048, step_tokens: 8, ttl_seconds: 3600, read_multiplier: 0.2, write_multiplier: 2"
    own = f", prompt_cache: {{ {terms} }}"
    found = model("claude", own, ', cached_input: "0.9"')
    assert found.cache == CacheTerms(2048, 2048, 8, 3600.0, marked=True)
    assert found.price(NOW) == InputPrice(10**9, 200_000_000, 2 * 10**9)


@pytest.mark.parametrize(
    ("cache", "complaint"),
    [
        ("{ minimum: 5 }", "file.yaml:10: models.model.prompt_cache.minimum: unknown key"),
        ("{ minimum_tokens: 0 }", "file.yaml:10: models.model.prompt_cache.minimum_tokens: '0' is not a whole number"),
        ("{ step_tokens: x }", "file.yaml:10: models.model.prompt_cache.step_tokens"),
        ("{ read_multiplier: 1.5 }", "file.yaml:10: models.model.prompt_cache.read_multiplier"),
        ("{ write_multiplier: 0 }", "file.yaml:10: models.model.prompt_cache.write_multiplier"),
        ("{ ttl_seconds: -1 }", "file.yaml:10: models.model.prompt_cache.ttl_seconds"),
        ("5", "file.yaml:10: models.model.prompt_cache: must be a mapping"),
    ],
)
def test_a_wrong_key_is_named_with_its_line(cache: str, complaint: str) -> None:
    with pytest.raises(CatalogError) as caught:
        model(cache=f", prompt_cache: {cache}")
    assert str(caught.value).startswith(complaint)

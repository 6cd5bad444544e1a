"""The catalogue is read strictly, and a bad change is not taken."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mesh.catalog import CatalogError, WatchedFile
from services.router.catalog import ReferencePrice, Tier, parse_catalog

NOW = datetime(2026, 11, 22, tzinfo=UTC)
GOOD = """
routing:
  default_tier: medium
  classifier_model: small
models:
  small:
    provider: local
    provider_model: folder
    tier: simple
    context_window_tokens: 8192
    max_output_tokens: 2048
    tokenizer: local
    abilities: { json_schema: true }
    self_hosted: true
  large:
    provider: openai
    provider_model: large
    tier: complex
    context_window_tokens: 100000
    tokenizer: o200k_base
    routable: false
prices:
  - { model: small, valid_from: 2025-01-01, input: "1", output: "2", source: test }
  - { model: small, valid_from: 2026-01-01, input: "3", output: "4", source: test }
  - { model: small, valid_from: 2027-01-01, input: "5", output: "6", source: test }
  - { model: large, valid_from: 2025-01-01, valid_to: 2026-01-01, input: "7", output: "8", source: test }
  - { model: cpu, valid_from: 2025-01-01, cpu_hour: "0.04", source: test }
"""


def test_the_shipped_catalogue_is_good() -> None:
    catalog = parse_catalog(Path("deploy/catalog.yaml").read_text("utf-8"), "catalog.yaml", NOW)
    assert {model.tier for model in catalog.models if model.routable} == set(Tier)
    assert all(model.price is not None for model in catalog.models)


def test_models_prices_and_defaults() -> None:
    catalog = parse_catalog(GOOD, "c.yaml", NOW)
    small, large = catalog.models
    assert (small.name, small.tier, small.self_hosted, small.routable) == ("small", Tier.SIMPLE, True, True)
    assert small.abilities.json_schema
    assert not small.abilities.tools
    assert small.price == ReferencePrice(3_000_000_000, 4_000_000_000)  # The newest row that holds today.
    assert large.price is None  # Its only row has ended: unknown, not free.
    assert large.max_output_tokens == large.context_window_tokens
    assert not large.routable


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("tier: simple", "teir: simple"), "c.yaml:9: models.small.teir: unknown key"),
        (("tier: simple", "tier: easy"), "c.yaml:9: models.small.tier: 'easy' is none of"),
        (("provider: local", "provider_model: x"), "given twice"),
        (("context_window_tokens: 8192", "context_window_tokens: -1"), "not a whole number"),
        (("self_hosted: true", "self_hosted: perhaps"), "neither true nor false"),
        (("json_schema: true", "jsonschema: true"), "models.small.abilities.jsonschema: unknown key"),
        (("classifier_model: small", "classifier_model: huge"), "c.yaml:4: routing.classifier_model: 'huge'"),
        (('input: "1"', 'input: "-1"'), "prices[0].input: '-1' is negative"),
        (("valid_from: 2025-01-01, input", "valid_from: soon, input"), "is not a date"),
        (("prices:", "pricing:"), "pricing: unknown key"),
        (("  large:", "  small:"), "small: given twice"),
        (("models:", "models: [\n#"), "not YAML"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(change: tuple[str, str], message: str) -> None:
    with pytest.raises(CatalogError) as caught:
        parse_catalog(GOOD.replace(*change, 1), "c.yaml", NOW)
    assert message in str(caught.value)


def test_an_empty_catalogue_is_refused() -> None:
    for text in ("", "models: {}", "- a"):
        with pytest.raises(CatalogError):
            parse_catalog(text, "c.yaml", NOW)


async def test_a_changed_file_is_taken_and_a_bad_one_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(GOOD)
    file = WatchedFile(path, lambda text, name: parse_catalog(text, name, NOW))
    first = file.current
    assert not await file.refresh()
    path.write_text(GOOD.replace("tier: simple", "tier: medium"))
    os.utime(path, ns=(1, 1))
    assert await file.refresh()
    second = file.current
    assert second.models[0].tier is Tier.MEDIUM
    assert second.version != first.version
    path.write_text("models: nothing")
    assert not await file.refresh()
    assert file.current is second
    assert "the old one stays" in caplog.text
    path.unlink()
    assert not await file.refresh()
    assert file.current is second

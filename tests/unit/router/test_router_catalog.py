"""The catalogue is read strictly, and a bad change is not taken."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mesh.catalog import CatalogError, WatchedFile
from services.router.catalog import (
    CLASS_OF_TIER,
    CatalogReader,
    ReferencePrice,
    Tier,
    parse_catalog,
    unknown_arms,
)

NOW = datetime(2026, 11, 22, tzinfo=UTC)
GOOD = """
providers: { local: { backend: vllm }, openai: { backend: openai, base_url: "https://x" } }
routing:
  default_tier: simple
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
        (("    tier: simple", "    teir: simple"), "c.yaml:10: models.small.teir: unknown key"),
        (("    tier: simple", "    tier: easy"), "c.yaml:10: models.small.tier: 'easy' is none of"),
        (("provider: local", "provider_model: x"), "given twice"),
        (("context_window_tokens: 8192", "context_window_tokens: -1"), "not a whole number"),
        (("self_hosted: true", "self_hosted: perhaps"), "neither true nor false"),
        (("json_schema: true", "jsonschema: true"), "models.small.abilities.jsonschema: unknown key"),
        (("classifier_model: small", "classifier_model: huge"), "c.yaml:5: routing.classifier_model: 'huge'"),
        (('input: "1"', 'input: "-1"'), "prices[0].input: '-1' is negative"),
        (("valid_from: 2025-01-01, input", "valid_from: soon, input"), "is not a date"),
        (("prices:", "pricing:"), "pricing: unknown key"),
        (("  large:", "  small:"), "small: given twice"),
        (("models:", "models: [\n#"), "not YAML"),
        (("provider: local", "provider: locl"), "c.yaml:8: models.small.provider: 'locl' is not in providers"),
        (
            ("default_tier: simple", "default_tier: medium"),
            "c.yaml:4: routing.default_tier: no routable model is of tier",
        ),
        (("default_tier: simple", "default_tier: complex"), "no routable model is of tier complex"),
        (("self_hosted: true", "routable: false"), "c.yaml:7: models: none is routable"),
        (
            ("max_output_tokens: 2048", "max_output_tokens: 8193"),
            "c.yaml:12: models.small.max_output_tokens: 8193 is more",
        ),
        (
            ("self_hosted: true", "quality_like: class:tiny"),
            "c.yaml:15: models.small.quality_like: 'class:tiny' is none",
        ),
        (("self_hosted: true", 'quality_like: ""'), "c.yaml:15: models.small.quality_like: '' is neither"),
        (("self_hosted: true", "quality_like: a b"), "'a b' is neither a class nor the name of an arm"),
        (("self_hosted: true", "output_tokens_per_second: 0"), "c.yaml:15: models.small.output_tokens_per_second: '0'"),
        (("self_hosted: true", "output_tokens_per_second: -3"), "'-3' is not a number above 0"),
        (("self_hosted: true", "output_tokens_per_second: 1e9"), "is not a number above 0 and at most 100000"),
        (("self_hosted: true", "first_token_seconds: 601"), "c.yaml:15: models.small.first_token_seconds: '601'"),
        (("self_hosted: true", "first_token_seconds: .nan"), "is not a number above 0"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(change: tuple[str, str], message: str) -> None:
    with pytest.raises(CatalogError) as caught:
        parse_catalog(GOOD.replace(*change, 1), "c.yaml", NOW)
    assert message in str(caught.value)


def test_quality_and_speed() -> None:
    small, large = parse_catalog(GOOD, "c.yaml", NOW).models
    assert (small.quality_like, small.output_tokens_per_second, small.first_token_seconds) == ("", 0.0, 0.0)
    assert (small.arm, large.arm) == ("class:small", "class:large")
    measured = "quality_like: gpt-4-1106\n    output_tokens_per_second: 76\n    first_token_seconds: 0.98"
    small = parse_catalog(GOOD.replace("self_hosted: true", measured), "c.yaml", NOW).models[0]
    assert (small.arm, small.output_tokens_per_second, small.first_token_seconds) == ("gpt-4-1106", 76.0, 0.98)


def test_the_classes_are_those_that_the_recorded_outcomes_have() -> None:
    from services.router.datasets import CLASSES

    assert tuple(CLASS_OF_TIER[tier] for tier in Tier) == CLASSES


def test_arms_that_the_heads_lack_are_found_with_their_line() -> None:
    catalog = parse_catalog(GOOD.replace("self_hosted: true", "quality_like: gpt-9"), "c.yaml", NOW)
    assert unknown_arms(catalog, {"gpt-9", "class:large"}) == []
    # A model without the key is named by its own line.
    assert unknown_arms(catalog, {"gpt-4"}) == [("small", "gpt-9", 15), ("large", "class:large", 17)]


def test_without_a_default_tier_it_is_medium_or_the_nearest_that_has_a_model() -> None:
    bare = GOOD.replace("  default_tier: simple\n", "")
    assert parse_catalog(bare, "c.yaml", NOW).default_tier is Tier.SIMPLE
    both = bare.replace("    routable: false\n", "")
    assert parse_catalog(both, "c.yaml", NOW).default_tier is Tier.COMPLEX
    assert parse_catalog(both.replace("tier: simple", "tier: medium"), "c.yaml", NOW).default_tier is Tier.MEDIUM


def test_two_names_may_stand_for_one_model_of_a_provider() -> None:
    twin = GOOD.replace("provider: openai\n    provider_model: large", "provider: local\n    provider_model: folder")
    assert twin != GOOD
    assert len(parse_catalog(twin, "c.yaml", NOW).models) == 2


def test_a_model_without_a_price_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    read = CatalogReader(lambda: NOW)
    read(GOOD, "c.yaml")
    assert caplog.text == "", "large has none, and is chosen by name only"
    bare = GOOD.replace("    routable: false\n", "")
    for _ in range(3):
        assert read(bare, "c.yaml").models[1].price is None
    assert [record.message.partition(" has")[0] for record in caplog.records] == ["c.yaml:17: models.large"]
    read(GOOD, "c.yaml")
    read(bare, "c.yaml")
    assert len(caplog.records) == 2, "priced in between: news again"


@pytest.mark.parametrize("service", ["router", "inference", "compressor", "ledger"])
def test_every_service_takes_the_new_keys(service: str) -> None:
    from services.compressor.catalog import parse_catalog as compressor
    from services.inference.models import parse_catalog as inference
    from services.ledger.seeds import parse_self_hosted as ledger

    text = Path("deploy/catalog.yaml").read_text("utf-8")
    text = text.replace("output_tokens_per_second: 76", "output_tokens_per_second: 76\n    quality_like: class:small")
    readers: dict[str, Callable[[], object]] = {
        "router": lambda: [model.name for model in parse_catalog(text, "c.yaml", NOW).models],
        "inference": lambda: list(inference(text, "c.yaml")),
        "compressor": lambda: list(compressor(text, "c.yaml")),
        "ledger": lambda: list(ledger(text, "c.yaml")),
    }
    assert "smollm2-135m" in str(readers[service]())


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

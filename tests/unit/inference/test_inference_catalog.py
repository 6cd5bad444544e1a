"""The catalogue as inference reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.catalog import CatalogError
from services.inference.clients import key_reader
from services.inference.models import Provider, local_model, parse_catalog, tool_format_of

GOOD = """
providers:
  local: {backend: vllm}
  openai: {backend: openai, base_url: "https://api.openai.com/v1", key_env: OPENAI_API_KEY}
models:
  tiny: &m
    provider: local
    provider_model: tiny-folder
    context_window_tokens: 100
    max_output_tokens: 50
    abilities: {tools: false, json_schema: true}
  big: {<<: *m, provider: openai, provider_model: gpt-big}
"""


def test_the_shipped_catalogue_is_accepted() -> None:
    path = Path(__file__).parents[3] / "deploy" / "catalog.yaml"
    models = parse_catalog(path.read_text("utf-8"), str(path))
    local = local_model(models, "")
    assert local is not None
    assert local.name == "smollm2-135m"
    assert all(model.context_window >= model.max_output for model in models.values())


def test_models_know_their_provider() -> None:
    models = parse_catalog(GOOD, "c.yaml")
    assert models["big"].provider.wants_key
    assert not models["tiny"].provider.wants_key
    assert models["tiny"].ability.json_schema
    assert local_model(models, "none") is None
    with pytest.raises(ValueError, match="'big' is no model of a vllm provider"):
        local_model(models, "big")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("backend: vllm", "backend: llamacpp", r"providers\.local\.backend: 'llamacpp' is none of"),
        ("key_env:", "key_enw:", r"providers\.openai\.key_enw: unknown key"),
        ("https://api", "api", r"providers\.openai\.base_url"),
        ("provider: local", "provider: nobody", r"models\.tiny\.provider: 'nobody' is not in providers"),
        ("context_window_tokens: 100", "context_window_tokens: many", r"models\.tiny\.context_window_tokens"),
        ("tools: false", "tools: 1", r"models\.tiny\.abilities\.tools"),
        ("provider_model: tiny-folder", "provider_modell: x", r"models\.tiny\.provider_modell: unknown key"),
        ("tools: false", "tools: true", r"models\.tiny\.tool_format: a local model has it if, and only if"),
        (
            "provider: local",
            "provider: local\n    tool_format: hermes",
            r"models\.tiny\.tool_format: a local model has it if, and only if",
        ),
        ("provider: openai,", "provider: openai, tool_format: hermes,", r"models\.big\.tool_format: only an engine"),
        ("models:", "modells:", "modells: unknown key"),
        ("providers:", "providers: [", "not YAML"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, message: str) -> None:
    with pytest.raises(CatalogError, match=rf"c\.yaml:(\d+:)? {message}"):
        parse_catalog(GOOD.replace(old, new, 1), "c.yaml")


def test_models_of_one_engine_share_a_tool_format() -> None:
    tuned = "  tuned: {<<: *m, adapter: a, tool_format: FORMAT, abilities: {tools: true}}\n"
    text = GOOD + tuned.replace("FORMAT", "hermes")
    models = parse_catalog(text, "c.yaml")
    local = local_model(models, "")
    assert local is not None
    assert (local.name, local.tool_format, tool_format_of(models, local)) == ("tiny", "", "hermes")
    assert (models["tiny"].ability.tools, models["tuned"].ability.tools) == (False, True)
    assert tool_format_of(parse_catalog(GOOD, "c.yaml"), local) == ""
    other = tuned.replace("FORMAT", "llama3_json").replace("tuned", "other")
    with pytest.raises(CatalogError, match=r"models\.other\.tool_format: another model of tiny-folder has another"):
        parse_catalog(text + other, "c.yaml")


def test_two_local_folders_want_a_choice() -> None:
    two = GOOD + "  other: {<<: *m, provider_model: other-folder}\n"
    with pytest.raises(ValueError, match="several local models"):
        local_model(parse_catalog(two, "c.yaml"), "")


def test_a_key_file_is_read_again_and_survives_its_replacement(tmp_path: Path) -> None:
    path, now = tmp_path / "key", [0.0]
    path.write_text("one\n")
    key = key_reader(Provider("p", "openai", "http://x", key_file=path), {}, lambda: now[0])
    assert key() == "one"
    path.write_text("two")
    assert key() == "one"
    now[0] = 3
    assert key() == "two"
    path.unlink()
    now[0] = 6
    assert key() == "two"
    assert key_reader(Provider("p", "openai", "http://x", key_env="K"), {"K": " abc "}, lambda: 0.0)() == "abc"

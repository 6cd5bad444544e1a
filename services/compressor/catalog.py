"""What the compressor needs of ``deploy/catalog.yaml``: each model's tokenizer and context window."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.catalog import MODEL_KEYS, open_catalog

TOKENIZERS = ("o200k_base", "cl100k_base", "claude", "local")


@dataclass(frozen=True, slots=True)
class Model:
    """How a model's tokens are counted, and how many it takes."""

    name: str
    tokenizer: str
    provider_model: str
    context_window_tokens: int


def parse_catalog(text: str, name: str) -> dict[str, Model]:
    """The models by name; ``name`` is the file's, for messages. Raises CatalogError."""
    return {
        model: Model(
            name=model,
            tokenizer=entry.choice("tokenizer", TOKENIZERS),
            context_window_tokens=entry.integer("context_window_tokens"),
            provider_model=entry.text("provider_model"),
        )
        for model, entry in open_catalog(text, name).mapping("models", None, required=True).mappings(MODEL_KEYS)
    }

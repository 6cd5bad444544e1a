"""What the compressor needs of ``deploy/catalog.yaml``: each model's tokenizer and context window."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

log = logging.getLogger("tenth.compressor.catalog")

TOKENIZERS = ("o200k_base", "cl100k_base", "claude", "local")
_SECTIONS = {"providers", "routing", "models", "prices"}
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


@dataclass(frozen=True, slots=True)
class Model:
    """How a model's tokens are counted, and how many it takes."""

    name: str
    tokenizer: str
    provider_model: str
    context_window_tokens: int


class CatalogError(ValueError):
    """The catalogue file is wrong; the text names file, line and key."""


def parse_catalog(text: str, name: str) -> dict[str, Model]:
    """The models by name; ``name`` is the file's, for messages. Raises CatalogError."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise CatalogError(f"{name}: not YAML: {error}") from None
    if root is None:
        raise CatalogError(f"{name}: empty")
    sections = _entries(root, name, "", _SECTIONS)
    if "models" not in sections:
        raise CatalogError(f"{name}: models: required")
    models = {}
    for model, node in _entries(sections["models"], name, "models", None).items():
        path = f"models.{model}"
        entry = _entries(node, name, path, _MODEL_KEYS)
        tokenizer = _text(entry, "tokenizer", node, name, path)
        if tokenizer not in TOKENIZERS:
            raise _wrong(entry["tokenizer"], name, path, f"tokenizer: {tokenizer!r} is none of {', '.join(TOKENIZERS)}")
        window = _text(entry, "context_window_tokens", node, name, path)
        if not (window.isascii() and window.isdigit() and int(window) > 0):
            raise _wrong(node, name, path, f"context_window_tokens: {window!r} is not a whole number of at least 1")
        provider_model = _text(entry, "provider_model", node, name, path)
        models[model] = Model(model, tokenizer, provider_model, int(window))
    return models


def _entries(node: Node, name: str, path: str, allowed: set[str] | None) -> dict[str, Node]:
    if not isinstance(node, MappingNode):
        raise _wrong(node, name, path, "must be a mapping")
    result: dict[str, Node] = {}
    for key, value in node.value:
        text = str(key.value)
        if allowed is not None and text not in allowed:
            raise _wrong(key, name, path, f"{text}: unknown key")
        if text in result:
            raise _wrong(key, name, path, f"{text}: given twice")
        result[text] = value
    return result


def _text(entry: dict[str, Node], key: str, parent: Node, name: str, path: str) -> str:
    node = entry.get(key)
    if not isinstance(node, ScalarNode) or not node.value:
        raise _wrong(node or parent, name, path, f"{key}: required, as text")
    return str(node.value)


def _wrong(node: Node, name: str, path: str, message: str) -> CatalogError:
    where = f"{path}." if path else ""
    return CatalogError(f"{name}:{node.start_mark.line + 1}: {where}{message}")


class CatalogFile:
    """The models in force; ``watch`` takes a changed file, and not a bad one."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises CatalogError or OSError."""
        self._path = path
        self._signature = self._stat()
        self.models = self._read()

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
            self.models = await asyncio.to_thread(self._read)
        except (CatalogError, OSError) as error:
            log.error("the changed catalogue is not taken, the old one stays: %s", error)
            return False
        log.info("catalogue taken from %s", self._path)
        return True

    def _stat(self) -> tuple[int, int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> dict[str, Model]:
        return parse_catalog(self._path.read_text("utf-8"), self._path.name)

"""The form of the catalogue file: its sections and keys, a strict reader that names file, line and key, and a watcher
that takes a changed good file and never a bad one. What the entries mean is each service's own business.

The reader serves the callers file's ``tenants:`` section as well.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, TypeVar

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mesh import money
from mesh.receipt import Price, PriceStep

T = TypeVar("T")
log = logging.getLogger("tenth.catalog")

# Each service knows the keys of all, so that a misspelt key is refused wherever the file is read.
SECTIONS = frozenset({"providers", "routing", "models", "prices"})
CALL_KEYS = frozenset({"hedge_after_seconds", "output_limit_name", "unsupported"})
"""How a model is called: a provider's word holds for its models, a model's own goes before it."""
PROVIDER_KEYS = CALL_KEYS | {
    *("backend", "base_url", "key_env", "key_file", "usage"),
    *("api_version", "batches", "max_concurrent_requests"),
}
ROUTING_KEYS = frozenset({"default_tier", "classifier_model"})
MODEL_KEYS = CALL_KEYS | frozenset(
    {
        "provider",
        "provider_model",
        "adapter",
        "tool_format",
        "tier",
        "context_window_tokens",
        "max_output_tokens",
        "tokenizer",
        "abilities",
        "self_hosted",
        "routable",
        "expected_output_tokens",
        "quality_like",
        "output_tokens_per_second",
        "first_token_seconds",
        "prompt_cache",
    }
)
PROMPT_CACHE_KEYS = frozenset({"minimum_tokens", "step_tokens", "ttl_seconds", "read_multiplier", "write_multiplier"})
ABILITY_KEYS = frozenset({"tools", "json_schema", "vision", "korean", "logprobs"})
PRICE_KEYS = frozenset({"valid_from", "valid_to", "source", *(field.name for field in fields(Price))})
STEP_KEYS = frozenset({"above_input_tokens", *(field.name for field in fields(PriceStep) if field.name != "above")})

_TAG = "tag:yaml.org,2002:"
_MAX_MERGES = 20


class CatalogError(ValueError):
    """The file is wrong; the text names file, line and key."""


def open_catalog(text: str, name: str, allowed: Collection[str] | None = SECTIONS) -> Entry:
    """The file's outermost entry, without keys when the text is empty; ``name`` is the file's, for messages.

    Raises CatalogError.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise CatalogError(f"{name}: not YAML: {error}") from None
    except RecursionError:
        raise CatalogError(f"{name}: nested too deeply") from None
    start = yaml.Mark(name, 0, 0, 0, None, 0)
    return Entry(_Source(name), MappingNode("", [], start, start) if node is None else node, "", allowed)


def text_version(text: str) -> str:
    """A short hash of a file's text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class _Source:
    name: str

    def wrong(self, node: Node, path: str, message: str) -> CatalogError:
        return CatalogError(f"{self.name}:{node.start_mark.line + 1}: {f'{path}: ' if path else ''}{message}")


class Entry:
    """A mapping of the file whose keys are checked and whose values are typed; every complaint has its line.

    Reading a key that is absent and has no default raises CatalogError, as does every value of another form.
    """

    def __init__(self, source: _Source, node: Node, path: str, allowed: Collection[str] | None) -> None:
        """``allowed`` are the known keys; None takes any, as where the keys are names."""
        self.path = path
        self._source, self._node = source, node
        self._values = self._read(node, allowed, (), {})

    def __contains__(self, key: str) -> bool:
        """True when the key is given."""
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        """The keys, in the file's order."""
        return iter(self._values)

    def wrong(self, key: str, message: str) -> CatalogError:
        """What to raise for a key's value, or for the whole entry where the key is empty."""
        return self._source.wrong(self._values.get(key, self._node), self._below(key), message)

    def line(self, key: str) -> int:
        """The line of a key's value, from 1; that of the entry where the key is absent or empty."""
        return int(self._values.get(key, self._node).start_mark.line) + 1

    def mapping(self, key: str, allowed: Collection[str] | None, *, required: bool = False) -> Entry:
        """The entry under a key; one without keys when it is absent and not required."""
        node = self._given(key)
        if node is None:
            if required:
                raise self.wrong(key, "required")
            mark = self._values.get(key, self._node).start_mark
            node = MappingNode("", [], mark, mark)
        return Entry(self._source, node, self._below(key), allowed)

    def mappings(self, allowed: Collection[str]) -> Iterator[tuple[str, Entry]]:
        """The entries under all keys, which are names."""
        for name in self._values:
            yield name, self.mapping(name, allowed)

    def sequence(self, key: str, allowed: Collection[str]) -> Iterator[Entry]:
        """The entries of a list; none when it is absent."""
        node = self._given(key)
        if node is None:
            return
        if not isinstance(node, SequenceNode):
            raise self.wrong(key, "must be a list")
        for index, item in enumerate(node.value):
            yield Entry(self._source, item, f"{self._below(key)}[{index}]", allowed)

    def text(self, key: str, default: str | None = None) -> str:
        """A text; empty only where there is a default."""
        if key not in self and default is not None:
            return default
        node = self._scalar(key)
        if node.tag != f"{_TAG}str" or (default is None and not node.value):
            raise self.wrong(key, f"must be text, not {node.value!r}")
        return str(node.value)

    def texts(self, key: str, options: Sequence[str] | None = None) -> tuple[str, ...]:
        """A list of at least one text, each one of ``options`` if they are given; nothing when the key is absent."""
        if key not in self:
            return ()
        node = self._values[key]
        if not isinstance(node, SequenceNode) or not node.value:
            raise self.wrong(key, "must be a list of at least one text")
        for item in node.value:
            if not isinstance(item, ScalarNode) or item.tag != f"{_TAG}str" or not item.value:
                raise self._source.wrong(item, self._below(key), "must be text; numbers, yes and no need quotes")
            if options is not None and item.value not in options:
                raise self._source.wrong(item, self._below(key), f"{item.value!r} is none of {', '.join(options)}")
        return tuple(str(item.value) for item in node.value)

    def choice(self, key: str, options: Sequence[str], default: str | None = None) -> str:
        """One of some words; one that YAML takes for another kind of value, such as ``off``, needs no quotes."""
        word = default if key not in self and default is not None else str(self._scalar(key).value)
        if word not in options:
            raise self.wrong(key, f"{word!r} is none of {', '.join(options)}")
        return word

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number that int64 carries, in decimal digits."""
        if key not in self and default is not None:
            return default
        node = self._scalar(key)
        # YAML reads 010 as eight: such spellings are not taken.
        digits = node.tag == f"{_TAG}int" and re.fullmatch("0|[1-9][0-9]{0,18}", node.value)
        if not digits or not least <= int(node.value) <= money.MAX_NANO_USD:
            raise self.wrong(key, f"{node.value!r} is not a whole number of at least {least}")
        return int(node.value)

    def number(self, key: str, default: float | None = None, *, above: float, most: float = math.inf) -> float:
        """A finite number, whole or with a decimal point, within bounds: above the one, at most the other."""
        if key not in self and default is not None:
            return default
        node = self._scalar(key)
        # YAML reads 1:30 as ninety and 010 as eight: such spellings are not taken.
        digits = node.tag in (f"{_TAG}int", f"{_TAG}float") and re.fullmatch(
            "(?:0|[1-9][0-9]{0,18})(?:[.][0-9]+)?", node.value
        )
        if not digits or not above < float(node.value) <= most:
            bound = f" and at most {most:g}" if math.isfinite(most) else ""
            raise self.wrong(key, f"{node.value!r} is not a number above {above:g}{bound}")
        return float(node.value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false, without quotes."""
        if key not in self:
            return default
        node = self._scalar(key)
        if node.tag != f"{_TAG}bool" or node.value.lower() not in ("true", "false"):
            raise self.wrong(key, f"{node.value!r} is neither true nor false")
        return bool(node.value.lower() == "true")

    def usd(self, key: str) -> int:
        """A decimal string in USD, as nano-USD."""
        node = self._scalar(key)
        if node.tag != f"{_TAG}str":
            # In quotes it is as exact to every other reader of the file, which may take a float.
            raise self.wrong(key, f"{node.value} is not a decimal string in quotes")
        try:
            return money.parse_usd(node.value)
        except ValueError as error:
            raise self.wrong(key, str(error)) from None

    def instant(self, key: str) -> datetime:
        """A date or time of ISO 8601, in UTC where it names no zone."""
        node = self._scalar(key)
        try:
            value = datetime.fromisoformat(node.value)
        except ValueError:
            raise self.wrong(key, f"{node.value!r} is not a date or time of ISO 8601") from None
        return value if value.tzinfo else value.replace(tzinfo=UTC)

    def _scalar(self, key: str) -> ScalarNode:
        node = self._values.get(key)
        if node is None:
            raise self.wrong(key, "required")
        if not isinstance(node, ScalarNode):
            raise self.wrong(key, "must be one value")
        return node

    def _given(self, key: str) -> Node | None:
        # `models:` with nothing below it is null.
        node = self._values.get(key)
        return None if node is None or node.tag == f"{_TAG}null" else node

    def _below(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path and key else self.path or key

    def _read(
        self, node: Node, allowed: Collection[str] | None, above: tuple[Node, ...], known: dict[int, dict[str, Node]]
    ) -> dict[str, Node]:
        """The values by key. ``above`` merge this node; ``known`` has what was read, by id, so that it is read once."""
        if not isinstance(node, MappingNode):
            raise self._source.wrong(node, self.path, "must be a mapping")
        if any(node is each for each in above):
            raise self._source.wrong(node, self.path, "merges itself")
        if len(above) > _MAX_MERGES:
            raise self._source.wrong(node, self.path, f"merges more than {_MAX_MERGES} deep")
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in node.value:
            if key.tag == f"{_TAG}merge":
                for each in value.value if isinstance(value, SequenceNode) else [value]:
                    if id(each) not in known:
                        known[id(each)] = self._read(each, allowed, (*above, node), known)
                    merged = {**known[id(each)], **merged}
                continue
            name = str(key.value)
            if allowed is not None and name not in allowed:
                raise self._source.wrong(key, self._below(name), "unknown key")
            if name in own:
                raise self._source.wrong(key, self._below(name), "given twice")
            own[name] = value
        return {**merged, **own}


def read_file(path: Path, parse: Callable[[str, str], T]) -> T:
    """What ``parse`` makes of a file's text and name. Raises CatalogError or OSError."""
    return parse(_text(path), str(path))


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise CatalogError(f"{path}: not UTF-8: {error}") from None


class WatchedFile(Generic[T]):
    """What a file says now. ``watch`` reads a changed file beside the running requests; a bad one is not taken."""

    def __init__(self, path: Path, parse: Callable[[str, str], T]) -> None:
        """Read the file; ``parse`` takes its text and name. Raises CatalogError or OSError."""
        self._path = path
        self._parse = parse
        self._signature = self._stat()
        self.current = read_file(path, parse)

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
            text = await asyncio.to_thread(_text, self._path)
            if await asyncio.to_thread(self._stat) != signature:
                # It is being written: what was read may be half of it, and half a YAML file can be a valid one.
                return False
            self.current = await asyncio.to_thread(self._parse, text, str(self._path))
        except (ValueError, OSError) as error:
            log.error("a changed file is not taken, the old one stays: %s", error)
            return False
        log.info("a changed file is taken: %s", self._path)
        return True

    def _stat(self) -> tuple[int, int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

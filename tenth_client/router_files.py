"""Files of ``tenth router``: the outcome log as JSON lines, and the policy to decide it again under."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from google.protobuf import json_format
from tenth.router.v1 import router_pb2
from yaml.nodes import MappingNode, Node, ScalarNode

STRATEGIES = {
    "features": router_pb2.STRATEGY_FEATURES,
    "trained": router_pb2.STRATEGY_TRAINED,
    "rules": router_pb2.STRATEGY_RULES,
    "cascade": router_pb2.STRATEGY_CASCADE,
}
"""Those that can be replayed: they call no model."""
_KEYS = ("catalog", "rules", "quality_target", "strategy")


@dataclass(frozen=True, slots=True)
class ReplayFile:
    """A policy file: what it does not name stays as it is loaded, or as each request had it."""

    catalog: Path | None = None
    rules: Path | None = None
    quality_target: float | None = None
    strategy: str = ""

    def request(self, outcomes: Iterable[router_pb2.Outcome]) -> router_pb2.ReplayOutcomesRequest:
        """The request to decide some outcomes again. Raises OSError when a named file cannot be read."""
        return router_pb2.ReplayOutcomesRequest(
            outcomes=outcomes,
            catalog_yaml=self.catalog.read_text("utf-8") if self.catalog else "",
            rules_yaml=self.rules.read_text("utf-8") if self.rules else "",
            strategy=STRATEGIES.get(self.strategy, router_pb2.STRATEGY_UNSPECIFIED),
            quality_target=self.quality_target,
        )

    def in_words(self, message: str) -> str:
        """A refusal of the router with the names of this machine's files."""
        for field, path in (("catalog_yaml", self.catalog), ("rules_yaml", self.rules)):
            if path is not None:
                message = message.replace(f"{field}:", f"{path}:")
        return message


def read_policy(path: Path) -> ReplayFile:
    """Read a policy file; the files that it names lie beside it. Raises ValueError naming file and line, OSError."""
    text = path.read_text("utf-8")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from None
    if root is None:
        return ReplayFile()
    if not isinstance(root, MappingNode):
        raise _wrong(path, root, f"must be a mapping with any of {', '.join(_KEYS)}")
    values: dict[str, ScalarNode] = {}
    for key, value in root.value:
        name = str(key.value)
        if name not in _KEYS:
            raise _wrong(path, key, f"{name}: unknown key; known: {', '.join(_KEYS)}")
        if name in values:
            raise _wrong(path, key, f"{name}: given twice")
        if not isinstance(value, ScalarNode) or not value.value:
            raise _wrong(path, value, f"{name}: must be one value")
        values[name] = value
    return ReplayFile(
        catalog=_file(path, values.get("catalog"), "catalog"),
        rules=_file(path, values.get("rules"), "rules"),
        quality_target=_target(path, values.get("quality_target")),
        strategy=_strategy(path, values.get("strategy")),
    )


def line_of(outcome: router_pb2.Outcome) -> str:
    """One line of a log: proto JSON."""
    return json.dumps(json_format.MessageToDict(outcome), ensure_ascii=False, separators=(",", ":"))


def read_log(path: Path) -> Iterator[router_pb2.Outcome]:
    """The outcomes of a log. Raises ValueError naming file and line, OSError."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield json_format.ParseDict(json.loads(line), router_pb2.Outcome())
            except (json_format.ParseError, json.JSONDecodeError) as error:
                raise ValueError(f"{path}:{number}: {error}") from None


def merged(outcomes: Iterable[router_pb2.Outcome]) -> list[router_pb2.Outcome]:
    """One outcome a request, by time, of what several replicas know of it.

    The decision is the last one; the completion and the feedback may be another replica's, where nothing overrules a
    caller's word.
    """
    found: dict[str, router_pb2.Outcome] = {}
    for outcome in outcomes:
        other = found.get(outcome.request_id)
        if other is None:
            found[outcome.request_id] = outcome
            continue
        last, first = (outcome, other) if _decided(outcome) >= _decided(other) else (other, outcome)
        if not last.HasField("completion") and first.HasField("completion"):
            last.completion.CopyFrom(first.completion)
        if _rank(first) > _rank(last):
            last.score, last.score_source = first.score, first.score_source
        last.user_id = last.user_id or first.user_id
        found[outcome.request_id] = last
    return sorted(found.values(), key=lambda outcome: outcome.decide_time.ToNanoseconds())


def _decided(outcome: router_pb2.Outcome) -> tuple[bool, int]:
    return bool(outcome.model), outcome.decide_time.ToNanoseconds()


def _rank(outcome: router_pb2.Outcome) -> int:
    if not outcome.HasField("score"):
        return 0
    return {"escalation": 1, "judge": 2}.get(outcome.score_source, 3)


def _file(path: Path, node: ScalarNode | None, key: str) -> Path | None:
    if node is None:
        return None
    named = path.parent / str(node.value)
    if not named.is_file():
        raise _wrong(path, node, f"{key}: {named} is no file")
    return named


def _target(path: Path, node: ScalarNode | None) -> float | None:
    if node is None:
        return None
    try:
        value = float(node.value)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise _wrong(path, node, f"quality_target: {node.value!r} is no number above 0 up to 1")
    return value


def _strategy(path: Path, node: ScalarNode | None) -> str:
    if node is None:
        return ""
    if node.value not in STRATEGIES:
        raise _wrong(path, node, f"strategy: {node.value!r} is none of {', '.join(STRATEGIES)}")
    return str(node.value)


def _wrong(path: Path, node: Node, message: str) -> ValueError:
    return ValueError(f"{path}:{node.start_mark.line + 1}: {message}")

"""LiteLLM's price map (``model_prices_and_context_window.json``): JSON, USD per token, no dates.

Pure. Numbers are read as their decimal text, never as floats. A row that the book cannot hold as it is meant is left
out with its reason; one that carries a zero, or a figure finer than the book holds, comes in unconfirmed. The keys are
those of release 1.109.1; what it prices besides text tokens (images, audio, searches, other service tiers) has no
place in a receipt and is passed over.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Any

from mesh.errors import TenthError
from mesh.money import MAX_NANO_USD
from mesh.receipt import Price, PriceStep
from services.ledger.errors import price_file_invalid
from services.ledger.importing import FileRow
from services.ledger.prices import STEP_FIELDS, DatedPrice, check

TEXT_MODES = frozenset({"chat", "completion", "responses"})
"""Modes that answer with text: both the input and the output have a price."""
INPUT_MODES = frozenset({"embedding", "rerank", "moderation"})
"""Modes that make no tokens: an output price of zero, or none, is right."""
_BASES = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cached_input",
    "cache_creation_input_token_cost": "cache_write_5m",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
}
_KEY = re.compile(
    f"({'|'.join(sorted(_BASES, key=len, reverse=True))})(?:_above_([0-9]{{1,6}})k_tokens)?(?:_(batches|flex))?"
)
_REASONING = "output_cost_per_reasoning_token"
_FEE = "input_cost_per_request"
_TIERS = {"batches": "batch", "flex": "flex"}
_PER_MILLION_PLACES = 15
"""USD per token to nano-USD per million tokens: six places and nine."""
_USD_PLACES = 9
_LONGEST_NUMBER = 64
_LONGEST_NAME = 256
_SPECIMEN = "sample_spec"
"""The map's own description of its keys."""


class _SkipError(Exception):
    """Why a row is left out."""


@dataclass(slots=True)
class _Read:
    """The amounts of one row."""

    base: dict[str, int] = field(default_factory=dict)
    steps: dict[int, dict[str, int]] = field(default_factory=dict)
    scaled: dict[str, tuple[str, int, str, int]] = field(default_factory=dict)
    """By key: the tier, the mark (0: none), the field and the amount of a batch or flex price."""
    doubts: list[str] = field(default_factory=list)

    def amount(self, key: str, value: object, places: int = _PER_MILLION_PLACES) -> int:
        """A number of the map as a whole one; zeros and rounded ones are doubts. Raises _SkipError."""
        if not isinstance(value, Decimal):
            raise _SkipError(f"{key}: {str(value)[:_LONGEST_NUMBER]!r} is not a number")
        if not value.is_finite():
            raise _SkipError(f"{key}: {value} is not finite")
        if value < 0:
            raise _SkipError(f"{key}: {value} is negative")
        if value and value.adjusted() + places > len(str(MAX_NANO_USD)):
            raise _SkipError(f"{key}: {value} is too large")
        _, digits, exponent = value.as_tuple()
        exact = Decimal((0, digits, int(exponent) + places))
        whole = int(exact.to_integral_value(ROUND_HALF_EVEN))
        if whole > MAX_NANO_USD:
            raise _SkipError(f"{key}: {value} is too large")
        if whole != exact:
            self.doubts.append(f"{key} {value} is finer than the book holds and was rounded")
        elif not whole and key != _FEE:
            self.doubts.append(f"{key} is 0")
        return whole


def parse_map(text: str, source: str, valid_from_ns: int) -> list[FileRow]:
    """Every row of the map. Raises PRICE_FILE_INVALID for a text that is no JSON object."""
    try:
        root = json.loads(
            text, parse_float=_number, parse_int=_number, parse_constant=Decimal, object_pairs_hook=_object
        )
    except (ValueError, RecursionError) as error:
        raise price_file_invalid(f"not JSON: {str(error)[:200] or 'nested too deep'}") from None
    if not isinstance(root, dict):
        raise price_file_invalid("not a JSON object of models")
    return [_row(model, entry, source, valid_from_ns, twice=_twice(root)) for model, entry in root.items()]


class _Object(dict[str, Any]):
    """A JSON object that remembers which keys it was given more than once."""

    twice: frozenset[str] = frozenset()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    made = _Object(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        made.twice = frozenset(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add is the point.
    return made


def _twice(entry: Mapping[str, Any]) -> frozenset[str]:
    return entry.twice if isinstance(entry, _Object) else frozenset()


def _number(text: str) -> Decimal | str:
    # A number of a thousand digits is no price, and arithmetic with it is slow: it stays a text and is refused.
    try:
        return Decimal(text) if len(text) <= _LONGEST_NUMBER else text
    except InvalidOperation:
        return text


def _row(model: str, entry: object, source: str, valid_from_ns: int, *, twice: frozenset[str]) -> FileRow:
    try:
        _check_name(model)
        if model in twice:
            raise _SkipError("the file has it twice")
        if model == _SPECIMEN or not isinstance(entry, dict):
            raise _SkipError("no model: the map's own description")
        price, reason = _price(model, entry)
        row = DatedPrice(price, valid_from_ns, source)
        check(row, "price")
    except _SkipError as skipped:
        return FileRow(_shown(model), None, str(skipped))
    except TenthError as error:
        return FileRow(_shown(model), None, f"{error.field}: {error.message}")
    return FileRow(model, row, reason)


def _price(model: str, entry: Mapping[str, Any]) -> tuple[Price, str]:
    """The price of a row, and what to say about it. Raises _SkipError."""
    mode = entry.get("mode")
    if mode is not None and (not isinstance(mode, str) or mode not in TEXT_MODES | INPUT_MODES):
        raise _SkipError(f"mode {str(mode)[:_LONGEST_NUMBER]!r} is not priced by text tokens")
    repeated = sorted(_twice(entry))
    if repeated:
        raise _SkipError(f"{repeated[0]}: given twice")
    read = _Read()
    for key, value in entry.items():
        found = _KEY.fullmatch(key)
        if found and value is not None:
            _sort_in(read, key, read.amount(key, value), found)
    if entry.get("tiered_pricing") is not None:
        _read_tiers(read, entry)
    elif entry.get(_REASONING) is not None:
        read.base["reasoning_output"] = read.amount(_REASONING, entry[_REASONING])
    if entry.get(_FEE) is not None:
        fee = read.amount(_FEE, entry[_FEE], _USD_PLACES)
        if fee:
            read.base["request_fee"] = fee
    if mode in INPUT_MODES:
        _expect_no_output(read, entry)
    for name, key in (("input", "input_cost_per_token"), ("output", "output_cost_per_token")):
        if name not in read.base:
            raise _SkipError(f"no {key}{_priced_by(entry)}")
    base: dict[str, Any] = read.base
    price = Price(model, confirmed=not read.doubts, steps=_steps(read), **base)
    return _with_tiers(price, read, entry)


def _sort_in(read: _Read, key: str, amount: int, found: re.Match[str]) -> None:
    name, mark, tier = _BASES[found[1]], int(found[2] or 0) * 1000, found[3]
    if tier:
        read.scaled[key] = (tier, mark, name, amount)
    elif found[2]:
        read.steps.setdefault(mark, {})[name] = amount
    else:
        read.base[name] = amount


def _expect_no_output(read: _Read, entry: Mapping[str, Any]) -> None:
    """An output price of zero is right here; a row without any input price is priced by something else."""
    read.base.setdefault("output", 0)
    read.doubts = [doubt for doubt in read.doubts if not doubt.startswith("output_")]
    by = _priced_by(entry)
    if not read.base.get("input") and by:
        raise _SkipError(f"no price of input tokens{by}")


def _priced_by(entry: Mapping[str, Any]) -> str:
    """What a row without token prices is priced by, for a person."""
    for key, value in entry.items():
        if "cost" in key and not _KEY.fullmatch(key) and isinstance(value, Decimal) and value:
            return f": priced by {key}"
    return ""


def _steps(read: _Read) -> tuple[PriceStep, ...]:
    """The steps by mark; a field that a step lacks is as below its mark."""
    made: list[PriceStep] = []
    held: dict[str, int] = {name: read.base[name] for name in ("input", "output")}
    for mark in sorted(read.steps):
        held = {**held, **read.steps[mark]}
        made.append(PriceStep(above=mark, **held))
    return tuple(made)


def _read_tiers(read: _Read, entry: Mapping[str, Any]) -> None:
    """``tiered_pricing`` as steps: ranges of the request's input tokens, whose prices hold for the whole request.

    Raises _SkipError where steps cannot say the same.
    """
    tiers = entry["tiered_pricing"]
    if not isinstance(tiers, list) or not tiers or not all(isinstance(tier, dict) for tier in tiers):
        raise _SkipError("tiered_pricing: not a list of tiers")
    if read.steps:
        raise _SkipError("tiered_pricing: stands beside prices above a mark")
    reasoning: list[int | None] = []
    for index, tier in enumerate(tiers):
        at = f"tiered_pricing[{index}]"
        start, reasons = _tier(read, tier, at, expected=tiers[index - 1]["range"][1] if index else Decimal(0))
        reasoning.append(reasons)
        if index:
            # A tier says everything itself: what it lacks is charged as plain input, not as in the tier below.
            step = read.steps[start]
            for name in STEP_FIELDS[2:]:
                if name in read.base:
                    step.setdefault(name, step["input"])
    outputs = [read.base["output"], *(step["output"] for _, step in sorted(read.steps.items()))]
    if reasoning == outputs:
        return
    if len(set(reasoning)) > 1:
        raise _SkipError(f"tiered_pricing: {_REASONING} differs by tier")
    if reasoning[0] is not None:
        read.base["reasoning_output"] = reasoning[0]


def _tier(read: _Read, tier: Mapping[str, Any], at: str, *, expected: Decimal) -> tuple[int, int | None]:
    """Read one tier; returns where it starts and its reasoning price."""
    bounds = tier.get("range")
    if not isinstance(bounds, list) or len(bounds) != 2 or not all(_is_count(bound) for bound in bounds):
        raise _SkipError(f"{at}.range: not two whole numbers of tokens")
    if bounds[0] != expected or bounds[1] <= bounds[0]:
        raise _SkipError(f"{at}.range: does not go on where the tier before it ends")
    unknown = sorted(set(tier) - {"range", _REASONING, *_BASES})
    if unknown:
        raise _SkipError(f"{at}.{unknown[0]}: not a price that a step can hold")
    amounts = {name: read.amount(f"{at}.{key}", tier[key]) for key, name in _BASES.items() if tier.get(key) is not None}
    for name in ("input", "output"):
        if name not in amounts:
            raise _SkipError(f"{at}: no {name} price")
    start = int(bounds[0])
    if start:
        read.steps[start] = amounts
    else:
        if any(read.base[name] != amount for name, amount in amounts.items() if name in read.base):
            raise _SkipError("tiered_pricing: its first tier is not the price of the row itself")
        read.base.update(amounts)
    own = tier.get(_REASONING)
    return start, None if own is None else read.amount(f"{at}.{_REASONING}", own)


def _is_count(value: object) -> bool:
    return isinstance(value, Decimal) and value.is_finite() and 0 <= value <= 10**9 and value == int(value)


def _with_tiers(price: Price, read: _Read, entry: Mapping[str, Any]) -> tuple[Price, str]:
    """The price with its batch and flex prices, and the reason to show."""
    plain = {
        f"{_TIERS[tier]}_{name}": amount
        for tier, mark, name, amount in read.scaled.values()
        if not mark and name in ("input", "output")
    }
    price = replace(price, **plain)  # type: ignore[arg-type]  # Names of amounts only.
    # These prices scale each side of a request as a whole (mesh/receipt.py); a figure of the map that is no such
    # share of its plain price has no place in the book, and is named.
    notes = [
        f"{key} is not kept: {_TIERS[tier]} prices scale all input alike"
        for key, (tier, mark, name, amount) in sorted(read.scaled.items())
        if (mark or f"{_TIERS[tier]}_{name}" not in plain) and not _is_share(price, tier, mark, name, amount)
    ]
    if entry.get("off_peak_pricing") is not None:
        notes.append("off_peak_pricing is not kept: the price holds all day")
    return price, "; ".join([*read.doubts, *notes])


def _is_share(price: Price, tier: str, mark: int, name: str, amount: int) -> bool:
    side = "output" if name == "output" else "input"
    part = getattr(price, f"{_TIERS[tier]}_{side}")
    if part is None:
        return False
    at: Price | PriceStep = next((step for step in price.steps if step.above == mark), price)
    plain = getattr(at, name)
    if plain is None:
        plain = getattr(price, name)
    if plain is None:
        plain = at.input
    return bool(amount * getattr(price, side) == plain * part)


def _check_name(model: str) -> None:
    if not model:
        raise _SkipError("no name")
    if not _sendable(model):
        raise _SkipError(f"its name is longer than {_LONGEST_NAME} characters or holds a control character")


def _shown(model: str) -> str:
    """A name that can be sent, whatever the file has."""
    return model if _sendable(model) else ascii(model[:_LONGEST_NAME])


def _sendable(model: str) -> bool:
    return len(model) <= _LONGEST_NAME and not any(unicodedata.category(each) in ("Cc", "Cs") for each in model)

"""What the YAML files seed the books with: the catalogue's ``prices:`` and the callers file's ``tenants:``.

Pure: text in, plain values out. Raises ValueError naming the entry and the key that are wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

import yaml

from mesh.errors import TenthError
from mesh.money import MAX_NANO_USD, parse_usd
from mesh.receipt import Price
from services.ledger.admin import Tenant
from services.ledger.policy import NANOS_PER_SECOND, Budget, Window, is_time_zone
from services.ledger.prices import AMOUNT_FIELDS, DatedPrice, check

_PRICE_KEYS = {"model", "valid_from", "valid_to", "source", "confirmed", *AMOUNT_FIELDS}
_TENANT_KEYS = {"tenant_id", "baseline_model", "max_requests_per_minute", "budgets"}
_BUDGET_KEYS = {"name", "user_id", "project_id", "window", "time_zone", "limit_usd", "hard"}


def parse_prices(text: str) -> list[DatedPrice]:
    """The catalogue's prices, oldest first."""
    found = []
    for index, entry in enumerate(_section(text, "prices")):
        where = f"prices[{index}]"
        _known(entry, _PRICE_KEYS, where)
        amounts = {name: _usd(entry[name], f"{where}.{name}") for name in AMOUNT_FIELDS if name in entry}
        price = Price(
            model=_string(entry, "model", where),
            confirmed=_flag(entry, "confirmed", where, default=True),
            **{"input": 0, "output": 0, **amounts},
        )
        row = DatedPrice(
            price,
            valid_from_ns=_instant(entry.get("valid_from"), f"{where}.valid_from"),
            source=_string(entry, "source", where),
            valid_to_ns=_instant(entry["valid_to"], f"{where}.valid_to") if "valid_to" in entry else None,
        )
        if price.cpu_hour is None and not {"input", "output"} <= set(entry):
            raise ValueError(f"{where}: input and output are required")
        if not any(amounts.values()) and "confirmed" not in entry:
            raise ValueError(f"{where}.confirmed: a price of zero needs `confirmed: true`")
        try:
            check(row, where)
        except TenthError as error:
            raise ValueError(f"{error.field}: {error.message}") from None
        found.append(row)
    return sorted(found, key=lambda row: (row.model, row.valid_from_ns))


def parse_tenants(text: str) -> list[tuple[Tenant, list[Budget]]]:
    """The callers file's tenants with their budgets."""
    found = []
    for index, entry in enumerate(_section(text, "tenants")):
        where = f"tenants[{index}]"
        _known(entry, _TENANT_KEYS, where)
        tenant_id = _string(entry, "tenant_id", where)
        rate = entry.get("max_requests_per_minute", 0)
        if not isinstance(rate, int) or isinstance(rate, bool) or not 0 <= rate <= MAX_NANO_USD:
            raise ValueError(f"{where}.max_requests_per_minute: {rate!r} is not a count")
        tenant = Tenant(tenant_id, _string(entry, "baseline_model", where), rate)
        budgets = entry.get("budgets") or []
        if not isinstance(budgets, list):
            raise ValueError(f"{where}.budgets: not a list")
        them = [_budget(each, tenant_id, f"{where}.budgets[{number}]") for number, each in enumerate(budgets)]
        if len({each.name for each in them}) < len(them):
            raise ValueError(f"{where}.budgets: two of the same name")
        found.append((tenant, them))
    if len({tenant.tenant_id for tenant, _ in found}) < len(found):
        raise ValueError("tenants: two of the same tenant_id")
    return found


def _budget(entry: object, tenant_id: str, where: str) -> Budget:
    known = _known(entry, _BUDGET_KEYS, where)
    window = known.get("window", "month")
    if window not in list(Window):
        raise ValueError(f"{where}.window: {window!r} is none of day, month, total")
    zone = known.get("time_zone", "UTC")
    if not is_time_zone(zone):
        raise ValueError(f"{where}.time_zone: {zone!r} is no IANA time zone")
    return Budget(
        name=_string(known, "name", where),
        tenant_id=tenant_id,
        limit=_usd(known.get("limit_usd"), f"{where}.limit_usd"),
        hard=_flag(known, "hard", where, default=True),
        user_id=_string(known, "user_id", where, default=""),
        project_id=_string(known, "project_id", where, default=""),
        window=Window(window),
        time_zone=zone,
    )


def _section(text: str, name: str) -> list[Mapping[str, Any]]:
    try:
        raw = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from None
    section = raw.get(name) if isinstance(raw, dict) else None
    if section is None:
        return []
    if not isinstance(section, list):
        raise ValueError(f"{name}: not a list")
    return section


def _known(entry: object, keys: set[str], where: str) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: not a mapping")
    unknown = set(entry) - keys
    if unknown:
        raise ValueError(f"{where}: unknown keys {sorted(map(str, unknown))}")
    return entry


def _string(entry: Mapping[str, Any], key: str, where: str, *, default: str | None = None) -> str:
    value = entry.get(key, default)
    if not isinstance(value, str) or (not value and default is None):
        raise ValueError(f"{where}.{key}: required, a string")
    return value


def _flag(entry: Mapping[str, Any], key: str, where: str, *, default: bool) -> bool:
    value = entry.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{where}.{key}: {value!r} is not true or false")
    return value


def _usd(value: object, where: str) -> int:
    # A float has lost its decimals before it gets here, so only text is taken.
    if not isinstance(value, str):
        raise ValueError(f"{where}: {value!r} is not a decimal string in quotes")
    try:
        return parse_usd(value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _instant(value: object, where: str) -> int:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{where}: {value!r} is no ISO 8601 time") from None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        raise ValueError(f"{where}: required, an ISO 8601 date or time")
    if value.tzinfo is None:
        value = value.replace(tzinfo=UTC)
    return int(value.timestamp()) * NANOS_PER_SECOND

"""What the YAML files seed the books with: the catalogue's ``prices:`` and the callers file's ``tenants:``.

Pure: text in, plain values out. Raises CatalogError naming the file, the line and the key that are wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from mesh.catalog import MODEL_KEYS, PRICE_KEYS, STEP_KEYS, Entry, open_catalog
from mesh.errors import TenthError
from mesh.receipt import Price, PriceStep
from services.ledger.admin import Tenant
from services.ledger.limits import check_budget, parse_ladder, parse_percents, parse_span
from services.ledger.policy import NANOS_PER_SECOND, Budget, Window
from services.ledger.prices import AMOUNT_FIELDS, STEP_FIELDS, DatedPrice, check

T = TypeVar("T")
_TENANT_KEYS = {
    "tenant_id",
    "baseline_model",
    "max_requests_per_minute",
    "max_tokens_per_minute",
    "control_share",
    "budgets",
}
_BUDGET_KEYS = {
    "name",
    "user_id",
    "project_id",
    "model",
    "tag_key",
    "tag_value",
    "window",
    "time_zone",
    "rolling",
    "limit_usd",
    "hard",
    "alert_percents",
    "alert_url",
    "ladder",
}


def parse_prices(text: str, name: str = "catalogue") -> list[DatedPrice]:
    """The catalogue's prices, oldest first; ``name`` is the file's, for messages."""
    found = [_price(entry) for entry in open_catalog(text, name).sequence("prices", PRICE_KEYS)]
    return sorted(found, key=lambda row: (row.model, row.valid_from_ns))


def parse_self_hosted(text: str, name: str = "catalogue") -> frozenset[str]:
    """The catalogue's self-hosted models; ``name`` is the file's, for messages."""
    models = open_catalog(text, name).mapping("models", None).mappings(MODEL_KEYS)
    return frozenset(model for model, entry in models if entry.boolean("self_hosted", False))


def parse_tenants(text: str, name: str = "callers") -> list[tuple[Tenant, list[Budget]]]:
    """The callers file's tenants with their budgets; ``name`` is the file's, for messages."""
    root = open_catalog(text, name, None)
    found = []
    for entry in root.sequence("tenants", _TENANT_KEYS):
        tenant = Tenant(
            tenant_id=entry.text("tenant_id"),
            baseline_model=entry.text("baseline_model"),
            max_requests_per_minute=entry.integer("max_requests_per_minute", 0, least=0),
            max_tokens_per_minute=entry.integer("max_tokens_per_minute", 0, least=0),
            control_share=_share(entry, "control_share"),
        )
        budgets = [_budget(each, tenant.tenant_id) for each in entry.sequence("budgets", _BUDGET_KEYS)]
        if len({each.name for each in budgets}) < len(budgets):
            raise entry.wrong("budgets", "two of the same name")
        found.append((tenant, budgets))
    if len({tenant.tenant_id for tenant, _ in found}) < len(found):
        raise root.wrong("tenants", "two of the same tenant_id")
    return found


def _price(entry: Entry) -> DatedPrice:
    amounts = {name: entry.usd(name) for name in AMOUNT_FIELDS if name in entry}
    price = Price(
        model=entry.text("model"),
        confirmed=entry.boolean("confirmed", True),
        **{"input": 0, "output": 0, **amounts},  # type: ignore[arg-type]  # Amounts only; steps are no key of these.
    )
    price = replace(price, steps=tuple(_steps(entry, price)))
    row = DatedPrice(
        price,
        valid_from_ns=_nanoseconds(entry.instant("valid_from")),
        source=entry.text("source"),
        valid_to_ns=_nanoseconds(entry.instant("valid_to")) if "valid_to" in entry else None,
    )
    if price.cpu_hour is None and price.gpu_hour is None and not ("input" in entry and "output" in entry):
        raise entry.wrong("", "input and output are required")
    if not any(amounts.values()) and "confirmed" not in entry:
        raise entry.wrong("confirmed", "a price of zero needs `confirmed: true`")
    try:
        check(row, entry.path)
    except TenthError as error:
        raise entry.wrong(error.field.removeprefix(f"{entry.path}."), error.message) from None
    return row


def _steps(entry: Entry, price: Price) -> Iterator[PriceStep]:
    """The steps in the file's order; an input or output that one lacks is as below its mark."""
    below: Price | PriceStep = price
    for step in entry.sequence("steps", STEP_KEYS):
        given = {name: step.usd(name) for name in STEP_FIELDS if name in step}
        below = PriceStep(
            above=step.integer("above_input_tokens"), **{"input": below.input, "output": below.output, **given}
        )
        yield below


def _budget(entry: Entry, tenant_id: str) -> Budget:
    budget = Budget(
        name=entry.text("name"),
        tenant_id=tenant_id,
        limit=entry.usd("limit_usd"),
        hard=entry.boolean("hard", True),
        window=Window(entry.choice("window", tuple(Window), "month")),
        time_zone=entry.text("time_zone", "UTC"),
        rolling_seconds=_parsed(entry, "rolling", parse_span) if "rolling" in entry else 0,
        alert_percents=_parsed(entry, "alert_percents", parse_percents),
        alert_url=entry.text("alert_url", ""),
        ladder=_parsed(entry, "ladder", parse_ladder),
        user_id=entry.text("user_id", ""),
        project_id=entry.text("project_id", ""),
        model=entry.text("model", ""),
        tag_key=entry.text("tag_key", ""),
        tag_value=entry.text("tag_value", ""),
    )
    try:
        return check_budget(budget, "")
    except TenthError as error:
        key = error.field.lstrip(".").partition("[")[0]
        raise entry.wrong("limit_usd" if key == "limit_nano_usd" else key, error.message) from None


def _parsed(entry: Entry, key: str, parse: Callable[[str], T]) -> T:
    """A value that has a form of its own, such as rolling: "7d"; texts in quotes, as everywhere in the file."""
    try:
        return parse(entry.text(key, ""))
    except ValueError as error:
        raise entry.wrong(key, str(error)) from None


def _share(entry: Entry, key: str) -> float:
    """A share from 0 to 1, a decimal string."""
    written = entry.text(key, "0")
    if not re.fullmatch(r"0(\.[0-9]{1,9})?|1(\.0{1,9})?", written):
        raise entry.wrong(key, f"{written!r} is not a share from 0 to 1")
    return float(written)


def _nanoseconds(instant: datetime) -> int:
    return int(instant.timestamp()) * NANOS_PER_SECOND

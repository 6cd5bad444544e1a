"""What the YAML files seed the books with: the catalogue's ``prices:`` and the callers file's ``tenants:``.

Pure: text in, plain values out. Raises CatalogError naming the file, the line and the key that are wrong.
"""

from __future__ import annotations

from datetime import datetime

from mesh.catalog import MODEL_KEYS, PRICE_KEYS, Entry, open_catalog
from mesh.errors import TenthError
from mesh.receipt import Price
from services.ledger.admin import Tenant
from services.ledger.policy import NANOS_PER_SECOND, Budget, Window, is_time_zone
from services.ledger.prices import AMOUNT_FIELDS, DatedPrice, check

_TENANT_KEYS = {"tenant_id", "baseline_model", "max_requests_per_minute", "budgets"}
_BUDGET_KEYS = {"name", "user_id", "project_id", "window", "time_zone", "limit_usd", "hard"}


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
        rate = entry.integer("max_requests_per_minute", 0, least=0)
        tenant = Tenant(entry.text("tenant_id"), entry.text("baseline_model"), rate)
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


def _budget(entry: Entry, tenant_id: str) -> Budget:
    zone = entry.text("time_zone", "UTC")
    if not is_time_zone(zone):
        raise entry.wrong("time_zone", f"{zone!r} is no IANA time zone")
    return Budget(
        name=entry.text("name"),
        tenant_id=tenant_id,
        limit=entry.usd("limit_usd"),
        hard=entry.boolean("hard", True),
        user_id=entry.text("user_id", ""),
        project_id=entry.text("project_id", ""),
        window=Window(entry.choice("window", tuple(Window), "month")),
        time_zone=zone,
    )


def _nanoseconds(instant: datetime) -> int:
    return int(instant.timestamp()) * NANOS_PER_SECOND

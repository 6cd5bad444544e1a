"""Every reason that the ledger gives, beside those of ``mesh.errors`` and ``mesh.receipt``."""

from __future__ import annotations

from enum import StrEnum

from mesh.errors import Code, TenthError


class Reason(StrEnum):
    """Reasons of the ledger."""

    UNKNOWN_TENANT = "UNKNOWN_TENANT"
    """The ledger has no such tenant."""
    CROSS_TENANT_FORBIDDEN = "CROSS_TENANT_FORBIDDEN"
    """The caller may act for its own tenant only."""
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    """The request id was used before with another payload, or its request is settled already."""
    INVALID_RECEIPT = "INVALID_RECEIPT"
    """The receipt's facts are not allowed, or its amounts are not what the ledger computes from them."""
    UNKNOWN_RESERVATION = "UNKNOWN_RESERVATION"
    """The tenant has no such reservation."""
    UNKNOWN_PRICE_BOOK_VERSION = "UNKNOWN_PRICE_BOOK_VERSION"
    """The price book never had that version."""
    PRICE_NOT_LATER = "PRICE_NOT_LATER"
    """A price is never changed: a new one must start later than all others of its model."""
    PRICE_CONFLICT = "PRICE_CONFLICT"
    """A price file and the book differ on a model, and nobody said which shall hold; `models` names up to 20."""
    PRICE_NOT_FOUND = "PRICE_NOT_FOUND"
    """The price book has no price of that model at that time, or, for a budget by model, at any."""
    PRICE_FILE_INVALID = "PRICE_FILE_INVALID"
    """A price file cannot be read: no JSON or YAML of the form that was named, or too large."""
    RATE_NOT_LATER = "RATE_NOT_LATER"
    """An exchange rate is never changed: a new one must start later than all others of its currency."""
    RECEIPT_NOT_FOUND = "RECEIPT_NOT_FOUND"
    """The ledger has no receipt of that request (yet)."""
    TOO_MANY_ITEMS = "TOO_MANY_ITEMS"
    """One call carries more items than allowed; `field` names the list."""
    UTILIZATION_OVERLAP = "UTILIZATION_OVERLAP"
    """A record of own hardware covers time of its node that another record covers."""
    EXCHANGE_RATE_UNKNOWN = "EXCHANGE_RATE_UNKNOWN"
    """A day of the report has receipts and no exchange rate of the currency asked for."""
    RECEIPTS_PAST_RETENTION = "RECEIPTS_PAST_RETENTION"
    """The report needs single receipts that retention has deleted; sums by whole hours and names are still there."""
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    """The database does not answer; nothing was written, trying again later may help."""


def unknown_tenant(tenant_id: str, field: str) -> TenthError:
    """The ledger has no such tenant."""
    return TenthError(Code.NOT_FOUND, Reason.UNKNOWN_TENANT, f"no tenant {tenant_id!r}", field)


def cross_tenant(field: str) -> TenthError:
    """The caller may act for its own tenant only."""
    return TenthError(
        Code.PERMISSION_DENIED, Reason.CROSS_TENANT_FORBIDDEN, "the caller may act for its own tenant only", field
    )


def request_id_reused(request_id: str, why: str) -> TenthError:
    """The request id stands for something else already."""
    return TenthError(
        Code.ALREADY_EXISTS, Reason.REQUEST_ID_REUSED, f"request {request_id!r}: {why}", "request.request_id"
    )


def too_many(field: str, most: int) -> TenthError:
    """A list is longer than allowed."""
    return TenthError(Code.INVALID_ARGUMENT, Reason.TOO_MANY_ITEMS, f"at most {most} items", field)


def price_not_found(model: str, field: str = "request.model", when: str = "at that time") -> TenthError:
    """The book has no such price."""
    return TenthError(
        Code.NOT_FOUND,
        Reason.PRICE_NOT_FOUND,
        f"the price book has no price of {model!r} {when}",
        field,
        metadata={"model": model},
    )


def price_file_invalid(why: str) -> TenthError:
    """A price file cannot be read."""
    return TenthError(Code.INVALID_ARGUMENT, Reason.PRICE_FILE_INVALID, why, "request.content")

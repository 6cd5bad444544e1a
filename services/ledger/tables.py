"""The books' tables. Instants are integer nanoseconds since the epoch, amounts integer nano-USD.

``receipt_events`` and ``attempts`` are append-only and are the truth; ``receipts`` is the receipt that is visible
now, ``budget_windows`` a running sum that is derived again from receipts and open reservations where it is absent.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

OPEN = literal_column("'open'", String)
"""State of a reservation that stands; a literal, so that the partial indexes serve it."""

_ID = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only plain INTEGER keys.

books = Table(
    "books",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("books_id", String(32), nullable=False),
    Column("price_book_version", BigInteger, nullable=False),
    Column("policy_version", BigInteger, nullable=False),
)
"""One row: which books these are, and the versions that every change counts up."""

prices = Table(
    "prices",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("model", Text, nullable=False),
    Column("valid_from_ns", BigInteger, nullable=False),
    Column("valid_to_ns", BigInteger),
    Column("input", BigInteger, nullable=False),
    Column("output", BigInteger, nullable=False),
    Column("cached_input", BigInteger),
    Column("cache_write_5m", BigInteger),
    Column("cache_write_1h", BigInteger),
    Column("batch_input", BigInteger),
    Column("batch_output", BigInteger),
    Column("quantized_input", BigInteger),
    Column("quantized_output", BigInteger),
    Column("cpu_hour", BigInteger),
    Column("source", Text, nullable=False),
    Column("confirmed", Boolean, nullable=False),
    Column("added_version", BigInteger, nullable=False),
    Column("replaced_version", BigInteger),
)

tenants = Table(
    "tenants",
    metadata,
    Column("tenant_id", Text, primary_key=True),
    Column("baseline_model", Text, nullable=False),
    Column("max_requests_per_minute", BigInteger, nullable=False),
)

layer_switches = Table(
    "layer_switches",
    metadata,
    Column("tenant_id", Text, primary_key=True),
    Column("layer", Text, primary_key=True),
)
"""A row turns a layer off."""

budgets = Table(
    "budgets",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("tenant_id", Text, ForeignKey("tenants.tenant_id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("window", Text, nullable=False),
    Column("time_zone", Text, nullable=False),
    Column("limit_nano_usd", BigInteger, nullable=False),
    Column("hard", Boolean, nullable=False),
    UniqueConstraint("tenant_id", "name"),
)

budget_windows = Table(
    "budget_windows",
    metadata,
    Column("budget_id", _ID, ForeignKey("budgets.id"), primary_key=True),
    Column("window_start_ns", BigInteger, primary_key=True),
    Column("spent", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
)

reservations = Table(
    "reservations",
    metadata,
    Column("reservation_id", String(32), primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("payload", Text, nullable=False),
    Column("payload_digest", String(64), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("state", String(10), nullable=False),
    Column("create_ns", BigInteger, nullable=False),
    Column("expire_ns", BigInteger, nullable=False),
    Column("close_ns", BigInteger),
    Index(
        "uq_reservations_open",
        "tenant_id",
        "request_id",
        unique=True,
        sqlite_where=text("state = 'open'"),
        postgresql_where=text("state = 'open'"),
    ),
    Index(
        "ix_reservations_expire",
        "expire_ns",
        sqlite_where=text("state = 'open'"),
        postgresql_where=text("state = 'open'"),
    ),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("kind", String(10), nullable=False),
    Column("event_ns", BigInteger, nullable=False),
    Column("price_book_version", BigInteger, nullable=False),
    Column("event", LargeBinary, nullable=False),
    UniqueConstraint("request_id", "tenant_id", "purpose", "attempt", "kind"),
)

open_requests = Table(
    "open_requests",
    metadata,
    Column("tenant_id", Text, primary_key=True),
    Column("request_id", Text, primary_key=True),
    Column("last_seen_ns", BigInteger, nullable=False, index=True),
)
"""Requests with attempts that no receipt accounts for yet; ``last_seen_ns`` 0: their receipt is to be completed."""

receipt_events = Table(
    "receipt_events",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("kind", String(12), nullable=False),
    Column("event_ns", BigInteger, nullable=False),
    Column("actual_delta", BigInteger, nullable=False),
    Column("receipt", LargeBinary, nullable=False),
    Index(None, "request_id", "tenant_id"),
)

SAVINGS = (
    "saving_cache",
    "saving_routing",
    "saving_compression",
    "saving_prompt_cache",
    "saving_batch",
    "saving_quantization",
)
"""Columns of the savings, in the order of ``mesh.receipt.Layer``."""

receipts = Table(
    "receipts",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("origin", String(10), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("payload_digest", String(64), nullable=False),
    Column("attempts", Text, nullable=False),
    Column("event_id", _ID, ForeignKey("receipt_events.id"), nullable=False),
    Column("create_ns", BigInteger, nullable=False),
    Column("model", Text, nullable=False),
    Column("tier", Integer, nullable=False),
    Column("baseline_model", Text, nullable=False),
    Column("cache", String(16), nullable=False),
    Column("failed", Boolean, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("baseline", BigInteger, nullable=False),
    Column("baseline_prompt_cached", BigInteger, nullable=False),
    *(Column(name, BigInteger, nullable=False) for name in SAVINGS),
    Column("overhead", BigInteger, nullable=False),
    Column("actual", BigInteger, nullable=False),
    UniqueConstraint("request_id", "tenant_id"),
    Index(None, "tenant_id", "create_ns"),
    Index(None, "create_ns"),
)

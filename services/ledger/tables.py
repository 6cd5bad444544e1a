"""The books' tables. Instants are integer nanoseconds since the epoch, amounts integer nano-USD.

``receipt_events`` and ``attempts`` are append-only and are the truth; ``receipts`` is the receipt that is visible
now, ``budget_windows`` a running sum that is derived again from receipts and open reservations where it is absent.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
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
    Column("flex_input", BigInteger),
    Column("flex_output", BigInteger),
    Column("reasoning_output", BigInteger),
    Column("request_fee", BigInteger),
    Column("gpu_hour", BigInteger),
    Column("steps", Text, nullable=False, server_default="[]"),
    Column("confirmed_by", Text, nullable=False, server_default=""),
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
    Column("max_tokens_per_minute", BigInteger, nullable=False, server_default="0"),
    Column("control_share", Float, nullable=False, server_default="0"),
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
    Column("model", Text, nullable=False, server_default=""),
    Column("tag_key", Text, nullable=False, server_default=""),
    Column("tag_value", Text, nullable=False, server_default=""),
    Column("rolling_seconds", BigInteger, nullable=False, server_default="0"),
    Column("alert_percents", Text, nullable=False, server_default=""),
    Column("alert_url", Text, nullable=False, server_default=""),
    Column("ladder", Text, nullable=False, server_default=""),
    UniqueConstraint("tenant_id", "name"),
)

budget_windows = Table(
    "budget_windows",
    metadata,
    Column("budget_id", _ID, ForeignKey("budgets.id"), primary_key=True),
    Column("window_start_ns", BigInteger, primary_key=True),
    Column("spent", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
    Column("alerted_percent", Integer, nullable=False, server_default="0"),
)

alerts = Table(
    "alerts",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("budget_id", _ID, ForeignKey("budgets.id"), nullable=False),
    Column("window_start_ns", BigInteger, nullable=False),
    Column("percent", Integer, nullable=False),
    Column("spent", BigInteger, nullable=False),
    Column("create_ns", BigInteger, nullable=False),
    Column("next_try_ns", BigInteger),
    Column("try_count", Integer, nullable=False),
    UniqueConstraint("budget_id", "window_start_ns", "percent"),
)
"""Alerts, written in the transaction that crossed the mark; ``next_try_ns`` NULL: delivered, or given up."""

rate_minutes = Table(
    "rate_minutes",
    metadata,
    Column("tenant_id", Text, primary_key=True),
    Column("minute", BigInteger, primary_key=True),
    Column("request_count", BigInteger, nullable=False),
    Column("token_count", BigInteger, nullable=False),
)
"""Requests and worst-case tokens let through by minute since the epoch; only the last two minutes are kept."""

exchange_rates = Table(
    "exchange_rates",
    metadata,
    Column("currency", String(3), primary_key=True),
    Column("valid_from_ns", BigInteger, primary_key=True),
    Column("nano_units_per_usd", BigInteger, nullable=False),
    Column("source", Text, nullable=False),
)

utilization = Table(
    "utilization",
    metadata,
    Column("node", Text, primary_key=True),
    Column("start_ns", BigInteger, primary_key=True),
    Column("end_ns", BigInteger, nullable=False),
    Column("hardware", Text, nullable=False),
    Column("unit_count", Integer, nullable=False),
    Column("busy_share", Float, nullable=False),
    Column("model", Text, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Index(None, "start_ns"),
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
    Column("model", Text, nullable=False, server_default=""),
    Column("tags", Text, nullable=False, server_default="{}"),
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
    Column("counted_ns", BigInteger),
    Index(None, "request_id", "tenant_id"),
    postgresql_partition_by="RANGE (id)",
)
"""By month on Postgres, see ``partitions.py``.

``counted_ns``: when it counts, by the ledger's clock (``receipts.create_ns``); NULL: the receipt's own time."""

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
    Column("tags", Text, nullable=False, server_default="{}"),
    Column("latency_ns", BigInteger),
    Column("control", Boolean, nullable=False, server_default=false()),
    UniqueConstraint("request_id", "tenant_id"),
    Index(None, "tenant_id", "create_ns"),
    Index(None, "create_ns"),
    Index(None, "event_id"),
)

ROLLED = (
    "baseline",
    "baseline_prompt_cached",
    *SAVINGS,
    "overhead",
    "actual",
    "input_tokens",
    "output_tokens",
    "latency_ns",
)
"""Columns of receipts that rollups sum."""

rollups = Table(
    "rollups",
    metadata,
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column("start_ns", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("tier", Integer, primary_key=True, autoincrement=False),
    Column("user_id", Text, primary_key=True),
    Column("project_id", Text, primary_key=True),
    Column("baseline_model", Text, primary_key=True),
    Column("cache", String(16), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("failures", BigInteger, nullable=False),
    *(Column(name, BigInteger, nullable=False) for name in ROLLED),
    sqlite_with_rowid=False,
)
"""Sums of the visible receipts by time and everything that reports group by, tags apart; see ``rollups.py``.

``level`` says what a row sums: 0, 1, 2 a UTC hour, day, month; 3, 4, 5 the same with users and projects together.
"""

rollup_state = Table(
    "rollup_state",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("event_id", BigInteger, nullable=False),
)
"""How far the rollups are: numbers by id, see ``rollups.State``."""

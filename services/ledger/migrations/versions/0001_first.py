"""The first schema: prices, tenants, budgets, reservations, attempts and receipts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "attempts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("event_ns", sa.BigInteger(), nullable=False),
        sa.Column("price_book_version", sa.BigInteger(), nullable=False),
        sa.Column("event", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
        sa.UniqueConstraint(
            "request_id",
            "tenant_id",
            "purpose",
            "attempt",
            "kind",
            name=op.f("uq_attempts_request_id_tenant_id_purpose_attempt_kind"),
        ),
    )
    op.create_table(
        "books",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("books_id", sa.String(length=32), nullable=False),
        sa.Column("price_book_version", sa.BigInteger(), nullable=False),
        sa.Column("policy_version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_books")),
    )
    op.create_table(
        "layer_switches",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("layer", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "layer", name=op.f("pk_layer_switches")),
    )
    op.create_table(
        "open_requests",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("last_seen_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "request_id", name=op.f("pk_open_requests")),
    )
    op.create_index(op.f("ix_open_requests_last_seen_ns"), "open_requests", ["last_seen_ns"], unique=False)
    op.create_table(
        "prices",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("valid_from_ns", sa.BigInteger(), nullable=False),
        sa.Column("valid_to_ns", sa.BigInteger(), nullable=True),
        sa.Column("input", sa.BigInteger(), nullable=False),
        sa.Column("output", sa.BigInteger(), nullable=False),
        sa.Column("cached_input", sa.BigInteger(), nullable=True),
        sa.Column("cache_write_5m", sa.BigInteger(), nullable=True),
        sa.Column("cache_write_1h", sa.BigInteger(), nullable=True),
        sa.Column("batch_input", sa.BigInteger(), nullable=True),
        sa.Column("batch_output", sa.BigInteger(), nullable=True),
        sa.Column("quantized_input", sa.BigInteger(), nullable=True),
        sa.Column("quantized_output", sa.BigInteger(), nullable=True),
        sa.Column("cpu_hour", sa.BigInteger(), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("confirmed", sa.Boolean(), nullable=False),
        sa.Column("added_version", sa.BigInteger(), nullable=False),
        sa.Column("replaced_version", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prices")),
    )
    op.create_table(
        "receipt_events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(length=12), nullable=False),
        sa.Column("event_ns", sa.BigInteger(), nullable=False),
        sa.Column("actual_delta", sa.BigInteger(), nullable=False),
        sa.Column("receipt", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_receipt_events")),
    )
    op.create_index(
        op.f("ix_receipt_events_request_id_tenant_id"), "receipt_events", ["request_id", "tenant_id"], unique=False
    )
    op.create_table(
        "reservations",
        sa.Column("reservation_id", sa.String(length=32), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("payload_digest", sa.String(length=64), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("create_ns", sa.BigInteger(), nullable=False),
        sa.Column("expire_ns", sa.BigInteger(), nullable=False),
        sa.Column("close_ns", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("reservation_id", name=op.f("pk_reservations")),
    )
    op.create_index(
        "ix_reservations_expire",
        "reservations",
        ["expire_ns"],
        unique=False,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_index(
        "uq_reservations_open",
        "reservations",
        ["tenant_id", "request_id"],
        unique=True,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_table(
        "tenants",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("baseline_model", sa.Text(), nullable=False),
        sa.Column("max_requests_per_minute", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_tenants")),
    )
    op.create_table(
        "budgets",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("window", sa.Text(), nullable=False),
        sa.Column("time_zone", sa.Text(), nullable=False),
        sa.Column("limit_nano_usd", sa.BigInteger(), nullable=False),
        sa.Column("hard", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name=op.f("fk_budgets_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budgets")),
        sa.UniqueConstraint("tenant_id", "name", name=op.f("uq_budgets_tenant_id_name")),
    )
    op.create_table(
        "receipts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("origin", sa.String(length=10), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("payload_digest", sa.String(length=64), nullable=False),
        sa.Column("attempts", sa.Text(), nullable=False),
        sa.Column("event_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("create_ns", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("tier", sa.Integer(), nullable=False),
        sa.Column("baseline_model", sa.Text(), nullable=False),
        sa.Column("cache", sa.String(length=16), nullable=False),
        sa.Column("failed", sa.Boolean(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("baseline", sa.BigInteger(), nullable=False),
        sa.Column("baseline_prompt_cached", sa.BigInteger(), nullable=False),
        sa.Column("saving_cache", sa.BigInteger(), nullable=False),
        sa.Column("saving_routing", sa.BigInteger(), nullable=False),
        sa.Column("saving_compression", sa.BigInteger(), nullable=False),
        sa.Column("saving_prompt_cache", sa.BigInteger(), nullable=False),
        sa.Column("saving_batch", sa.BigInteger(), nullable=False),
        sa.Column("saving_quantization", sa.BigInteger(), nullable=False),
        sa.Column("overhead", sa.BigInteger(), nullable=False),
        sa.Column("actual", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["event_id"], ["receipt_events.id"], name=op.f("fk_receipts_event_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_receipts")),
        sa.UniqueConstraint("request_id", "tenant_id", name=op.f("uq_receipts_request_id_tenant_id")),
    )
    op.create_index(op.f("ix_receipts_create_ns"), "receipts", ["create_ns"], unique=False)
    op.create_index(op.f("ix_receipts_tenant_id_create_ns"), "receipts", ["tenant_id", "create_ns"], unique=False)
    op.create_table(
        "budget_windows",
        sa.Column("budget_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("window_start_ns", sa.BigInteger(), nullable=False),
        sa.Column("spent", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["budget_id"], ["budgets.id"], name=op.f("fk_budget_windows_budget_id")),
        sa.PrimaryKeyConstraint("budget_id", "window_start_ns", name=op.f("pk_budget_windows")),
    )


def downgrade() -> None:
    """Take back."""
    op.drop_table("budget_windows")
    op.drop_index(op.f("ix_receipts_tenant_id_create_ns"), table_name="receipts")
    op.drop_index(op.f("ix_receipts_create_ns"), table_name="receipts")
    op.drop_table("receipts")
    op.drop_table("budgets")
    op.drop_table("tenants")
    op.drop_index(
        "uq_reservations_open",
        table_name="reservations",
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
    op.drop_index(
        "ix_reservations_expire",
        table_name="reservations",
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
    op.drop_table("reservations")
    op.drop_index(op.f("ix_receipt_events_request_id_tenant_id"), table_name="receipt_events")
    op.drop_table("receipt_events")
    op.drop_table("prices")
    op.drop_index(op.f("ix_open_requests_last_seen_ns"), table_name="open_requests")
    op.drop_table("open_requests")
    op.drop_table("layer_switches")
    op.drop_table("books")
    op.drop_table("attempts")

"""Prices in full, budgets by model, tag and rolling window, alerts, rates, exchange rates, utilization, rollups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_ROLLED = (
    "baseline",
    "baseline_prompt_cached",
    "saving_cache",
    "saving_routing",
    "saving_compression",
    "saving_prompt_cache",
    "saving_batch",
    "saving_quantization",
    "overhead",
    "actual",
    "input_tokens",
    "output_tokens",
    "latency_ns",
)


def _text(name: str, default: str = "") -> sa.Column[Any]:
    return sa.Column(name, sa.Text(), server_default=default, nullable=False)


def _number(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)


def _columns() -> dict[str, Sequence[sa.Column[Any]]]:
    """Columns that the first schema's tables get."""
    amounts = ("flex_input", "flex_output", "reasoning_output", "request_fee", "gpu_hour")
    return {
        "prices": [
            *(sa.Column(name, sa.BigInteger()) for name in amounts),
            _text("steps", "[]"),
            _text("confirmed_by"),
        ],
        "tenants": [
            _number("max_tokens_per_minute"),
            sa.Column("control_share", sa.Float(), server_default="0", nullable=False),
        ],
        "budgets": [
            *(_text(name) for name in ("model", "tag_key", "tag_value")),
            _number("rolling_seconds"),
            *(_text(name) for name in ("alert_percents", "alert_url", "ladder")),
        ],
        "budget_windows": [sa.Column("alerted_percent", sa.Integer(), server_default="0", nullable=False)],
        "reservations": [_text("model"), _text("tags", "{}")],
        "receipt_events": [sa.Column("counted_ns", sa.BigInteger())],
        "receipts": [
            _text("tags", "{}"),
            sa.Column("latency_ns", sa.BigInteger()),
            sa.Column("control", sa.Boolean(), server_default=sa.false(), nullable=False),
        ],
    }


def upgrade() -> None:
    """Apply."""
    for table, columns in _columns().items():
        for column in columns:
            op.add_column(table, column)
    op.create_table(
        "alerts",
        sa.Column("id", _ID, nullable=False),
        sa.Column("budget_id", _ID, nullable=False),
        sa.Column("window_start_ns", sa.BigInteger(), nullable=False),
        sa.Column("percent", sa.Integer(), nullable=False),
        sa.Column("spent", sa.BigInteger(), nullable=False),
        sa.Column("create_ns", sa.BigInteger(), nullable=False),
        sa.Column("next_try_ns", sa.BigInteger()),
        sa.Column("try_count", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["budget_id"], ["budgets.id"], name=op.f("fk_alerts_budget_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alerts")),
        sa.UniqueConstraint(
            "budget_id", "window_start_ns", "percent", name=op.f("uq_alerts_budget_id_window_start_ns_percent")
        ),
    )
    op.create_table(
        "rate_minutes",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("minute", sa.BigInteger(), nullable=False),
        sa.Column("request_count", sa.BigInteger(), nullable=False),
        sa.Column("token_count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "minute", name=op.f("pk_rate_minutes")),
    )
    op.create_table(
        "exchange_rates",
        sa.Column("currency", sa.String(3), nullable=False),
        sa.Column("valid_from_ns", sa.BigInteger(), nullable=False),
        sa.Column("nano_units_per_usd", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("currency", "valid_from_ns", name=op.f("pk_exchange_rates")),
    )
    op.create_table(
        "utilization",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("start_ns", sa.BigInteger(), nullable=False),
        sa.Column("end_ns", sa.BigInteger(), nullable=False),
        sa.Column("hardware", sa.Text(), nullable=False),
        sa.Column("unit_count", sa.Integer(), nullable=False),
        sa.Column("busy_share", sa.Float(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node", "start_ns", name=op.f("pk_utilization")),
    )
    op.create_index(op.f("ix_utilization_start_ns"), "utilization", ["start_ns"])
    op.create_table(
        "rollups",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("hour_ns", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("tier", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("baseline_model", sa.Text(), nullable=False),
        sa.Column("cache", sa.String(16), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _ROLLED),
        sa.PrimaryKeyConstraint(
            "tenant_id",
            "hour_ns",
            "model",
            "tier",
            "user_id",
            "project_id",
            "baseline_model",
            "cache",
            name=op.f("pk_rollups"),
        ),
    )
    op.create_index(op.f("ix_rollups_hour_ns"), "rollups", ["hour_ns"])
    op.create_table(
        "rollup_state",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("event_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollup_state")),
    )


def downgrade() -> None:
    """Take back."""
    op.drop_table("rollup_state")
    op.drop_index(op.f("ix_rollups_hour_ns"), table_name="rollups")
    op.drop_table("rollups")
    op.drop_index(op.f("ix_utilization_start_ns"), table_name="utilization")
    for table in ("utilization", "exchange_rates", "rate_minutes", "alerts"):
        op.drop_table(table)
    for table, columns in reversed(_columns().items()):
        for column in reversed(columns):
            op.drop_column(table, column.name)

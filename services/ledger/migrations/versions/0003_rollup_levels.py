"""Rollups by hour, day and month, with and without users; receipts by their event.

The rollups that were there are dropped: the ledger makes them anew from the receipt events after its start.
The index serves what is not rolled up yet. It is also what the foreign key to the events needs: whenever an event is
deleted, either store looks for a receipt that names it, by reading every receipt where there is no index.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_SUMS = (
    "requests",
    "failures",
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


def upgrade() -> None:
    """Apply."""
    op.create_index(op.f("ix_receipts_event_id"), "receipts", ["event_id"], unique=False)
    op.drop_table("rollups")
    op.execute("DELETE FROM rollup_state")
    times = ("level", "start_ns", "tenant_id")
    op.create_table(
        "rollups",
        sa.Column("level", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("start_ns", sa.BigInteger(), autoincrement=False, nullable=False),
        *_names(),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _SUMS),
        sa.PrimaryKeyConstraint(*times, *_KEY, name=op.f("pk_rollups")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Take back."""
    op.drop_index(op.f("ix_receipts_event_id"), table_name="receipts")
    op.drop_table("rollups")
    op.execute("DELETE FROM rollup_state")
    op.create_table(
        "rollups",
        sa.Column("hour_ns", sa.BigInteger(), autoincrement=False, nullable=False),
        *_names(),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _SUMS),
        sa.PrimaryKeyConstraint("tenant_id", "hour_ns", *_KEY, name=op.f("pk_rollups")),
    )
    op.create_index(op.f("ix_rollups_hour_ns"), "rollups", ["hour_ns"], unique=False)


_KEY = ("model", "tier", "user_id", "project_id", "baseline_model", "cache")


def _names() -> list[sa.Column[Any]]:
    return [
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("tier", sa.Integer(), autoincrement=False, nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("user_id", "project_id", "baseline_model")),
        sa.Column("cache", sa.String(length=16), nullable=False),
    ]

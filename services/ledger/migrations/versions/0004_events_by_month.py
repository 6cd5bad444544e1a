"""Receipt events in partitions by ranges of ids on Postgres: see ``services/ledger/partitions.py``.

What is there becomes one partition as it is; the months' are made by the ledger. Ids, the primary key and the
receipts' foreign key stay. On SQLite nothing changes. Taking it back copies the events into one table.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_INDEX = "ix_receipt_events_request_id_tenant_id"
_MONTH_BITS = 40  # Ids of before are counted from 1, and are below every month's.


def upgrade() -> None:
    """Apply."""
    if op.get_bind().dialect.name != "postgresql":
        return
    # Only after a way down is there a month's id: this partition ends with that month then.
    newest = op.get_bind().execute(sa.text("SELECT coalesce(max(id), 0) FROM receipt_events")).scalar_one()
    end = ((newest >> _MONTH_BITS) + 1) << _MONTH_BITS
    op.drop_constraint(op.f("fk_receipts_event_id"), "receipts", type_="foreignkey")
    for line in (
        "ALTER TABLE receipt_events RENAME TO receipt_events_before",
        "ALTER TABLE receipt_events_before RENAME CONSTRAINT pk_receipt_events TO pk_receipt_events_before",
        f"ALTER INDEX {_INDEX} RENAME TO ix_receipt_events_before_request_id_tenant_id",
        "CREATE TABLE receipt_events (LIKE receipt_events_before INCLUDING DEFAULTS, "
        "CONSTRAINT pk_receipt_events PRIMARY KEY (id)) PARTITION BY RANGE (id)",
        "ALTER SEQUENCE receipt_events_id_seq OWNED BY receipt_events.id",
        f"CREATE INDEX {_INDEX} ON receipt_events (request_id, tenant_id)",
        f"ALTER TABLE receipt_events ATTACH PARTITION receipt_events_before FOR VALUES FROM (MINVALUE) TO ({end})",
        "CREATE TABLE receipt_events_rest PARTITION OF receipt_events DEFAULT",
    ):
        op.execute(line)
    op.create_foreign_key(op.f("fk_receipts_event_id"), "receipts", "receipt_events", ["event_id"], ["id"])


def downgrade() -> None:
    """Take back."""
    if op.get_bind().dialect.name != "postgresql":
        return
    op.drop_constraint(op.f("fk_receipts_event_id"), "receipts", type_="foreignkey")
    for line in (
        "CREATE TABLE receipt_events_one (LIKE receipt_events INCLUDING DEFAULTS)",
        "INSERT INTO receipt_events_one SELECT * FROM receipt_events",
        "ALTER SEQUENCE receipt_events_id_seq OWNED BY receipt_events_one.id",
        "DROP TABLE receipt_events",
        "ALTER TABLE receipt_events_one RENAME TO receipt_events",
        "ALTER TABLE receipt_events ADD CONSTRAINT pk_receipt_events PRIMARY KEY (id)",
        f"CREATE INDEX {_INDEX} ON receipt_events (request_id, tenant_id)",
    ):
        op.execute(line)
    op.create_foreign_key(op.f("fk_receipts_event_id"), "receipts", "receipt_events", ["event_id"], ["id"])

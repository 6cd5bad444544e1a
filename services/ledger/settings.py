"""The ledger's own settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class LedgerSettings(BaseSettings):
    """Where the books are kept, what seeds them, and how soon what is left open is reconciled."""

    model_config = SettingsConfigDict(env_prefix="TENTH_LEDGER_", frozen=True, extra="ignore")

    database_url: str = Field(
        default="",
        description="sqlite+aiosqlite:///FILE or postgresql+asyncpg://USER@HOST/DB; empty: ledger.db in the data "
        "directory",
    )
    database_password_file: Path | None = Field(
        default=None, description="File with the database password, when the URL carries none"
    )
    catalog_file: Path | None = Field(
        default=Path("deploy/catalog.yaml"), description="Catalogue whose `prices:` seed the price book; empty: none"
    )
    read_connection_count: int = Field(default=8, ge=1, le=100, description="Connections for reads, 1..100")
    reservation_ttl_seconds: float = Field(
        default=600, gt=0, le=86_400, description="Life of a reservation whose request names none, seconds, 0..86400"
    )
    attempt_ttl_seconds: float = Field(
        default=600,
        gt=0,
        le=86_400,
        description="Quiet time after which attempts without receipt and reservation are reconciled, seconds, 0..86400",
    )
    unfinished_grace_seconds: float = Field(
        default=900,
        ge=0,
        le=86_400,
        description="Further time before an attempt that started and never ended counts with its worst case, "
        "seconds, 0..86400",
    )
    sweep_interval_seconds: float = Field(
        default=5, gt=0, le=3_600, description="Time between sweeps, seconds, 0..3600"
    )
    alert_key_file: Path | None = Field(
        default=None,
        description="File with the key that signs budget alerts, at least 16 bytes, read again for every round; "
        "empty: alerts are only logged",
    )
    alert_interval_seconds: float = Field(
        default=5, gt=0, le=3_600, description="Time between rounds of sending budget alerts, seconds, 0..3600"
    )
    rollup_interval_seconds: float = Field(
        default=5, gt=0, le=3_600, description="Time between steps of the rollups that reports read, seconds, 0..3600"
    )
    receipt_retention_days: int = Field(
        default=0,
        ge=0,
        le=36_500,
        description="Age at which single receipts, their events and attempts are deleted, days; their sums stay in the "
        "rollups. Longer than any budget's window. 0: never",
    )
    reservation_retention_days: int = Field(
        default=30, ge=0, le=36_500, description="Age at which closed reservations are deleted, days; 0: never"
    )
    retention_interval_seconds: float = Field(
        default=3_600, gt=0, le=86_400, description="Time between runs of retention, seconds, 0..86400"
    )

    def url(self, data_dir: Path) -> str:
        """The database's URL; by default a SQLite file in the data directory."""
        return self.database_url or f"sqlite+aiosqlite:///{data_dir / 'ledger.db'}"

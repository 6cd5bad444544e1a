"""Which databases the ledger takes, and where the default one lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.ledger.settings import LedgerSettings
from services.ledger.store import write_engine


@pytest.mark.parametrize(
    "url",
    [
        "sqlite+aiosqlite://",
        "sqlite+aiosqlite:///:memory:",
        "sqlite:///x.db",
        "mysql+aiomysql://h/d",
        "postgresql://h/d",
    ],
)
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"must be a file|is neither"):
        write_engine(url)


def test_by_default_a_file_in_the_data_directory() -> None:
    assert LedgerSettings().url(Path("data")) == "sqlite+aiosqlite:///data/ledger.db"


def test_a_password_from_a_file_completes_the_url() -> None:
    engine = write_engine("postgresql+asyncpg://tenth@db/ledger", "s3cret")
    assert engine.url.password == "s3cret"

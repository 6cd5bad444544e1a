"""Exchange rates: what is one, and what is refused by its field."""

from __future__ import annotations

import pytest

from mesh.errors import TenthError
from services.ledger.exchange import parse_rate


@pytest.mark.parametrize(
    ("text", "nano", "shown"),
    [
        ("1400.5", 1_400_500_000_000, "1400.5"),
        ("1400", 1_400_000_000_000, "1400"),
        ("0.000000001", 1, "0.000000001"),
        ("10.100000000", 10_100_000_000, "10.1"),
        ("9223372036.854775807", 2**63 - 1, "9223372036.854775807"),
    ],
)
def test_a_rate_is_exact(text: str, nano: int, shown: str) -> None:
    rate = parse_rate("KRW", text, 1, "bank", "rate")
    assert (rate.nano_units_per_usd, rate.units_per_usd) == (nano, shown)


NO_UNITS = ("0", "0.0", "-1", "", "x", "NaN", "1e3", "1_000", " 1", "1.", ".5", "0.0000000001", "\u0661", "9" * 11)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        *(({"units": text}, "rate.units_per_usd") for text in (*NO_UNITS, "9223372036.854775808")),
        *(({"currency": text}, "rate.currency") for text in ("", "krw", "KRWX", "USD", "K\n")),
        ({"source": " "}, "rate.source"),
        ({"starts": 0}, "rate.valid_from_time"),
        ({"starts": -5}, "rate.valid_from_time"),
    ],
)
def test_a_wrong_rate_is_refused_by_its_field(changes: dict[str, str | int], field: str) -> None:
    values = {"currency": "KRW", "units": "1400", "starts": 1, "source": "bank", **changes}
    with pytest.raises(TenthError) as caught:
        parse_rate(str(values["currency"]), str(values["units"]), int(values["starts"]), str(values["source"]), "rate")
    assert caught.value.field == field

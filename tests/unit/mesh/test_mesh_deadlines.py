"""The deadline budget."""

from __future__ import annotations

import pytest

from mesh import deadlines
from mesh.errors import Code, TenthError


@pytest.mark.parametrize(
    ("left", "cap", "low", "high"),
    [
        (None, None, None, None),
        (None, 2.0, 2.0, 2.0),
        (10.0, 2.0, 2.0, 2.0),
        (1.0, 2.0, 0.9, 0.99),
        (1.0, None, 0.9, 0.99),
    ],
)
def test_the_cap_or_what_is_left(left: float | None, cap: float | None, low: float | None, high: float | None) -> None:
    deadlines.set_remaining(left)
    got = deadlines.budget(cap)
    if low is None or high is None:
        assert got is None
    else:
        assert got is not None
        assert low <= got <= high


@pytest.mark.parametrize("left", [-5.0, 0.0, deadlines.MARGIN_SECONDS / 2])
def test_late_work_is_not_started(left: float) -> None:
    deadlines.set_remaining(left)
    with pytest.raises(TenthError) as caught:
        deadlines.budget(1.0)
    assert (caught.value.code, caught.value.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED")
    deadlines.set_remaining(None)
    assert deadlines.remaining() is None

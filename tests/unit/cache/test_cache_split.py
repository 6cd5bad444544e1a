"""Which rows training may see: the rule that the figures rest on."""

from __future__ import annotations

import pytest

from services.cache.split import in_training


@pytest.mark.parametrize(
    ("set_name", "group", "training"),
    [
        # sha1("banking77:card_arrival") and so on, worked out with sha1sum and bc: the rule must never change.
        ("banking77", "card_arrival", True),
        ("parakqc_ko", "0", False),
        ("parakqc_ko", "1", False),
        ("clinc150", "oos:clinc/oos_val/1", False),
        ("qqp_pairs", "qqp/0", True),
    ],
)
def test_the_split_is_this_one(set_name: str, group: str, training: bool) -> None:
    assert in_training(set_name, group) is training


def test_six_groups_in_ten_are_for_training() -> None:
    share = sum(in_training("made", str(number)) for number in range(20_000)) / 20_000
    assert share == pytest.approx(0.6, abs=0.02)


def test_the_split_differs_between_sets() -> None:
    sides = [(in_training("one", str(number)), in_training("other", str(number))) for number in range(100)]
    assert any(here is not there for here, there in sides)

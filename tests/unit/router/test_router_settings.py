"""The settings, and the rules file that one of them names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.router.files import rules_file
from services.router.settings import RouterSettings


def test_without_a_rules_file_there_are_no_rules() -> None:
    assert RouterSettings().rules_file is None
    assert rules_file(None) is None


async def test_a_changed_rules_file_is_taken_and_a_bad_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "routing.yaml"
    path.write_text("rules: []")
    file = rules_file(path)
    assert file is not None
    path.write_text("rules: [{ name: one, then: { tier_floor: medium } }]")
    os.utime(path, ns=(1, 1))
    assert await file.refresh()
    taken = file.current
    assert [rule.name for rule in taken.rules] == ["one"]
    path.write_text("rules: [{ name: one, then: { tier_flor: medium } }]")
    os.utime(path, ns=(2, 2))
    assert not await file.refresh()
    assert file.current is taken
    assert "routing.yaml:1: rules[0].then.tier_flor: unknown key" in caplog.text


@pytest.mark.parametrize("text", [None, "rules: [{}]"])
def test_a_missing_or_wrong_rules_file_ends_the_start(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "routing.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as caught:
        rules_file(path)
    assert "TENTH_ROUTER_RULES_FILE" in str(caught.value)
    assert "routing.yaml" in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"health_poll_seconds": 0},
        {"health_failure_count": 0},
        {"health_down_seconds": 0},
        {"health_down_seconds": 90, "health_max_down_seconds": 60},
        {"rules_check_seconds": 0},
        {"simple_below": 0.7, "complex_from": 0.6},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        RouterSettings(**wrong)  # type: ignore[arg-type]

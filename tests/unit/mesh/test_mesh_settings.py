"""Settings are frozen, documented, and fail by name."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from mesh.settings import MeshSettings, load


def test_every_setting_is_described() -> None:
    for name, field in MeshSettings.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TENTH_TRACE_SAMPLE_RATIO", "2"),
        ("TENTH_DRAIN_SECONDS", "-1"),
        ("TENTH_DEFAULT_DEADLINE_SECONDS", "soon"),
        ("TENTH_MAX_MESSAGE_BYTES", "1"),
        ("TENTH_REFLECTION", "perhaps"),
    ],
)
def test_a_wrong_variable_is_named(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as caught:
        load(MeshSettings)
    assert caught.value.code == 2
    assert variable in capsys.readouterr().err


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        MeshSettings().listen = "0.0.0.0:1"  # type: ignore[misc]

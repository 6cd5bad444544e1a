"""``tenth model`` hands its words on to the project's package, and says so where that is absent."""

from __future__ import annotations

import importlib.util

import pytest

from tenth_client.cli import main, parser


def test_options_are_handed_on_as_they_are() -> None:
    words = ["small", "--scheme", "int8", "--recipe", "round-to-nearest", "-h"]
    parsed = parser().parse_args(["model", "quantize", *words])
    assert (parsed.action, parsed.words) == ("quantize", words)


@pytest.mark.parametrize(
    ("words", "status"),
    [(["quantize", "nope", "--scheme", "int8"], 1), (["quantize", "small"], 2), (["evaluate", "nope"], 1)],
)
def test_the_status_is_the_packages(words: list[str], status: int, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["model", *words])
    assert caught.value.code == status
    assert f"tenth model {words[0]}: " in capfd.readouterr().err


def test_without_the_whole_package_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        main(["model", "evaluate", "small"])
    assert caught.value.code == 1
    assert "pip install 'tenth[models" in capsys.readouterr().err

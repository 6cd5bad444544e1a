"""Vega-Lite pictures as PNG files, all of one size."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 860, 420
_SCALE = 2.0


def layered(title: str, layers: list[dict[str, Any]]) -> dict[str, Any]:
    """A Vega-Lite picture of layers under a title."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "title": {"text": title, "anchor": "start", "fontSize": 17},
        "width": WIDTH,
        "height": HEIGHT,
        "background": "white",
        "layer": layers,
        "config": {"axis": {"labelFontSize": 13, "titleFontSize": 14}, "legend": {"labelFontSize": 13}},
    }


def draw(file: Path, picture: Mapping[str, Any]) -> str:
    """Write one PNG of a Vega-Lite picture. Returns why there is none, else an empty string."""
    if find_spec("vl_convert") is None:
        return "vl-convert-python, of the extra `bench`, is not installed"
    png: bytes = import_module("vl_convert").vegalite_to_png(
        dict(picture), scale=_SCALE, allowed_base_urls=[], show_warnings=False
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png)
    return ""


def draw_all(folder: Path, prefix: str, pictures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Write pictures by name as PREFIX_NAME.png. Returns which are missing and why, for a result's ``skipped``."""
    said = {f"{prefix}_{name}.png": draw(folder / f"{prefix}_{name}.png", each) for name, each in pictures.items()}
    return [f"{file}: {why}" for file, why in said.items() if why]

"""Finding model folders by name, and what they say they were made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from services.inference.model_folder import FolderError

STAMP = "tenth-model.json"
"""File in a finished folder that says what it was made from."""


def folder_of(model: str, models_dir: Path) -> Path:
    """A folder by path, or by its name under the models directory. Raises FolderError."""
    for folder in (models_dir / model, Path(model)):
        if (folder / "config.json").is_file():
            return folder
    there = sorted(path.parent.name for path in models_dir.glob("*/config.json"))
    known = f"; {models_dir} holds {', '.join(there)}" if there else f"; {models_dir} holds none (`make models`)"
    raise FolderError(f"there is no model {model!r}{known}")


def stamp_of(folder: Path) -> dict[str, Any]:
    """What a folder was made from; empty where it does not say."""
    try:
        found = json.loads((folder / STAMP).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

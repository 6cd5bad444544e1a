"""The file of fitted weights and thresholds, read and written. ``fit.py`` makes it; it holds numbers only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.compressor.ranking import Level, Weights
from services.compressor.retrieval import Fitted, Harshness

FILE = Path(__file__).parent / "weights" / "ranking.json"
COMMAND = "python -m services.compressor.fit --data DIR --vectors DIR"


def load(path: Path = FILE) -> Fitted:
    """What was fitted. Raises OSError, or ValueError naming the file when it is not as ``dump`` writes it."""
    try:
        content = json.loads(path.read_text("utf-8"))["fitted"]
        weights, thresholds = {}, {}
        for language, levels in content.items():
            for name, part in levels.items():
                level = Level(name)
                weights[language, level] = Weights(part["chunk"], part["hop"], part["unit"])
                for mode, value in part["thresholds"].items():
                    thresholds[language, level, Harshness(mode)] = float(value)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold fitted weights: {error}") from error
    return Fitted(weights, thresholds)


def dump(fitted: Fitted, notes: Mapping[str, Any]) -> str:
    """The file's text; ``notes`` says what it was fitted on."""
    content: dict[str, dict[str, Any]] = {}
    for (language, level), weights in sorted(fitted.weights.items()):
        content.setdefault(language, {})[level.value] = {
            "chunk": dict(weights.chunk),
            "hop": dict(weights.hop),
            "unit": dict(weights.unit),
            "thresholds": {
                mode.value: fitted.thresholds[language, level, mode]
                for mode in Harshness
                if (language, level, mode) in fitted.thresholds
            },
        }
    return json.dumps({"command": COMMAND, **notes, "fitted": content}, indent=1) + "\n"

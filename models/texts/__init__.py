"""Texts of our own: one to measure a model on, prompts for calibrating a quantization, questions with known answers."""

from __future__ import annotations

import json
from pathlib import Path

PROMPTS = Path(__file__).with_name("prompts.json")
"""What users say first, English and Korean in turn: a model that writes its own calibration texts answers them."""


def held_out() -> str:
    """English prose, letters, code and a dialogue; about 1,700 tokens. None of it answers a prompt."""
    return Path(__file__).with_name("held_out.txt").read_text("utf-8")


def questions() -> list[tuple[str, list[str]]]:
    """Simple questions, and for each the words of which a right answer holds one (lower case)."""
    found = json.loads(Path(__file__).with_name("questions.json").read_text("utf-8"))
    return [(item["question"], item["accept"]) for item in found]

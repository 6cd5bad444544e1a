"""Which labelled rows training may see. Pure; shared by training and by the benchmark's ``--held-out``."""

from __future__ import annotations

import hashlib

TRAINING_TENTHS = 6


def in_training(set_name: str, group: str) -> bool:
    """True for groups (paraphrase sets, intents, answers, premises, pairs) that training sees; never split by row."""
    return tenth(set_name, group) < TRAINING_TENTHS


def tenth(set_name: str, group: str) -> int:
    """The tenth of its set that a group falls into, 0..9."""
    # A hash for spreading, not for secrecy; spelt out here so that every machine splits alike.
    return int(hashlib.sha1(f"{set_name}:{group}".encode(), usedforsecurity=False).hexdigest(), 16) % 10

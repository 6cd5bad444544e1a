"""Which labelled rows the cache's weights may be learned from; all others are for reporting. Pure."""

from __future__ import annotations

import hashlib

TRAINING_TENTHS = 6


def in_training(set_name: str, group: str) -> bool:
    """True for rows that training may see: six groups in ten, chosen by a hash, so that nobody chose them.

    ``set_name`` is the file's name without ``.jsonl.gz``. Rows of one group are on one side together; the group is
    the intent, the paraphrase set's id, the answer's text or, for inference sets, the premise's text; a pair is a
    group of its own by its ``id``, and so is an out-of-scope row, as "oos:" and its ``id``.
    """
    # The hash spreads, it protects nothing.
    digest = hashlib.sha1(f"{set_name}:{group}".encode(), usedforsecurity=False).hexdigest()
    return int(digest, 16) % 10 < TRAINING_TENTHS

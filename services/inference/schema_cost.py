"""What a JSON schema costs an engine that turns it into a grammar. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MOST_REPEATS = 1000
"""Repeats counted by all patterns of a schema. The grammar is made in the engine's thread, in time that grows with the
square of them: 0.1 s for these (xgrammar 0.2.8), 3 s for 4,000, in which nobody gets a token."""
_COUNTED = re.compile(r"\{(\d+)(?:,(\d*))?\}")


def repeats(schema: Any) -> int:
    """The sum of the counted repeats (``{3}``, ``{1,64}``) in all patterns of a schema."""
    total, waiting = 0, [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting.extend(part)
        elif isinstance(part, Mapping):
            waiting.extend(part.values())
            keys = part.get("patternProperties")
            patterns = [part.get("pattern"), *(keys if isinstance(keys, Mapping) else ())]
            for pattern in patterns:
                if isinstance(pattern, str):
                    total += sum(int(most or least) for least, most in _COUNTED.findall(pattern))
    return total

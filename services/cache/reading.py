"""What one language's reader finds in a question. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


def words(text: str) -> frozenset[str]:
    """A set of words from a list that a person can read and edit."""
    return frozenset(text.split())


class Negation(IntEnum):
    """How negative a text is."""

    NONE = 0
    WEAK = 1
    """In a clause at the side, or by a word such as "declined": agrees with either."""
    STRONG = 2
    """The statement itself is denied."""


class Act(IntEnum):
    """What a text does."""

    NONE = 0
    """Tells something, or not known."""
    ASK = 1
    DO = 2
    FORBID = 3


@dataclass(frozen=True, slots=True)
class Reading:
    """Words are stems as the language's reader makes them; empty where there is none."""

    negated: frozenset[str] = frozenset()
    """Words within the scope of a negation."""
    plain: frozenset[str] = frozenset()
    """Content words outside of any."""
    negation: Negation = Negation.NONE
    excluded: frozenset[str] = frozenset()
    """What shall not be: "instead of X", "X 말고"."""
    asks: frozenset[str] = frozenset()
    """"when", "where", "who", "why", "how", "amount", "duration" ..."""
    modality: frozenset[str] = frozenset()
    """"may", "must", "should"."""
    act: Act = Act.NONE
    orders: frozenset[tuple[str, str, str]] = frozenset()
    """Triples of a word before, a pivot, and a word after."""
    verb: str = ""
    """What is asked to be done, or whether to do."""
    roles: tuple[tuple[str, str], ...] = ()
    """(noun, role) in order: "subject", "object", "from", "to", "than"."""


EMPTY = Reading()

"""What is measured of a question and a stored neighbour before an answer is served. Pure.

Two groups: features of the pair of texts, and features of the neighbourhood (do other near entries hold the same
answer, how far is the nearest other answer). The second group speaks only where answers repeat, as in a curated set.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from services.cache.guards import GUARD_NAMES, fired

PAIR = (
    "similarity",
    "letters",
    "letter_pairs",
    "words",
    "contained",
    "only_asked",
    "only_stored",
    "length_ratio",
    "length",
    "high_similarity",
    "high_letters",
    "same_words",
    "one_word_apart",
    "few_words_apart",
    "no_difference",
    "similarity_letters",
    "similarity_words",
    *(f"guard_{name.replace(' ', '_')}" for name in GUARD_NAMES),
)
"""Features of two texts, in order."""
NEIGHBOURHOOD = (
    *PAIR, "margin", "second_margin", "mean_margin", "letters_margin", "letters_mean_margin", "share", "weighted_share",
    "votes", "different", "nearest", "run", "near_five",
)  # fmt: skip
"""The same, and those of the neighbourhood."""

_WORD = re.compile(r"[^\W_]+")
_MOST_WORDS = 6
_SHORT_CHARACTERS = 200
_SHARPNESS = 30.0
"""How fast a neighbour's weight falls with its distance to the nearest: e^-1 per 1/30 of cosine."""
_NO_SECOND = -0.1
"""Margin of a second neighbour with the answer, where there is none."""
_STOP = frozenset(
    _WORD.findall(
        "a an the is are was were be do does did i my me you your we our it its of in on at to for from with and or by"
        " how what which can could should would will please tell than into this that there have has had am im s t d m"
        " so if get got"
    )
)


@dataclass(frozen=True, slots=True)
class Letters:
    """What is read off one text, once."""

    grams: frozenset[str]
    """Character 2-, 3- and 4-grams without spaces and punctuation."""
    pairs: frozenset[str]
    words: frozenset[str]
    """Content words; Korean ones by their first two letters, which forgives particles and endings."""
    length: int


def letters_of(text: str) -> Letters:
    """The letters and words of a text; the same text again costs a dictionary lookup."""
    return _letters_of_short(text) if len(text) <= _SHORT_CHARACTERS else _letters_of_long(text)


def _letters_of(text: str) -> Letters:
    lowered = text.lower()
    letters = "".join(letter for letter in lowered if letter.isalnum())
    grams = [frozenset(letters[at : at + size] for at in range(len(letters) - size + 1)) for size in (2, 3, 4)]
    words = (word[:2] if "가" <= word[0] <= "힣" else word for word in _WORD.findall(lowered))
    return Letters(
        grams=grams[0] | grams[1] | grams[2] or frozenset((letters,)),
        pairs=grams[0],
        words=frozenset(word for word in words if word not in _STOP),
        length=len(text),
    )


# Of 2,000 characters they take 0.2 MB: of long texts no more are kept than one lookup meets.
_letters_of_short = lru_cache(4096)(_letters_of)
_letters_of_long = lru_cache(32)(_letters_of)


def pair_features(asked: str, stored: str, similarity: float) -> tuple[float, ...]:
    """The values of ``PAIR`` for an asked and a stored question; similarity is their vectors' cosine, -1..1."""
    one, other = letters_of(asked), letters_of(stored)
    both, either = len(one.words & other.words), len(one.words | other.words)
    only_asked, only_stored = len(one.words) - both, len(other.words) - both
    letters, words = _dice(one.grams, other.grams), both / max(either, 1)
    guards = fired(asked, stored)
    return (
        similarity,
        letters,
        _dice(one.pairs, other.pairs),
        words,
        both / max(min(len(one.words), len(other.words)), 1),
        float(min(only_asked, _MOST_WORDS)),
        float(min(only_stored, _MOST_WORDS)),
        abs(math.log((one.length + 3) / (other.length + 3))),
        math.log(one.length + 1),
        # A linear model needs help where evidence bends: near identity, and where several signs agree.
        max(0.0, similarity - 0.95),
        max(0.0, letters - 0.6),
        float(not only_asked and not only_stored),
        float(only_asked + only_stored == 1),
        float(only_asked <= 1 and only_stored <= 1),
        float(not any(guards)),
        similarity * letters,
        similarity * words,
        *map(float, guards),
    )


def neighbourhood_features(
    place: int, similarities: Sequence[float], overlaps: Sequence[float], answers: Sequence[str]
) -> tuple[float, ...]:
    """The values that ``NEIGHBOURHOOD`` adds, for the neighbour at a place among all that were found, best first.

    ``answers`` names each neighbour's answer; equal names are one answer. ``overlaps`` are those of ``letter_overlap``.
    """
    own = answers[place]
    same = [answer == own for answer in answers]
    ours = [value for value, mine in zip(similarities, same, strict=True) if mine]
    others = [value for value, mine in zip(similarities, same, strict=True) if not mine] or [similarities[-1]]
    our_letters = sorted((value for value, mine in zip(overlaps, same, strict=True) if mine), reverse=True)
    other_letters = sorted((value for value, mine in zip(overlaps, same, strict=True) if not mine), reverse=True) or [
        0.0
    ]
    weights = [math.exp((value - similarities[0]) * _SHARPNESS) for value in similarities]
    run = next((at for at, answer in enumerate(answers) if answer != answers[0]), len(answers))
    is_nearest = own == answers[0]
    return (
        similarities[place] - others[0],
        ours[1] - others[0] if len(ours) > 1 else _NO_SECOND,
        _mean(ours[:3]) - _mean(others[:3]),
        our_letters[0] - other_letters[0],
        _mean(our_letters[:3]) - _mean(other_letters[:3]),
        len(ours) / len(same),
        sum(weight for weight, mine in zip(weights, same, strict=True) if mine) / sum(weights),
        float(len(ours)),
        len(set(answers)) / len(answers),
        float(is_nearest),
        run / len(answers) if is_nearest else 0.0,
        sum(value for value, mine in zip(similarities[:5], same[:5], strict=True) if mine) / 5,
    )


def letter_overlap(asked: str, stored: str) -> float:
    """Dice coefficient of the character 2-, 3- and 4-grams of two texts, 0..1."""
    return _dice(letters_of(asked).grams, letters_of(stored).grams)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _dice(one: frozenset[str], other: frozenset[str]) -> float:
    total = len(one) + len(other)
    return 2 * len(one & other) / total if total else 1.0

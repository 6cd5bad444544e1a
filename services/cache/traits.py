"""What of one text the guards compare. Pure; each text is read once, whatever number of others it meets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from services.cache import english, korean
from services.cache.kinds import BEGINNINGS, LONGEST_BEGINNING, TIMES, WHOLE
from services.cache.opposites import Sides, sides
from services.cache.quantities import identifiers, quantities
from services.cache.reading import Reading
from services.cache.reading import words as word_set

REMEMBERED = 8192
"""Short texts whose traits are kept: 6 KB each."""
SHORT_CHARACTERS = 300
LONGEST_REMEMBERED = 1000
"""Characters of the longest text whose traits are kept; of those that are not short, as many as one lookup meets."""

_TOKEN = re.compile(
    r"[a-z]+(?:'(?:t|re|ve|ll|m|d)(?![a-z]))?(?:[+#]{1,2}(?![a-z]))?|[0-9]+[a-z]*|[가-힣][가-힣0-9a-z]*|[^\W_]+"
    r"|[,.?!]"
)
_HANGUL = re.compile("[가-힣]")
_PLAIN: dict[int, int | None] = {
    ord("’"): ord("'"),
    **{wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)},
    **dict.fromkeys(
        (0xAD, 0x61C, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFE0F, 0xFEFF)
    ),
}
"""Letters of full width are their plain ones, and what nobody sees (soft hyphens, zero-width spaces, marks of
direction) is not there: a word that holds one is still that word."""
_CAPITAL = re.compile(r"(?<=[^.?!] )[A-Z][A-Za-z0-9-]*|\b[A-Z]{2,}\b|(?<=[.?!] )[A-Z][\w-]*(?=[.?!]?$)")
_NO_NAMES = word_set(
    "i im ive id ill thanks thank please hello hi ok okay faq asap pin atm app sms url tv pc a an the is are do does"
    " can how what why when where who which my it in on to for of and or"
)
_PARTICLE = re.compile(
    r"(?:에서|부터|까지|으로|이랑|하고|보다|에게|한테|에는|에선|이나|이라|은|는|이|가|을|를|에|로|와|과|랑|도|만"
    r"|의|엔|산|제|식|인|행|발)?(?:은|는|도|만|의|요)?"
)


@dataclass(frozen=True, slots=True)
class Traits:
    """One text, taken apart."""

    text: str
    words: frozenset[str]
    """Lower-case words, punctuation left out."""
    quantities: frozenset[str]
    identifiers: frozenset[str]
    times: frozenset[tuple[str, str]]
    """(kind, member) of weekdays, months, parts of the day and other times."""
    things: frozenset[tuple[str, str]]
    """(kind, member) of everything else that ``kinds`` knows."""
    initials: str
    """First letters of the words, in order: what acronyms are looked for in."""
    names: tuple[str, ...]
    """Capitalised words that do not only begin a sentence, lower-case."""
    sides: Sides
    reading: Reading
    is_korean: bool


def analyse(text: str) -> Traits:
    """Take a text apart, in time linear to its length; the same text again costs a dictionary lookup."""
    if len(text) <= SHORT_CHARACTERS:
        return _remembered(text)
    return _remembered_long(text) if len(text) <= LONGEST_REMEMBERED else _analyse(text)


def _analyse(text: str) -> Traits:
    lowered = text.translate(_PLAIN).lower()
    tokens = tuple(_TOKEN.findall(lowered))
    is_korean = _HANGUL.search(lowered) is not None
    times, things = _kinds(tokens)
    return Traits(
        text=text,
        words=frozenset(token for token in tokens if token[0].isalnum()),
        quantities=quantities(lowered),
        identifiers=identifiers(lowered),
        times=times,
        things=things,
        initials="".join(token[0] for token in tokens if token[0].isalnum()),
        names=tuple(_names(text)),
        sides=sides(tokens),
        reading=korean.read(tokens, lowered) if is_korean else english.read(tokens),
        is_korean=is_korean,
    )


_remembered = lru_cache(REMEMBERED)(_analyse)
_remembered_long = lru_cache(32)(_analyse)


def _kinds(tokens: tuple[str, ...]) -> tuple[frozenset[tuple[str, str]], frozenset[tuple[str, str]]]:
    times: set[tuple[str, str]] = set()
    things: set[tuple[str, str]] = set()
    before = ""
    for place, token in enumerate(tokens):
        found = None
        if before:
            found = WHOLE.get(f"{before} {token}")
            if found is None and token[0] >= "가":
                found = next(
                    (BEGINNINGS[two] for n in (1, 2, 3) if (two := f"{before} {token[:n]}") in BEGINNINGS), None
                )
        found = found or _kind(token)
        if found is not None and not _excluded(tokens, place):
            (times if found[0] in TIMES else things).add(found)
        before = token
    return frozenset(times), frozenset(things)


_DISMISSING = ("말고", "대신", "아니라", "아니고", "빼고", "제외", "보다는")


def _excluded(tokens: tuple[str, ...], place: int) -> bool:
    """Whether a thing is named only to say that it is not meant: "coffee instead of tea", "여름 말고 겨울"."""
    token = tokens[place]
    if token.endswith(("말고", "보다는", "보단")):
        return True
    if place + 1 < len(tokens) and tokens[place + 1].startswith(_DISMISSING):
        return True
    if place + 1 < len(tokens) and tokens[place + 1].endswith("지말고"):
        return True
    if place + 2 < len(tokens) and tokens[place + 1].endswith("지") and tokens[place + 2].startswith("말고"):
        return True
    return tokens[max(place - 2, 0) : place] in (("instead", "of"), ("rather", "than"))


@lru_cache(16384)
def _kind(token: str) -> tuple[str, str] | None:
    if token[0].isascii() and not _HANGUL.search(token):
        return WHOLE.get(token) or (WHOLE.get(token[:-1]) if token.endswith("s") else None)
    for length in range(min(len(token), LONGEST_BEGINNING), 0, -1):
        beginning = token[:length]
        found = BEGINNINGS.get(beginning)
        if found is not None:
            return found
        found = WHOLE.get(beginning)
        if found is not None and _PARTICLE.fullmatch(token, length):
            return found
    return None


def _names(text: str) -> list[str]:
    # A text written in capitals, or with Every Word Capitalised, says nothing by them.
    words = re.findall(r"[A-Za-z]+", text)
    capitals = sum(word[0].isupper() for word in words)
    if len(words) > 3 and capitals > 0.6 * len(words):
        return []
    found = (match.group().lower().removesuffix("'s") for match in _CAPITAL.finditer(text))
    # What ``kinds`` knows is the things guard's, which knows other names of it.
    return [name for name in found if name not in _NO_NAMES and name not in WHOLE]

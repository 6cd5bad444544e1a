"""What is read off a message to tell whether a question is about it: terms, names, dates. Pure, English and Korean.

English words lose their commonest endings (not a stemmer: "bought" stays apart from "buy"); Hangul words become
character bigrams, which stand up to particles and endings without a morphological analyser.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from services.compressor.prompt import Message

_WORD = re.compile(r"[\uac00-\ud7a3]+|(?:(?![\uac00-\ud7a3])[^\W_])+")
_STOP = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be been but by can could did do does for from had has have he her his how i if in is it "
        "its me my not of on or our she so that the their them they this to us was we were what when where which who "
        "why will with would you your about",
    )
)
_ENDINGS = (("ingly", ""), ("edly", ""), ("ing", ""), ("ies", "y"), ("ied", "y"), ("ed", ""), ("es", ""), ("s", ""))
_LEAST_STEM = 3
_MOST_CHARS = 64
"""Of a longer "word" (base64, a line of dashes) only so much counts."""

_MONTHS = {
    name: number
    for number, name in enumerate(
        (
            *("january", "february", "march", "april", "may", "june"),
            *("july", "august", "september", "october", "november", "december"),
        ),
        1,
    )
}
_SHORT_MONTHS = {name[:3]: number for name, number in _MONTHS.items()} | {"sept": 9}
_MONTH = "|".join([*_MONTHS, *sorted(_SHORT_MONTHS, key=len, reverse=True)])
_DATE = re.compile(
    rf"\b(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<month>{_MONTH})\b\.?,?(?: (?P<year>(?:19|20)\d\d)\b)?"
    rf"|\b(?P<month2>{_MONTH})\b\.?,?(?: (?P<day2>\d{{1,2}})(?:st|nd|rd|th)?\b)?,?(?: (?P<year2>(?:19|20)\d\d)\b)?"
    r"|\b(?P<year3>(?:19|20)\d\d)[-./](?P<month3>\d{1,2})[-./](?P<day3>\d{1,2})\b"
    r"|(?:(?P<year4>(?:19|20)\d\d)년 ?)?(?P<month4>\d{1,2})월(?: ?(?P<day4>\d{1,2})일)?"
    r"|(?P<year5>(?:19|20)\d\d)년",
    re.IGNORECASE,
)
_DATE_CUE = re.compile(r"\d|may|mar|jan|feb|apr|jun|jul|aug|sep|oct|nov|dec", re.IGNORECASE)
_HEAD_CHARS = 60
"""A message's own date stands in so many of its first characters."""
_AUTHOR = re.compile(r"\A\s*([^\W\d_][\w .'-]{0,30}?)\s?[:：]\s")
_I_SAID = re.compile(
    r"\b(?:(?:did|have) i|i (?:said|told|mention(?:ed)?|ask(?:ed)?|wrote|gave|sent))\b"
    r"|(?:내가|제가|나는|저는)[^.?!\n]{0,20}(?:말|얘기|이야기|언급|물어|알려|보낸|준|썼|적)",
    re.IGNORECASE,
)
_YOU_SAID = re.compile(
    r"\b(?:(?:did|have) you|you (?:said|told|mention(?:ed)?|suggest(?:ed)?|recommend(?:ed)?|wrote|gave|answered))\b"
    r"|(?:네가|당신이|너가|아까)[^.?!\n]{0,20}(?:말|얘기|추천|제안|알려|답|설명)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Date:
    """A date, or as much of one as was said; 0 is not said."""

    year: int = 0
    month: int = 0
    day: int = 0

    @property
    def whole(self) -> bool:
        """True when nothing is missing."""
        return bool(self.year and self.month and self.day)


class Terms:
    """Terms of texts, with a memory for words, since a conversation says the same ones over and over."""

    __slots__ = ("_memory",)

    def __init__(self) -> None:
        self._memory: dict[str, tuple[str, ...]] = {}

    def of(self, text: str) -> list[str]:
        """The terms of a text, in order, repeated as often as they stand in it."""
        memory, result = self._memory, list[str]()
        for word in _WORD.findall(text.lower()):
            found = memory.get(word)
            if found is None:
                found = memory[word] = _terms_of(word)
            result += found
        return result


def _terms_of(word: str) -> tuple[str, ...]:
    if "\uac00" <= word[0] <= "\ud7a3":
        return (word,) if len(word) == 1 else tuple(word[at : at + 2] for at in range(min(len(word), _MOST_CHARS) - 1))
    return () if word in _STOP else (_stem(word[:_MOST_CHARS]),)


def _stem(word: str) -> str:
    if not word.isascii() or not word.isalpha():
        return word
    for ending, instead in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _LEAST_STEM:
            word = word[: -len(ending)] + instead
            break
    if len(word) > _LEAST_STEM + 1 and word[-1] == "e":
        word = word[:-1]
    if len(word) > _LEAST_STEM and word[-1] == word[-2] and word[-1] not in "ls":
        word = word[:-1]  # "planned" and "plan".
    return word


def dates(text: str) -> Iterator[Date]:
    """The dates in a text, in order. Impossible ones are passed over."""
    if not _DATE_CUE.search(text):
        return
    for match in _DATE.finditer(text):
        parts = match.groupdict()
        # A bare "may" or "march" is seldom a month; with a capital, a day or a year it is.
        name = parts["month"] or parts["month2"] or ""
        if name and not (parts["day"] or parts["day2"] or parts["year2"]) and not name[:1].isupper():
            continue
        number = _SHORT_MONTHS[name.lower()[:3]] if name else _number(parts["month3"] or parts["month4"])
        year = _number(parts["year"] or parts["year2"] or parts["year3"] or parts["year4"] or parts["year5"])
        day = _number(parts["day"] or parts["day2"] or parts["day3"] or parts["day4"])
        if number <= 12 and day <= 31:
            yield Date(year, number, day)


def _number(text: str | None) -> int:
    return int(text) if text else 0


def own_date(text: str) -> Date | None:
    """The whole date that a text begins with, as exported chats put it at the head of a day or a message."""
    return next((date for date in dates(text[:_HEAD_CHARS]) if date.whole), None)


def author(message: Message) -> str:
    """Who said it, in lower case: the message's name, or ``Name:`` at its beginning; empty when it is not said."""
    if message.name:
        return message.name.lower()
    match = _AUTHOR.match(message.texts[0]) if message.texts else None
    return match[1].lower() if match else ""


def asked_authors(question: str, authors: frozenset[str]) -> frozenset[str]:
    """Those authors that a question names; none when it names all of them, for then it tells nothing."""
    words = set(_WORD.findall(question.lower()))
    hangul = [word for word in words if "\uac00" <= word[0] <= "\ud7a3"]

    def named(name: str) -> bool:
        parts = _WORD.findall(name)
        # A Korean name comes with a particle.
        return bool(parts) and all(part in words or any(word.startswith(part) for word in hangul) for part in parts)

    found = frozenset(name for name in authors if name and named(name))
    return found if len(found) < len(authors) else frozenset()


def asked_roles(question: str) -> tuple[bool, bool]:
    """Whether the question asks for what the user said, and for what the assistant said."""
    return bool(_I_SAID.search(question)), bool(_YOU_SAID.search(question))

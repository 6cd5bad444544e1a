"""Terms, names, numbers and identifiers of a text, and what kind of answer a question wants. English and Korean. Pure.

Hangul words give character bigrams, which stand up to particles and endings without a morphological analyser, and the
word without its particle; other words give a light stem.
"""

from __future__ import annotations

import re
from enum import IntFlag

_WORD = re.compile(r"[\uac00-\ud7a3]+|(?:(?![\uac00-\ud7a3])[^\W_])+(?:'s\b)?")
# The commonest words, which match everything.
_STOP = frozenset(
    re.findall(
        r"\S+",
        "a an and are as at be been being by can could did do does doing done for from had has have he her "
        "hers him his how i if in into is it its may me might my of on or our ours shall she should so some "
        "such than that the their theirs them then there these they this those to us was we were what when "
        "where whether which while who whom whose why will with would you your yours about also please tell "
        "give name many much called s t",
    )
)
_STOP_KO = frozenset(
    re.findall(
        r"\S+",
        "무엇 무엇인가 무엇인가요 누구 누구인가 누구인가요 어디 어디인가 언제 언제인가 얼마 어떤 어느 몇 것 "
        "수 등 및 그 이 저 있는 하는 된 한",
    )
)
_PARTICLE = re.compile(
    r"(?:에서는|에게서|으로는|이라는|이라고|라는|라고|에서|에게|까지|부터|으로|이나|처럼|보다|마다"
    r"|조차|밖에|이다|했다|하는|했던|인가|은|는|이|가|을|를|의|에|로|와|과|도|만|나)$"
)
_HANGUL = re.compile(r"[\uac00-\ud7a3]")
_NAME = re.compile(
    r"(?<![.!?…\"“]\s)(?<!^)\b[A-Z][\w'’.-]*(?:\s+(?:(?:of|the|de|van|von|and|&)\s+)?[A-Z][\w'’.-]*)*"
    r"|\b[A-Z][\w'’-]+(?:\s+[A-Z][\w'’-]+)+"
)
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_DIGIT = re.compile(r"\d")
_DATE = re.compile(
    r"\b1[0-9]\d\d\b|\b20\d\d\b|\b(?:January|February|March|April|May|June|July|August|September|October|November|December)\b"
    r"|\d\s?(?:년|월|일|세기|시)|\bcentur(?:y|ies)\b|\bBCE?\b|\bAD\b"
)
_COUNT_WORD = re.compile(
    r"\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozen|hundred|thousand|million|billion|half|third|percent)\b"
    r"|[한두세네]\s?(?:명|개|번|곳|차례|가지)",
    re.IGNORECASE,
)
_IDENTIFIER = re.compile(
    r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
    r"|[\w.+-]+@[\w-]+\.[\w.-]+\w|\bhttps?://\S+\w"
    r"|\b(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[A-Za-z0-9][\w-]{3,}\w|\b\d{5,}\b|\b[A-Za-z]+(?:_[A-Za-z0-9]+)+\b|\b[a-z]+[A-Z]\w+\b"
)
_BOTH_STRESSED = re.compile(r"\d(?:st|nd|rd|th|s)$", re.IGNORECASE)


class Answer(IntFlag):
    """What a question asks for, and what a sentence holds."""

    NOTHING = 0
    DATE = 1
    NUMBER = 2
    NAME = 4


_WANTS = (
    (
        Answer.DATE,
        re.compile(
            r"\bwhen\b|\b(?:what|which|in what|in which) (?:year|date|day|month|century|decade)\b"
            r"|언제|몇\s?(?:년|월|일|시|세기)|날짜|연도|년도|시기"
        ),
    ),
    (
        Answer.NUMBER,
        re.compile(
            r"\bhow (?:many|much|old|long|far|tall|big|large|high|often|fast|deep)\b"
            r"|\bwhat (?:number|percentage|population)\b|\bpopulation\b|몇|얼마|나이"
        ),
    ),
    (
        Answer.NAME,
        re.compile(
            r"\bwho(?:se|m)?\b|\bwhere\b|\b(?:what|which) (?:country|city|state|town|person|actor|actress|band"
            r"|company|team|river)\b|누구|누가|어디"
        ),
    ),
)


def terms(text: str, stems: dict[str, str] | None = None) -> list[str]:
    """Terms in order, repeated as they stand. ``stems`` is a caller's memory of stems: looking up is quicker."""
    known = {} if stems is None else stems
    result: list[str] = []
    for word in _WORD.findall(text.lower()):
        if "\uac00" <= word[0] <= "\ud7a3":
            if word in _STOP_KO:
                continue
            if len(word) == 1:
                result.append(word)
                continue
            result.extend([word[at : at + 2] for at in range(len(word) - 1)])
            bare = _PARTICLE.sub("", word)
            if len(bare) > 2:
                result.append(bare)
        elif word not in _STOP:
            found = known.get(word)
            if found is None:
                found = known[word] = stem(word)
            result.append(found)
    return result


def stem(word: str) -> str:
    """A lower-case English word without its commonest endings."""
    if word.endswith("'s"):
        word = word[:-2]
    if len(word) < 4 or not word.isascii() or word[-1].isdigit():
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "ls":
                word = word[:-1]
            return word
    return word[:-1] if word.endswith("e") and len(word) > 4 else word


def is_korean(text: str) -> bool:
    """True when a text is written in Hangul, some Latin words aside."""
    return len(_HANGUL.findall(text)) * 4 >= sum(map(str.isalpha, text)) > 0


def names(text: str) -> frozenset[str]:
    """Names and numbers that may link one text to another, lower-case."""
    found = {match.rstrip(".,'’-").lower() for match in _NAME.findall(text)}
    found.update(match for match in _NUMBER.findall(text) if len(match) > 2)
    return frozenset(each for each in found if len(each) > 2 and each not in _STOP)


def numbers(text: str) -> frozenset[str]:
    """The numbers of a text, as written."""
    return frozenset(_NUMBER.findall(text))


def identifiers(text: str) -> frozenset[str]:
    """Keys, codes, addresses: what must be matched exactly or not at all."""
    return frozenset(each for each in _IDENTIFIER.findall(text) if not _BOTH_STRESSED.search(each))


def wanted(question: str) -> Answer:
    """What a question asks for; nothing when it does not say."""
    lowered = question.lower()
    return next((kind for kind, pattern in _WANTS if pattern.search(lowered)), Answer.NOTHING)


def held(text: str, wants: Answer) -> bool:
    """Whether a sentence holds what could answer a question that wants this."""
    return (
        (Answer.NAME in wants and bool(_NAME.search(text)))
        or (Answer.NUMBER in wants and bool(_DIGIT.search(text) or _COUNT_WORD.search(text)))
        or (Answer.DATE in wants and bool(_DATE.search(text)))
    )

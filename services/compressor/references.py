"""What a question refers to: numbers, negations and identifiers that a sentence must not lose. Pure."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from services.compressor.protected import hard_spans, soft_spans
from services.compressor.spans import Kind

_DIGITS = re.compile(r"\d+(?:[,.]\d+)*")
_SCALES = {"십": 10, "백": 100, "천": 1_000, "만": 10_000, "억": 10**8, "조": 10**12}
_EN_SCALES = {"hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_TEENS = re.findall(
    r"\w+",
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORDS = {
    **{word: value for value, word in enumerate(_TEENS, 2)},
    **{word: value for value, word in zip(range(20, 100, 10), _TENS, strict=True)},
    "twice": 2,
    "thrice": 3,
}
_KOREAN_ONES = ("한", "두", "세", "네", "다섯", "여섯", "일곱", "여덟", "아홉", "열", "열한", "열두")
_NATIVE = {
    **{word: value for value, word in enumerate(_KOREAN_ONES, 1)},
    "스무": 20,
    "스물": 20,
}
_NATIVE_WORD = re.compile("|".join(sorted(_NATIVE, key=len, reverse=True)))
_KOREAN_AMOUNT = re.compile(r"(\d+(?:,\d{3})*(?:\.\d+)?)\s?([십백천만억조]*)")
_ASKS_NUMBER = re.compile(
    r"\bhow (?:many|much|old|long|far|tall|high|deep|big|large|fast|often|heavy)\b|\bwhen\b"
    r"|\b(?:what|which) (?:\w+ )?(?:year|date|day|month|time|number|percent(?:age)?|age|price|cost|amount|rate"
    r"|score|size|temperature)\b"
    r"|몇|얼마|언제|며칠|연도|년도|날짜|비율|개수|가격|수치|나이",
    re.IGNORECASE,
)
_TERM = re.compile(r"[가-힣]+|[A-Za-z]+")
_PARTICLE = re.compile(
    r"(?<=[가-힣]{2})(?:에서는|에서도|으로는|으로서|으로써|에게서|까지는|부터는|이라는|이라고|입니까|인가요|인가"
    r"|이란|에서|에게|으로|까지|부터|처럼|보다|이나|이며|하고"
    r"|한테|마다|조차|라는|라고|란|은|는|이|가|을|를|의|에|와|과|도|로|만|나)$"
)
_COUNTER_WORD = re.compile(r"[명개번원년월일시분초살권장][은는이가을를의에도]")
_STOP = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be by can did do does for from had has have how in is it its of on or that the their"
        " there this "
        "to was were what when where which who whom whose why will with would you your not no never if me about"
        " many much any "
        "some 무엇 어떤 누구 언제 어디 몇 얼마 있는 있다 하는 그 이 저 것 수 등 및 대한 대해 때 없는 않은 아닌"
        " 아니라 않는",
    )
)


@dataclass(frozen=True, slots=True)
class References:
    """What one question refers to; made once, asked for every sentence."""

    numbers: frozenset[str]
    identifiers: frozenset[str]
    negated: bool
    asks_number: bool
    terms: frozenset[str]

    def holds(self, sentence: str) -> bool:
        """True when the sentence holds a number, a negation or an identifier that the question refers to.

        An identifier or a quotation of the question, in any case of letters. A number of the same value ("5만" is
        50,000, "three" is 3); of one digit only beside a word of the question. When the question is negated: a negation
        beside two of its words. When it asks for a number or a time: a number beside half of its words, two at least.
        """
        folded = sentence.casefold()
        if any(identifier in folded for identifier in self.identifiers):
            return True
        if not (self.numbers or self.negated or self.asks_number):
            return False
        soft = soft_spans(sentence)
        if not soft:
            return False
        shared = sum(term in folded for term in self.terms)
        if self.numbers:
            common = self.numbers & numbers(sentence)
            if any(len(number) > 1 for number in common) or (common and shared):
                return True
        kinds = {span.kind for span in soft}
        wanted = min(2, max(1, len(self.terms)))
        if self.negated and Kind.NEGATION in kinds and shared >= wanted:
            return True
        return self.asks_number and Kind.NUMBER in kinds and shared >= max(wanted, -(-len(self.terms) // 2))


def references(question: str) -> References:
    """What a question refers to."""
    hard = hard_spans(question)
    named = set()
    for span in hard:
        if span.kind in (Kind.IDENTIFIER, Kind.URL, Kind.EMAIL, Kind.PATH, Kind.QUOTATION, Kind.CODE):
            name = question[span.start : span.end].strip("`\"'“”‘’「」『』«»《》〈〉{} \n").casefold()
            if 2 <= len(name) <= 200:
                named.add(name)
    return References(
        numbers(question),
        frozenset(named),
        any(span.kind is Kind.NEGATION for span in soft_spans(question)),
        _ASKS_NUMBER.search(question) is not None,
        _terms(question),
    )


def referred(question: str, sentence: str) -> bool:
    """``references(question).holds(sentence)``; for many sentences make the references once."""
    return references(question).holds(sentence)


def dropped(question: References, before: str, after: str) -> bool:
    """True when an edit from ``before`` to ``after`` loses a number or negation of a sentence that is referred to."""
    if before == after or not question.holds(before):
        return False
    negations = sum(span.kind is Kind.NEGATION for span in soft_spans(before))
    kept = sum(span.kind is Kind.NEGATION for span in soft_spans(after))
    lost = {name for name in question.identifiers if name in before.casefold() and name not in after.casefold()}
    return bool(numbers(before) - numbers(after)) or kept < negations or bool(lost)


def numbers(text: str) -> frozenset[str]:
    """The values of the numbers in a text, as plain decimal digits; full-width digits too. Of a date each part."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    found: set[str] = set()
    for span in soft_spans(text):
        if span.kind is not Kind.NUMBER:
            continue
        written = text[span.start : span.end]
        if any(character.isdigit() for character in written):
            found.update(_values(written))
        else:
            found.update(_worded(written))
    # Digits within identifiers are part of a name, but a version or a code may be asked for by its number alone.
    return frozenset(found)


def _values(written: str) -> set[str]:
    found, total = set(), 0.0
    korean = any(character in _SCALES for character in written)
    for match in _KOREAN_AMOUNT.finditer(written) if korean else ():
        value = float(match[1].replace(",", ""))
        for scale in match[2]:
            value *= _SCALES[scale]
        total += value
    if total:
        found.add(_plain(total))
    for match in _DIGITS.finditer(written) if not korean else ():
        digits = match[0]
        whole = re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?", digits)
        for part in [digits.replace(",", "")] if whole else re.split("[,.]", digits):
            value = float(part[:300])
            scale = next((size for word, size in _EN_SCALES.items() if word in written.lower()), 1)
            found.add(_plain(value * scale))
            if scale > 1:
                found.add(_plain(value))
    return found


def _worded(written: str) -> set[str]:
    lower = written.lower()
    total = sum(_WORDS.get(word, 0) for word in lower.split("-"))
    native = _NATIVE_WORD.match(written)
    if total:
        return {_plain(float(total))}
    if native:
        return {_plain(float(_NATIVE[native[0]]))}
    return set()


def _plain(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(round(value, 6))


def _terms(text: str) -> frozenset[str]:
    found = set()
    for word in _TERM.findall(text.casefold()):
        stem = _PARTICLE.sub("", word)
        if len(stem) >= (3 if stem.isascii() else 2) and stem not in _STOP and not _COUNTER_WORD.fullmatch(stem):
            found.add(stem)
    return frozenset(found)

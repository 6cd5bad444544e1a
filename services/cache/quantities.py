"""Numbers with their units, and identifiers, as they stand in English and Korean questions. Pure."""

from __future__ import annotations

import re
import unicodedata

_NUMBER = re.compile(
    r"(?P<currency>[$€£₩¥])?\s?(?P<number>\d+(?:[.,:/]\d+)*)\s?(?P<scale>[백천만억]|k(?![a-z])|thousand|million"
    r"|billion)?\s?"
    r"(?P<unit>%|°c|°f|percent|퍼센트|프로(?![가-힣])|kg|mg|g|lbs?|pounds?|oz|km|cm|mm|miles?|mi|ft|feet"
    r"|inch(?:es)?|tb|gb|mb|kb"
    r"|seconds?|secs?|minutes?|mins?|hours?|hrs?|days?|weeks?|months?|years?|yrs?|am|pm|a\.m|p\.m|usd|eur|krw"
    r"|dollars?|won"
    r"|달러|원|유로|엔|시간|분|초|개월|달|주일|주|일|월|년|살|세|명|개|번|배|시|킬로|미터|그램|기가|메가|단계|층"
    r"|호선|학년|학기|회|박|도|위|등|m"
    r")?(?![a-z])"
)
_UNITS = {
    "%": "percent", "퍼센트": "percent", "프로": "percent", "lb": "pound", "lbs": "pound", "mi": "mile", "feet": "ft",
    "inches": "inch", "sec": "second", "secs": "second", "초": "second", "min": "minute", "mins": "minute",
    "분": "minute", "hr": "hour", "hrs": "hour", "시간": "hour", "일": "day", "주": "week", "주일": "week",
    "개월": "month", "달": "month", "년": "year", "yr": "year", "yrs": "year", "$": "usd", "dollar": "usd",
    "dollars": "usd", "달러": "usd", "€": "eur", "유로": "eur", "£": "gbp", "₩": "krw", "won": "krw", "원": "krw",
    "¥": "yen", "엔": "yen", "살": "세", "a.m": "am", "p.m": "pm", "회": "번", "기가": "gb", "메가": "mb",
    "킬로": "kg", "그램": "g", "미터": "m",
}  # fmt: skip
_SCALES = {
    "백": 100, "천": 1000, "만": 10_000, "억": 100_000_000, "k": 1000, "thousand": 1000, "million": 1_000_000,
    "billion": 1_000_000_000,
}  # fmt: skip

_ENGLISH = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11,
    "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18,
    "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80,
    "ninety": 90, "zero": 0,
}  # fmt: skip
_ENGLISH_SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000, "billion": 1_000_000_000}
_SPELT = re.compile(
    rf"\b(?:(?:an?|one) (?={'|'.join(_ENGLISH_SCALES)}))?(?:{'|'.join((*_ENGLISH, *_ENGLISH_SCALES))})"
    rf"(?:[ -](?:and )?(?:{'|'.join((*_ENGLISH, *_ENGLISH_SCALES, 'one'))}))*\b"
)
_ORDINALS = {"second": "2nd", "third": "3rd", "fourth": "4th", "fifth": "5th", "twice": "x2", "triple": "x3",
             "half": "1/2", "절반": "1/2", "두배": "x2"}  # fmt: skip
_ORDINAL = re.compile(r"(?<![^\W_])(?:" + "|".join(_ORDINALS) + r")(?![a-z-])")

_NATIVE = {
    "한": 1, "두": 2, "세": 3, "네": 4, "다섯": 5, "여섯": 6, "일곱": 7, "여덟": 8, "아홉": 9, "열": 10,
    "열한": 11, "열두": 12, "스무": 20, "서른": 30, "마흔": 40, "쉰": 50,
}  # fmt: skip
_NATIVE_COUNT = re.compile(
    r"(?<![가-힣])(?<![로을를게도더]\s)(?<!많이\s)(?P<word>"
    + "|".join(sorted(_NATIVE, key=len, reverse=True))
    + r")\s?"
    r"(?=(?:개|명|번|시간|달|살|권|장|잔|병|대|마리|가지|주|배(?!\s?드)|사람|곳|시|박|통|층|켤레|그루|편)"
    r"(?:에|이|가|를|을|은|는|의|로|까지|부터|만|도|씩|쯤|정도|안|동안|간|전|후|반|째|짜리|치|이상|이하|이나"
    r"|보단|보다|말고|넘|걸|[^가-힣]|$))"
)
_IDIOM = re.compile(r"(?<![가-힣])(?:한 ?번|한 ?사람|한 ?가지|한 ?곳|한편|두 ?번 ?다시)")
"""Words that count nothing."""
_DIGITS = {"일": 1, "이": 2, "삼": 3, "사": 4, "오": 5, "육": 6, "칠": 7, "팔": 8, "구": 9}
_TENS = {"십": 10, "백": 100, "천": 1000}
_SINO_COUNT = re.compile(
    r"(?<![가-힣0-9])(?:(?P<word>[일이삼사오육칠팔구십백천만억]{2,8})\s?"
    r"(?=단계|층|호선|학년|학기|년|개월|월|분|초|원|번|회|도(?!시|구)|위|등|박|주|퍼센트|프로|킬로|배|인분|달러"
    r"|살|세|시간|명|개|일|시|장|권|점|대|평|으로|까지|보다)"
    r"|(?P<one>[일이삼사오육칠팔구십])(?=단계|층|호선|학년|학기|개월|월(?!급|요|말|세|등)|주일|인분|퍼센트|킬로))"
)
_EXCLUDED = re.compile(r"\d[\d.,:]{0,12}\s?[a-z%가-힣]{0,5}?\s?[가-힣]{0,3}\s?(?:말고|보단|보다는|대신|아니라|아니고)")
_NOT_SINO = frozenset(("이천", "천만", "만일", "일일", "구구", "이사", "이백", "구십구"))
"""Words that are more often something else."""


def quantities(lowered: str) -> frozenset[str]:
    """Every number with its unit, ordinals and clock times, aliases made one ("5 kg", "2 week", "x2", "3rd")."""
    text = lowered
    if not text.isascii():
        text = _IDIOM.sub(" ", text)
        text = _NATIVE_COUNT.sub(lambda match: f"{_NATIVE[match['word']]} ", text)
        text = _SINO_COUNT.sub(_sino, text)
        # "30 minutes instead of 60" is a question about 30.
        text = _EXCLUDED.sub(" ", text)
    if _has_english_number(text):
        text = _SPELT.sub(_spelt, text)
    found: set[str] = set()
    if any(letter.isdigit() for letter in text):
        for match in _NUMBER.finditer(text):
            unit = match["unit"] or match["currency"] or ""
            unit = _UNITS.get(unit, unit.removesuffix("s") if len(unit) > 2 else unit)
            found.add(f"{_value(match['number'], match['scale'])} {unit}".strip())
        # What the pattern took is left out: the "second" of "1 second" is no ordinal.
        text = _NUMBER.sub(" ", text)
    found.update(_ORDINALS[match.group()] for match in _ORDINAL.finditer(text))
    return frozenset(found)


def is_quantity(token: str) -> bool:
    """Whether a token is a number with a unit ("5kg"), not a code."""
    return _NUMBER.fullmatch(token) is not None


def _value(number: str, scale: str | None) -> str:
    plain = re.sub(r",(?=\d{3}(?!\d))", "", number)
    if scale is None:
        return plain.removesuffix(":00") if ":" in plain else plain
    try:
        return f"{float(plain) * _SCALES[scale]:.10g}"
    except ValueError:
        return plain + scale


_ENGLISH_HINT = re.compile(
    r"two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|teen|ty|zero|hundred|thousand|illion"
)


def _has_english_number(text: str) -> bool:
    return _ENGLISH_HINT.search(text) is not None


def _spelt(match: re.Match[str]) -> str:
    total, current = 0, 0
    for word in re.findall(r"[a-z]+", match.group()):
        if word in ("a", "an", "and"):
            continue
        if word in _ENGLISH_SCALES:
            scale = _ENGLISH_SCALES[word]
            current = max(current, 1) * scale
            if scale > 100:
                total, current = total + current, 0
        else:
            current += 1 if word == "one" else _ENGLISH[word]
    return str(total + current)


def _sino(match: re.Match[str]) -> str:
    word = match["word"] or match["one"]
    if word in _NOT_SINO:
        return match.group()
    total, group, digit = 0, 0, 0
    for letter in word:
        if letter in _DIGITS:
            digit = _DIGITS[letter]
        elif letter in _TENS:
            group, digit = group + max(digit, 1) * _TENS[letter], 0
        else:
            total, group, digit = (total + max(group + digit, 1)) * _SCALES[letter], 0, 0
    return f"{total + group + digit} "


_LINK = re.compile(r"https?://\S+|www\.\S+|[\w.+-]{1,64}@[\w-]{1,63}\.\w{2,24}|(?<![\w/])(?:/[\w.-]+){2,}")
_SIGNS = frozenset(("So", "Sm", "Sc", "No", "Nl", "Co", "Cn"))
_NO_SIGNS = frozenset("°™©®₩€£¥")
"""Units, which ``quantities`` reads, and ornaments."""
_OPERATORS = re.compile(r"[<>=|+*]+|&{2,}")
_SUM = re.compile(r"[0-9().,+*/^%x×÷ -]+")
_RECKONING = re.compile(r"[0-9)] ?[-+*/^%x×÷] ?[(0-9-]|(?:^|[( ])-[0-9]")
"""Something between two numbers, or a number below zero: signs and brackets decide."""
_CODE = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_QUOTED = re.compile(r"`([^`]{1,200})`|\"([^\"]{1,200})\"|“([^”]{1,200})”|‘([^’]{1,200})’")
_CLOCK_OR_ORDINAL = re.compile(r"\d+(?:st|nd|rd|th|am|pm)")


def identifiers(lowered: str) -> frozenset[str]:
    """URLs, e-mail addresses, paths, codes such as e404 or iphone15, quoted text, and signs that are neither letters
    nor punctuation: emoji, arrows, operators, superscripts. Embedders hardly tell those apart. Likewise sums and
    indented lines, word for word.
    """
    found: set[str] = set()
    if not lowered.isascii():
        found.update(
            sign
            for sign in set(lowered)
            if sign >= "\x80" and unicodedata.category(sign) in _SIGNS and sign not in _NO_SIGNS
        )
    found.update(_OPERATORS.findall(lowered))
    for match in _SUM.finditer(lowered):
        if _RECKONING.search(match.group()):
            found.add("".join(match.group().split()).strip(".,").rstrip("("))
    if "\n" in lowered:
        # Code, or YAML: what stands under what is told by white space alone.
        found.update(line.rstrip() for line in lowered.split("\n") if line[:1] in (" ", "\t") and line.strip())
    if "/" in lowered or "@" in lowered or "www." in lowered:
        found.update(match.group().rstrip(".,?!") for match in _LINK.finditer(lowered))
        lowered = _LINK.sub(" ", lowered)
    if any(letter.isdigit() for letter in lowered):
        for token in _CODE.findall(lowered):
            code = token.rstrip(".-_")
            if code.isdigit() or not any(letter.isdigit() for letter in code) or not any("a" <= c <= "z" for c in code):
                continue
            # A number with its unit ("5kg") is the numbers guard's, which knows aliases.
            if not is_quantity(code) and not _CLOCK_OR_ORDINAL.fullmatch(code):
                found.add(code.replace("-", ""))
    if any(quote in lowered for quote in '`"“‘'):
        found.update("".join(groups).strip(" .,?!") for groups in _QUOTED.findall(lowered))
    return frozenset(found)

"""Differences that similarity cannot see: refusals by rule, in English and Korean. Pure.

Embeddings put "turn it on" beside "turn it off" and "5 days" beside "7 days" (negated and antonymous pairs average a
higher cosine with MiniLM than true paraphrases do). Each guard compares the question asked with the stored one and
names a difference that changes the answer. A guard that is wrong costs a hit; it never serves a wrong answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from services.cache.opposites import sides

Guard = Callable[[str, str], str]
"""Takes the asked and the stored turn; returns the difference, or an empty string."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What one guard found."""

    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


def differences(asked: str, stored: str) -> tuple[Difference, ...]:
    """Every difference found; empty when the two may share an answer."""
    if asked == stored:
        return ()
    found = ((name, guard(asked, stored)) for name, guard in GUARDS)
    return tuple(Difference(name, difference) for name, difference in found if difference)


_NUMBER = re.compile(
    r"(?P<currency>[$€£₩¥])?\s?(?P<number>\d+(?:[.,:/]\d+)*)\s?"
    r"(?P<unit>%|°c|°f|percent|퍼센트|kg|mg|g|lbs?|pounds?|oz|km|cm|mm|miles?|mi|ft|feet|inch(?:es)?|tb|gb|mb|kb"
    r"|seconds?|secs?|minutes?|mins?|hours?|hrs?|days?|weeks?|months?|years?|yrs?|am|pm|usd|eur|krw|dollars?|won"
    r"|달러|원|유로|엔|시간|분|초|개월|주일|주|일|월|년|살|세|명|개|번|배|시|킬로|미터|그램|기가|메가|m)?"
    r"(?![a-z])",
    re.IGNORECASE,
)
_UNITS = {
    "%": "percent", "퍼센트": "percent", "lb": "pound", "lbs": "pound", "mi": "mile", "feet": "ft", "inches": "inch",
    "sec": "second", "secs": "second", "초": "second", "min": "minute", "mins": "minute", "분": "minute",
    "hr": "hour", "hrs": "hour", "시간": "hour", "일": "day", "주": "week", "주일": "week", "개월": "month",
    "년": "year", "yr": "year", "yrs": "year", "$": "usd", "dollar": "usd", "dollars": "usd", "달러": "usd",
    "€": "eur", "유로": "eur", "₩": "krw", "won": "krw", "원": "krw", "¥": "yen", "엔": "yen", "살": "세",
}  # fmt: skip
_NUMBER_WORDS = {
    "zero": "0", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
    "nine": "9", "ten": "10", "eleven": "11", "twelve": "12", "twenty": "20", "thirty": "30", "fifty": "50",
    "hundred": "100", "thousand": "1000", "million": "1000000", "billion": "1000000000", "half": "1/2",
    "first": "1st", "second": "2nd", "third": "3rd", "twice": "x2", "double": "x2", "triple": "x3",
}  # fmt: skip
_PLAIN_NUMBER_WORD = re.compile(
    r"\b(?:" + "|".join(word for word, number in _NUMBER_WORDS.items() if number.isdigit()) + r")\b"
)
_KOREAN_COUNT = re.compile(
    r"(?<![가-힣])(?P<word>한|두|세|네|다섯|여섯|일곱|여덟|아홉|열)\s?(?=개|명|번|시간|달|살|권|장|잔|병|대|마리|가지|주|배|사람|곳|시|박)"
)
_KOREAN_COUNTS = {
    "한": "1", "두": "2", "세": "3", "네": "4", "다섯": "5", "여섯": "6", "일곱": "7", "여덟": "8",
    "아홉": "9", "열": "10",
}  # fmt: skip
_WORD = re.compile(r"[^\W_]+(?:'[^\W\d_]+)?")


def numbers(asked: str, stored: str) -> str:
    """Quantities with their units, ordinals and clock times must be the same."""
    return _difference(_quantities(asked), _quantities(stored))


def _quantities(text: str) -> Counter[str]:
    found: Counter[str] = Counter()
    lowered = _KOREAN_COUNT.sub(lambda match: _KOREAN_COUNTS[match["word"]] + " ", text.lower())
    lowered = _PLAIN_NUMBER_WORD.sub(lambda match: _NUMBER_WORDS[match.group()], lowered)
    for match in _NUMBER.finditer(lowered):
        unit = match["unit"] or match["currency"] or ""
        unit = _UNITS.get(unit, unit.removesuffix("s") if len(unit) > 2 else unit)
        number = re.sub(r",(?=\d{3}\b)", "", match["number"])
        found[f"{number} {unit}".strip()] += 1
    # What the pattern took is left out: the "second" of "1 second" is no ordinal.
    for word in _WORD.findall(_NUMBER.sub(" ", lowered)):
        if word in _NUMBER_WORDS:
            found[_NUMBER_WORDS[word]] += 1
    return found


_URL = re.compile(r"https?://\S+|www\.\S+|[\w.+-]+@[\w-]+\.\w+|(?:/[\w.-]+){2,}")
_MIXED = re.compile(r"\b(?=[\w.-]*\d)(?=[\w.-]*[A-Za-z])[A-Za-z0-9][\w.-]*[\w]")
_QUOTED = re.compile(r"`([^`]+)`|\"([^\"]+)\"|“([^”]+)”|‘([^’]+)’")


def identifiers(asked: str, stored: str) -> str:
    """URLs, paths, codes such as E404 or iPhone15, and quoted text must be the same."""
    return _difference(_identifiers(asked), _identifiers(stored))


def _identifiers(text: str) -> Counter[str]:
    found = Counter(match.group().lower().rstrip(".,?!") for match in _URL.finditer(text))
    # A number with its unit ("5kg") is the numbers guard's, which knows aliases.
    found.update(token.lower() for token in _MIXED.findall(text) if not _NUMBER.fullmatch(token))
    found.update("".join(groups).strip().lower() for groups in _QUOTED.findall(text))
    return Counter(set(found))


_DATES = re.compile(
    r"\b(?P<en>mon|tues|wednes|thurs|fri|satur|sun)day|\b(?P<month>january|february|march|april|june|july|august|september"
    r"|october|november|december)\b|(?P<ko>[월화수목금토일])요일|(?P<rel>아침|점심|저녁|새벽|오전|오후|주말|평일)"
    r"|\b(?P<part>morning|noon|afternoon|evening|night|weekend|weekday)s?\b",
    re.IGNORECASE,
)


def dates(asked: str, stored: str) -> str:
    """Weekdays, months and parts of the day must be the same."""
    return _difference(
        Counter({match.group().lower() for match in _DATES.finditer(asked)}),
        Counter({match.group().lower() for match in _DATES.finditer(stored)}),
    )


_NEGATION = re.compile(
    r"\b(?:not|no|never|without|cannot|none|neither|nor|except|excluding|unless|avoid|\w+n't|\w+n’t|dont|doesnt|cant|wont"
    r"|isnt|didnt|unable|fail(?:s|ed|ing)?)\b"
    r"|(?<![가-힣])안 (?=[가-힣])|(?<![가-힣])안(?:되|돼|된|됨|됩|하|해|합|나오|나와|가|와|먹|켜|열|보이|보여|들)"
    r"|(?<![가-힣])못\s?(?=[가-힣])|않|없|아니|아닌|말고|지 ?마|금지|제외|빼고|불가|불능",
    re.IGNORECASE,
)


def negation(asked: str, stored: str) -> str:
    """Either both are negated or neither is."""
    one, other = _NEGATION.search(asked), _NEGATION.search(stored)
    if (one is None) is not (other is None):
        match = one or other
        return f"only one has {match.group().strip()!r}" if match else ""
    return ""


def antonyms(asked: str, stored: str) -> str:
    """A word on one side and its opposite on the other."""
    here, there = sides(asked), sides(stored)
    for pair, words in here.items():
        if len(words) == 2 or pair not in there:
            continue
        ((side, own),) = words.items()
        if side not in there[pair]:
            return f"{own!r} against {there[pair][1 - side]!r}"
    return ""


_ASKED_FOR = tuple(
    (name, re.compile(pattern, re.IGNORECASE))
    for name, pattern in (
        ("when", r"\bwhen\b|\bwhat (?:time|day|date)\b|언제"),
        ("where", r"\bwhere\b|어디"),
        ("who", r"\bwho(?:m|se)?\b|누구|누가"),
        ("why", r"\bwhy\b|\bhow come\b|왜(?![가-힣])"),
        ("how much", r"\bhow (?:much|many|long|often|far|old|big|tall)\b|얼마|몇"),
    )
)


def asked_for(asked: str, stored: str) -> str:
    """When, where, who, why and how much each ask for something of their own; what and how do not tell enough."""
    one = {name for name, pattern in _ASKED_FOR if pattern.search(asked)}
    other = {name for name, pattern in _ASKED_FOR if pattern.search(stored)}
    return f"asks {_names(one)} against {_names(other)}" if one != other else ""


# A word that begins a later sentence counts as well: it may be the name that the question turns on ("... ? Seoul.").
_CAPITAL = re.compile(r"(?<=\s)[A-Z][\w-]*|\b[A-Z]{2,}\b")
_NO_NAMES = frozenset(("i", "im", "ive", "id", "ill", "thanks", "thank", "please", "hello", "hi"))


def names(asked: str, stored: str) -> str:
    """Capitalised names and acronyms of one must occur in the other, in any case."""
    for one, other in ((asked, stored), (stored, asked)):
        words = {word.lower().removesuffix("'s") for word in _WORD.findall(other)}
        for match in _CAPITAL.finditer(one):
            name = match.group().lower()
            if name in _NO_NAMES or name in words or name.removesuffix("s") in words:
                continue
            if set(re.split(r"[-_]", name)) <= words:
                continue
            return f"only one has {match.group()!r}"
    return ""


_STOP = frozenset(
    re.findall(
        r"\w+",
        "a an the is are was were be do does did i my me you your we our it its of in on at to for from with and or by"
        " how what which can could should would will please tell than into this that there",
    )
)


def argument_order(asked: str, stored: str) -> str:
    """The same English words in another order may swap roles ("Seoul to Busan", "Busan to Seoul")."""
    one = [word for word in _WORD.findall(asked.lower()) if word.isascii() and word not in _STOP]
    other = [word for word in _WORD.findall(stored.lower()) if word.isascii() and word not in _STOP]
    if len(one) > 1 and one != other and sorted(one) == sorted(other):
        return "the same words in another order"
    return ""


_PARTICLE = re.compile(
    r"(?P<stem>[가-힣A-Za-z0-9]{1,12}?)(?P<particle>에게서|한테서|에서|부터|에게|한테|까지|으로|보다|이|가|을|를|로|에)(?![가-힣])"
)
_ROLES = {
    "이": "subject", "가": "subject", "을": "object", "를": "object", "에서": "from", "부터": "from", "에게서": "from",
    "한테서": "from", "에게": "to", "한테": "to", "까지": "to", "으로": "to", "로": "to", "보다": "than",
}  # fmt: skip
_OPPOSED = ({"subject", "object"}, {"from", "to"}, {"subject", "than"}, {"object", "to"}, {"subject", "to"})


def particles(asked: str, stored: str) -> str:
    """A Korean noun must keep its role: subject or object, from or to, the one compared or the measure."""
    one, other = _roles(asked), _roles(stored)
    swapped = [stem for stem in one if stem in other and {one[stem], other[stem]} in _OPPOSED]
    return f"{swapped[0]!r} is {one[swapped[0]]} against {other[swapped[0]]}" if len(swapped) > 1 else ""


def _roles(text: str) -> dict[str, str]:
    return {
        match["stem"]: _ROLES[match["particle"]] for match in _PARTICLE.finditer(text) if match["particle"] in _ROLES
    }


_COMMON_KOREAN = re.compile(
    r"알려|설명|말해|말씀|가르|주세|주실|주시|부탁|어떻|어떤|어디|무엇|뭐가|뭔지|뭔가|무슨|방법|하는|하려|하면|하나|하고|해야|해줘|해주|해요|할까|할지"
    r"|할수|싶은|싶어|싶습|건가|건지|거야|거지|되나|되는|되지|되면|될까|돼요|되요|됩니|됐나|있나|있을|있는|있어|있지|있습|궁금|뭐야|뭐지|뭐예|뭐에"
    r"|인가|인지|그리|혹시|것은|것이|정도|경우|때는|할때|대해|대한|위해|가능|수가|수는|하지|마라|마세|하세|바랍|십시|합니|입니|이에|예요|에요|좀더|필요|무어"
)


def unmatched_word(asked: str, stored: str) -> str:
    """A content word of one Korean question that the other lacks; empty when there is none.

    For embedders that cannot read Hangul: with MiniLM "how do I use the humidifier" and "... the dryer" are one
    question. A word counts as present when its first two letters occur in the other text, which forgives particles
    and endings; words that only ask or request are passed over.
    """
    for one, other in ((asked, stored), (stored, asked)):
        letters = "".join(_WORD.findall(other.lower()))
        for word in _WORD.findall(one.lower()):
            if len(word) > 1 and not _COMMON_KOREAN.match(word) and word[:2] not in letters:
                return f"only one has {word!r}"
    return ""


GUARDS: tuple[tuple[str, Guard], ...] = (
    ("numbers", numbers),
    ("identifiers", identifiers),
    ("dates", dates),
    ("negation", negation),
    ("antonyms", antonyms),
    ("asked for", asked_for),
    ("names", names),
    ("argument order", argument_order),
    ("particles", particles),
)
"""In the order in which they are reported."""
GUARD_NAMES = tuple(name for name, _ in GUARDS)


def ngram_overlap(one: str, other: str) -> float:
    """Dice coefficient of the sets of character 2-, 3- and 4-grams, 0..1; spaces and punctuation do not count."""
    first, second = _ngrams(one), _ngrams(other)
    total = len(first) + len(second)
    return 2 * len(first & second) / total if total else 1.0


def _ngrams(text: str) -> set[str]:
    letters = "".join(letter for letter in text.lower() if letter.isalnum())
    if len(letters) < 2:
        return {letters} if letters else set()
    return {letters[start : start + size] for size in (2, 3, 4) for start in range(len(letters) - size + 1)}


def _difference(one: Counter[str], other: Counter[str]) -> str:
    if one == other:
        return ""
    return f"{_names(set(one - other))} against {_names(set(other - one))}"


def _names(items: set[str]) -> str:
    return ", ".join(sorted(items)) or "none"

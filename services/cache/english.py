"""What an English question negates, asks for, demands and compares. Pure.

Word lists over tokens, no parser: a sentence is read in one pass, in linear time.
"""

from __future__ import annotations

from functools import lru_cache

from services.cache.reading import EMPTY, Act, Negation, Reading
from services.cache.reading import words as word_set

_AUXILIARIES = word_set(
    "is are was were am be been being do does did done have has had can could will would shall should may might must"
    " isn aren wasn weren don doesn didn haven hasn hadn couldn won wouldn shouldn mustn ain"
)
_STOP = _AUXILIARIES | word_set(
    "a an the i me my mine you your we us our it its he she his her they them their this that these those there here of"
    " in on at to for from with and or by as so if how what which who whom whose when where why please tell than into"
    " about just also too very really quite even yet still ever any some all more most get got getting want need like"
    " s t m re ve d ll im ive id u"
)
_PASSED_OVER = _AUXILIARIES | word_set(
    "a an the i me my you your we it its he she they them this that these those to any been being really even yet able"
    " just very quite still ever currently always properly actually getting get of so too much in on at for"
)
_NEGATIONS = word_set("not never cannot no without none neither nor unable unless avoid except excluding")
_FUSED = word_set(
    "dont doesnt didnt cant wont isnt arent wasnt werent couldnt wouldnt shouldnt havent hasnt hadnt aint"
)
_LEXICAL = (
    "fail", "declin", "reject", "refus", "den", "broke", "miss", "disabl", "lost", "lose", "wrong", "error", "problem",
    "issue", "trouble", "stop", "block", "unsuccess", "incorrect", "invalid", "invisible", "imposs", "stuck", "hate",
    "lack", "difficult", "ineligib", "free", "less", "zero", "instead", "pending", "delay", "still", "unknown", "gone",
    "disappear", "absent", "prevent", "disallow", "forbid", "ban", "illegal", "dislik",
)  # fmt: skip
_KNOWING = word_set("know me out and sure exactly since until about see check understand explain learn is of")
_PRONOUNS = word_set("i you we they he she it the my your a an this that")
_MEASURES = {
    "much": "amount", "many": "amount", "long": "duration", "soon": "duration", "fast": "speed", "quickly": "duration",
    "often": "frequency", "frequently": "frequency", "far": "distance", "old": "age", "big": "size", "large": "size",
    "tall": "height", "high": "height", "heavy": "weight", "deep": "depth", "expensive": "amount", "late": "duration",
}  # fmt: skip
_MODALS = {
    "must": "must", "required": "must", "mandatory": "must", "necessary": "must", "obliged": "must", "should": "should",
    "ought": "should", "recommended": "should", "advisable": "should", "can": "may", "could": "may", "may": "may",
    "possible": "may", "allowed": "may", "permitted": "may", "able": "may", "compulsory": "must", "cannot": "may",
}  # fmt: skip
_ACTIONS = word_set(
    "turn switch set open close send call play book cancel delete remove add order buy pay transfer schedule remind"
    " start stop increase lower raise lock unlock move text email dial pause resume mute unmute shut dim archive"
    " forward reply reserve disable enable activate deactivate block unblock reset restart reboot"
)
_PIVOTS = word_set("to than from into onto over before after against by behind under above below for")
_QUESTION_WORDS = word_set("why how when where who what which , . ? !")
_COMMUTATIVE = word_set("and or vs versus with between both either nor &")
_EXCLUDING = frozenset((("instead", "of"), ("rather", "than"), ("other", "than"), ("but", "not"), ("apart", "from")))
LONG = 25
"""Words beyond which a text tells a story, whose parts are denied and affirmed by turns."""
_ENDINGS = ("ations", "ation", "ings", "ing", "ied", "ies", "ions", "ion", "ed", "es", "s", "ly", "e", "y")


@lru_cache(16384)
def stem(word: str) -> str:
    """A word less its ending, so that "working" meets "works": crude, and the same on both sides."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= (4 if ending == "ly" else 3):
            word = word[: -len(ending)]
            break
    word = word[:-1] if len(word) > 3 and word[-1] in "ey" else word
    # "stopping" and "stop", "cancelling" and "cancel".
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiou" else word


def read(tokens: tuple[str, ...]) -> Reading:
    """Read lower-case tokens: words ("don't" as "don", "'t" or "n't" joined back by the caller) and , . ? ! marks."""
    words = tuple(token for token in tokens if token[0].isascii())
    if not any(word[0].isalpha() for word in words):
        return EMPTY
    negated, excluded, negation = _negation(words)
    asks = _asks(words)
    plain = frozenset(stem(word) for word in words if word not in _STOP and word[0].isalnum()) - negated
    return Reading(
        negated=negated,
        plain=plain,
        negation=negation,
        excluded=excluded,
        asks=asks,
        modality=_modality(words, asks),
        act=_act(words, asks),
        orders=_orders(words),
        verb=_verb(words),
    )


def _is_negation(word: str) -> bool:
    return word in _NEGATIONS or word in _FUSED or word.endswith("n't")


def _rhetorical(words: tuple[str, ...], place: int) -> bool:
    """ "Isn't there", "why not", "whether or not", "not only", "no, ..." and "No. 5" deny nothing."""
    word = words[place]
    before = words[place - 1] if place else "."
    after = words[place + 1] if place + 1 < len(words) else "."
    if word.endswith("n't") or word in _FUSED:
        if before in (".", "?", "!", ",") and after in ("there", "it", "this", "that", "you", "we", "i", "they"):
            return not word.startswith("do")
        return before == "why" and after in ("you", "we")
    if word == "not":
        return before in ("or", "why", "if") or after == "only"
    return word == "no" and (after in (",", ".", "longer") or before == "yes") and after != "longer"


def _negation(words: tuple[str, ...]) -> tuple[frozenset[str], frozenset[str], Negation]:
    negated: set[str] = set()
    excluded: set[str] = set()
    negation = Negation.NONE
    for place, word in enumerate(words):
        pair = (word, words[place + 1]) if place + 1 < len(words) else (word, "")
        if pair in _EXCLUDING:
            excluded.update(_following(words, place + 2, 2))
            continue
        if _is_negation(word):
            if _rhetorical(words, place):
                continue
            negation = Negation.STRONG
            # "Why won't my car start": the subject stands between.
            inverted = word.endswith("n't") and (place == 0 or words[place - 1] in _QUESTION_WORDS)
            following = _following(words, place + 1, 3 if inverted else 1)
            if word in ("except", "excluding"):
                excluded.update(following)
            else:
                negated.update(following)
        elif negation is Negation.NONE and word.startswith(_LEXICAL):
            negation = Negation.STRONG if word.startswith("fail") else Negation.WEAK
    if len(words) > LONG:
        negation = min(negation, Negation.WEAK)
    return frozenset(negated), frozenset(excluded), negation


def _following(words: tuple[str, ...], start: int, count: int) -> list[str]:
    found: list[str] = []
    for word in words[start : start + 6]:
        if not word[0].isalnum():
            break
        if word not in _PASSED_OVER:
            found.append(stem(word))
            if len(found) == count:
                break
    return found


def _asks(words: tuple[str, ...]) -> frozenset[str]:
    found: set[str] = set()
    count = len(words)
    for place, word in enumerate(words):
        after = words[place + 1] if place + 1 < count else "?"
        before = words[place - 1] if place else "."
        opens = not before[0].isalnum()
        if word == "how":
            if after == "come":
                found.add("why")
            elif after in _MEASURES:
                found.add(_MEASURES[after])
            elif after not in ("about", "is", "are", "was", "does", "do", "did") or after in ("do", "does", "did"):
                found.add("how")
        elif word == "why":
            if not (after == "not" or after == "don't"):
                found.add("why")
        elif word in ("when", "where"):
            embedded = before in _KNOWING and after in _PRONOUNS
            if (
                after in _AUXILIARIES
                or embedded
                or after == "to"
                or after == "?"
                or (opens and after not in _PRONOUNS and not after.endswith("ing"))
            ):
                found.add(word)
        elif word in ("who", "whom", "whose", "who's"):
            if opens or before in ("know", "me", "out", "and", "is", "by", "of", "to", "from", "with"):
                found.add("who")
        elif word in ("what", "which", "what's"):
            rest = words[place + 1 : place + 5]
            for next_word in rest:
                if next_word in ("time", "date", "day", "year"):
                    found.add("when")
                elif next_word in ("reason", "reasons", "causes", "caused", "cause"):
                    found.add("why")
                elif next_word in ("place", "location", "address"):
                    found.add("where")
                elif next_word in ("cost", "price", "fee", "amount"):
                    found.add("amount")
                elif next_word in ("way", "ways", "method", "process", "procedure", "steps"):
                    found.add("how")
    return frozenset(found)


def _modality(words: tuple[str, ...], asks: frozenset[str]) -> frozenset[str]:
    """Of yes-or-no questions alone: "how can I", "how should I" and "what must I do to" want the same instructions."""
    if asks or words[0] in ("what", "which", "what's") or len(words) < 4:
        return frozenset()
    first, second, third, fourth = words[:4]
    if first in ("can", "could", "may", "should", "must"):
        return frozenset() if second == "you" else frozenset((_MODALS[first],))
    if first in ("do", "does") and third in ("have", "need") and fourth == "to":
        return frozenset(("must",))
    if first in ("is", "are", "am"):
        return frozenset(_MODALS[word] for word in words[1:6] if word in _MODALS)
    return frozenset()


def _act(words: tuple[str, ...], asks: frozenset[str]) -> Act:
    start = 0
    while start < len(words) and words[start] in ("please", "hey", "ok", "okay", "hi", "hello", ",", "now", "just"):
        start += 1
    rest = words[start:]
    if rest[:2] and len(rest) > 2 and rest[0] in ("can", "could", "would", "will") and rest[1] == "you":
        rest = rest[2:]
        while rest and rest[0] in ("please", "just"):
            rest = rest[1:]
        return Act.DO if rest and rest[0] in _ACTIONS else Act.ASK
    if not rest:
        return Act.NONE
    if rest[0] in _ACTIONS:
        return Act.DO
    if rest[0] in ("don't", "dont", "never") or rest[:2] == ("do", "not"):
        return Act.FORBID
    if asks or rest[0] in _AUXILIARIES or rest[0] in ("what", "which", "what's", "tell", "explain", "show"):
        return Act.ASK
    return Act.NONE


def _verb(words: tuple[str, ...]) -> str:
    """What is ordered, or asked whether to do: the first action after "please", "could you", "should I"."""
    for place, word in enumerate(words[:5]):
        if word in _ACTIONS:
            # "Do I turn it on" and "can I turn it on" ask for something else than "should I".
            return word if place < 2 or words[place - 2] in ("should", "shall", "can", "could", "would", ",") else ""
    return ""


def _orders(words: tuple[str, ...]) -> frozenset[tuple[str, str, str]]:
    """Who comes before and after what: ("seoul", "to", "busan"), ("dogs", "chase", "cats")."""
    found: set[tuple[str, str, str]] = set()
    count = len(words)
    for place in range(1, count - 1):
        pivot = words[place]
        if pivot in _PIVOTS:
            left = _content(words, range(place - 1, max(place - 4, -1), -1), 2)
            right = _content(words, range(place + 1, min(place + 4, count)), 2)
        elif pivot[0].isalnum() and pivot not in _STOP and pivot not in _COMMUTATIVE:
            left = _content(words, range(place - 1, max(place - 4, -1), -1), 1)
            right = _content(words, range(place + 1, min(place + 4, count)), 1)
        else:
            continue
        found.update((one, pivot, other) for one in left for other in right if one != other)
    return frozenset(found)


def _content(words: tuple[str, ...], places: range, count: int) -> list[str]:
    found: list[str] = []
    for place in places:
        word = words[place]
        if not word[0].isalnum() or word in _COMMUTATIVE or word in _PIVOTS:
            break
        if word not in _STOP:
            found.append(stem(word))
            if len(found) == count:
                break
    return found

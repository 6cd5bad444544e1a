"""Differences that similarity cannot see: refusals by rule, in English and Korean. Pure.

Embeddings put "turn it on" beside "turn it off" and "5 days" beside "7 days" (negated and antonymous pairs average a
higher cosine with MiniLM than true paraphrases do). Each guard compares the question asked with the stored one and
names a difference that changes the answer. A guard that is wrong costs a hit; it never serves a wrong answer.

Hard guards refuse by themselves. Soft ones are right too seldom for that; they are features of the verifier.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from services.cache.korean import key as korean_key
from services.cache.opposites import opposed
from services.cache.reading import Act, Negation
from services.cache.traits import Traits, analyse

Guard = Callable[[Traits, Traits], str]
"""Takes the asked and the stored text; returns the difference, or an empty string. None depends on their order."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What a guard found."""

    name: str
    """One of GUARD_NAMES, or of UNWEIGHED."""
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


def differences(asked: Traits | str, stored: Traits | str) -> tuple[Difference, ...]:
    """What the hard guards found; empty when the two may share an answer."""
    return _found(asked, stored, (*HARD, *UNWEIGHED))


def hints(asked: Traits | str, stored: Traits | str) -> tuple[Difference, ...]:
    """What the soft guards found: worth something to a verifier, no refusal by itself."""
    return _found(asked, stored, SOFT)


def fired(asked: Traits | str, stored: Traits | str) -> tuple[int, ...]:
    """1 for each guard that found a difference, else 0, in the order of GUARD_NAMES."""
    one, other = _traits(asked), _traits(stored)
    if one.text == other.text:
        return (0,) * len(GUARD_NAMES)
    return tuple(int(bool(guard(one, other))) for _, guard in (*HARD, *SOFT))


def _found(asked: Traits | str, stored: Traits | str, guards: tuple[tuple[str, Guard], ...]) -> tuple[Difference, ...]:
    one, other = _traits(asked), _traits(stored)
    if one.text == other.text:
        return ()
    return tuple(Difference(name, text) for name, guard in guards if (text := guard(one, other)))


def _traits(text: Traits | str) -> Traits:
    return analyse(text) if isinstance(text, str) else text


def numbers(one: Traits, other: Traits) -> str:
    """Quantities with their units, ordinals and clock times must be the same where both have some."""
    return _sets(one.quantities, other.quantities) if one.quantities and other.quantities else ""


def one_number(one: Traits, other: Traits) -> str:
    """Only one of the two has numbers."""
    return _sets(one.quantities, other.quantities) if not one.quantities or not other.quantities else ""


def identifiers(one: Traits, other: Traits) -> str:
    """URLs, paths, codes such as E404 or iPhone15, and quoted text must be the same."""
    return _sets(one.identifiers, other.identifiers)


def times(one: Traits, other: Traits) -> str:
    """Weekdays, months, seasons, days and parts of the day must not exclude each other."""
    return _excluding(one.times, other.times)


def one_time(one: Traits, other: Traits) -> str:
    """A time that only one of the two names."""
    return _missing(one.times, other.times)


def things(one: Traits, other: Traits) -> str:
    """Cities, countries, firms, appliances and the like must not exclude each other."""
    return _excluding(one.things, other.things)


def one_thing(one: Traits, other: Traits) -> str:
    """A thing of a known kind that only one of the two names."""
    return _missing(one.things, other.things)


def negation_scope(one: Traits, other: Traits) -> str:
    """What one denies the other must not affirm."""
    here, there = one.reading, other.reading
    ours, theirs = here.negated & there.plain, there.negated & here.plain
    if ours and theirs and not here.negated & there.negated:
        here_said, there_said = (_as_written(min(stems), one, other) for stems in (ours, theirs))
        return f"{here_said!r} and {there_said!r} are denied the other way round"
    for affirmed, reading in ((ours, there), (theirs, here)):
        if affirmed and reading.negation is Negation.NONE:
            return f"only one denies {_as_written(min(affirmed), one, other)!r}"
    return ""


def polarity(one: Traits, other: Traits) -> str:
    """Either both statements are denied or neither is; one that is so in part agrees with both."""
    here, there = one.reading.negation, other.reading.negation
    if {here, there} == {Negation.STRONG, Negation.NONE} and not _keeps(one, other):
        return "only one is negative"
    return ""


def alternatives(one: Traits, other: Traits) -> str:
    """What one does not want ("instead of A", "A 말고") must not be what the other wants."""
    here, there = one.reading, other.reading
    ours, theirs = here.excluded & there.plain, there.excluded & here.plain
    if not ours or not theirs:
        return ""
    here_said, there_said = (_as_written(min(stems), one, other) for stems in (ours, theirs))
    return f"{here_said!r} and {there_said!r} have changed places"


def one_alternative(one: Traits, other: Traits) -> str:
    """Something that one does not want and the other wants."""
    crossed = (one.reading.excluded & other.reading.plain) | (other.reading.excluded & one.reading.plain)
    return f"only one wants {_as_written(min(crossed), one, other)!r}" if crossed else ""


def antonyms(one: Traits, other: Traits) -> str:
    """A word on one side and its opposite on the other."""
    if _keeps(one, other):
        return ""
    pair = opposed(one.sides, other.sides)
    return f"{pair[0]!r} against {pair[1]!r}" if pair else ""


def _keeps(one: Traits, other: Traits) -> bool:
    """ "Leave it on" and "do not turn it off" are one order."""
    acts = {one.reading.act, other.reading.act}
    return acts == {Act.FORBID, Act.DO} and opposed(one.sides, other.sides) is not None


_NEAR = frozenset(
    (frozenset(("when", "duration")), frozenset(("amount", "duration")), frozenset(("how", "where")),
     frozenset(("amount", "size")), frozenset(("speed", "duration")), frozenset(("where", "who")),
     frozenset(("amount", "frequency")))
)  # fmt: skip
"""Questions that are asked for the same answer often enough."""


def asked_for(one: Traits, other: Traits) -> str:
    """When, where, who, why, how and how much each ask for something of their own; what and which do not tell."""
    here, there = one.reading.asks, other.reading.asks
    if not here or not there or here & there:
        return ""
    if any(frozenset((a, b)) in _NEAR for a in here for b in there):
        return ""
    return f"asks {_names(here)} against {_names(there)}"


def one_asks(one: Traits, other: Traits) -> str:
    """Only one of the two asks when, where, who, why, how or how much."""
    here, there = one.reading.asks, other.reading.asks
    return f"only one asks {_names(here | there)}" if bool(here) is not bool(there) else ""


def modality(one: Traits, other: Traits) -> str:
    """May, must and should differ where yes or no is asked."""
    here, there = one.reading.modality, other.reading.modality
    return f"{_names(here)} against {_names(there)}" if here and there and not here & there else ""


def acts(one: Traits, other: Traits) -> str:
    """Whether to do something is no order to do it ("불 켤까", "불 켜")."""
    here, there = one.reading, other.reading
    if (
        {here.act, there.act} == {Act.ASK, Act.DO}
        and here.verb
        and here.verb == there.verb
        and not here.asks | there.asks
    ):
        return f"{here.act.name.lower()} against {there.act.name.lower()}"
    return ""


def other_act(one: Traits, other: Traits) -> str:
    """A question, an order and a prohibition want different answers, if they are read aright."""
    here, there = one.reading.act, other.reading.act
    return "" if here is there or Act.NONE in (here, there) else f"{here.name.lower()} against {there.name.lower()}"


def names(one: Traits, other: Traits) -> str:
    """Each has a capitalised name or acronym that the other lacks, in any case."""
    here, there = _own_names(one, other), _own_names(other, one)
    return f"{here[0]!r} against {there[0]!r}" if here and there else ""


def one_name(one: Traits, other: Traits) -> str:
    """A capitalised name that only one of the two has."""
    lone = _own_names(one, other) or _own_names(other, one)
    return f"only one has {lone[0]!r}" if lone else ""


def _own_names(one: Traits, other: Traits) -> list[str]:
    return [
        name
        for name in one.names
        if name not in other.words
        and name.removesuffix("s") not in other.words
        and f"{name}s" not in other.words
        and name not in other.initials
        and not set(re.split(r"[-_]", name)) <= other.words
    ]


def argument_order(one: Traits, other: Traits) -> str:
    """Words around a verb or preposition must not have changed places ("Seoul to Busan", "Busan to Seoul")."""
    there = other.reading.orders
    for before, pivot, after in one.reading.orders:
        if (after, pivot, before) in there and (before, pivot, after) not in there:
            return f"{before!r} and {after!r} have changed places"
    return ""


def particles(one: Traits, other: Traits) -> str:
    """A Korean noun must keep its role: subject or object, from or to, the one compared or the measure."""
    here, there = dict(one.reading.roles), dict(other.reading.roles)
    swapped = [noun for noun in here if noun in there and here[noun] != there[noun]]
    for place, noun in enumerate(swapped):
        for partner in swapped[place + 1 :]:
            if here[noun] == there[partner] and there[noun] == here[partner]:
                return f"{noun!r} is {here[noun]} against {there[noun]}"
    for role in ("from", "than"):
        mine = {noun for noun, own in one.reading.roles if own == role}
        theirs = {noun for noun, own in other.reading.roles if own == role}
        if mine and theirs and not mine & theirs and _within(mine, other) and _within(theirs, one):
            return f"{min(mine)!r} against {min(theirs)!r} as {role}"
    return ""


def _within(nouns: set[str], traits: Traits) -> bool:
    return all(any(word.startswith(noun) for word in traits.words) for noun in nouns)


_COMMON_KOREAN = re.compile(
    r"알려|설명|말해|말씀|가르|주세|주실|주시|부탁|어떻|어떤|어디|무엇|뭐가|뭔지|뭔가|무슨|방법|하는|하려|하면|하나|하고|해야|해줘|해주|해요|할까|할지"
    r"|할수|싶은|싶어|싶습|건가|건지|거야|거지|되나|되는|되지|되면|될까|돼요|되요|됩니|됐나|있나|있을|있는|있어|있지|있습|궁금|뭐야|뭐지|뭐예|뭐에"
    r"|인가|인지|그리|혹시|것은|것이|정도|경우|때는|할때|대해|대한|위해|가능|수가|수는|하지|마라|마세|하세|바랍|십시|합니|입니|이에|예요|에요|좀더|필요|무어"
)
_WORD = re.compile(r"[^\W_]+(?:'[^\W\d_]+)?")


def words(one: Traits, other: Traits) -> str:
    """Each has a content word that the other lacks."""
    here, there = _own(one, other), _own(other, one)
    if not here or not there:
        return ""
    return f"{_as_written(min(here), one, other)!r} against {_as_written(min(there), other, one)!r}"


def _own(one: Traits, other: Traits) -> set[str]:
    there = other.reading.plain | other.reading.negated | other.reading.excluded
    return {word for word in one.reading.plain - there if len(word) > 1 and not _COMMON_KOREAN.match(word)}


def _as_written(stem: str, *texts: Traits) -> str:
    """The word of the texts that a Korean stem was made of: a stem such as "도리" (of 돌려) tells a reader nothing."""
    return next((word for text in texts for word in sorted(text.words) if korean_key(word) == stem), stem)


_LONG_WORDS = 40
"""From this many different words on a text is long: four times those of the questions that verifiers were fitted on."""
_FEW_WORDS = 3


def long_texts(one: Traits, other: Traits) -> str:
    """Long texts must have nearly the same words: two examples in one template are as near to an embedder as two
    wordings of one question are, and verifiers have seen none."""
    if max(len(one.words), len(other.words)) < _LONG_WORDS:
        return ""
    here, there = _own(one, other), _own(other, one)
    if here and there:
        return f"{_as_written(min(here), one, other)!r} against {_as_written(min(there), other, one)!r}"
    lone = here | there
    return f"only one has {_as_written(min(lone), one, other)!r}" if len(lone) > _FEW_WORDS else ""


HARD: tuple[tuple[str, Guard], ...] = (
    ("numbers", numbers),
    ("one number", one_number),
    ("identifiers", identifiers),
    ("times", times),
    ("things", things),
    ("negation scope", negation_scope),
    ("polarity", polarity),
    ("alternatives", alternatives),
    ("antonyms", antonyms),
    ("asked for", asked_for),
    ("modality", modality),
    ("acts", acts),
    ("names", names),
    ("argument order", argument_order),
    ("particles", particles),
)
"""In the order in which they are reported."""
SOFT: tuple[tuple[str, Guard], ...] = (
    ("one time", one_time),
    ("one thing", one_thing),
    ("one name", one_name),
    ("one alternative", one_alternative),
    ("one asks", one_asks),
    ("other act", other_act),
    ("words", words),
)
UNWEIGHED: tuple[tuple[str, Guard], ...] = (("long texts", long_texts),)
"""Hard guards that are no features of verifiers."""
GUARD_NAMES = tuple(name for name, _ in (*HARD, *SOFT))
"""Stable: weights of verifiers refer to this order."""


def _sets(one: frozenset[str], other: frozenset[str]) -> str:
    if one == other:
        return ""
    return f"{_names(one - other)} against {_names(other - one)}"


def _excluding(one: frozenset[tuple[str, str]], other: frozenset[tuple[str, str]]) -> str:
    """Members of a kind that both name, of which each lacks one that the other has, or one has more."""
    if one == other or not one or not other:
        return ""
    for kind in {kind for kind, _ in one} & {kind for kind, _ in other}:
        here = {member for own, member in one if own == kind}
        there = {member for own, member in other if own == kind}
        if not here <= there and not there <= here:
            return f"{_names(here - there)} against {_names(there - here)}"
    return ""


def _missing(one: frozenset[tuple[str, str]], other: frozenset[tuple[str, str]]) -> str:
    lone = one ^ other if one != other and not _excluding(one, other) else ()
    return f"only one has {min(member for _, member in lone)!r}" if lone else ""


def _names(items: set[str] | frozenset[str]) -> str:
    return ", ".join(sorted(items)) or "none"

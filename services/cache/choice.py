"""Which neighbour's answer may be served, and why. Pure.

Neighbours with the same answer are one candidate: the nearest of them that no guard refuses speaks for it. A candidate
is served when no guard refuses it and the calibrated probability that its answer is right reaches what the namespace's
bound on wrong hits asks for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.cache.aliases import source_of
from services.cache.features import letter_overlap, neighbourhood_features, pair_features, same_letters
from services.cache.guards import HARD, UNWEIGHED, differences
from services.cache.keys import Language, Question, language
from services.cache.namespaces import Mode, NamespacePolicy
from services.cache.policy import fresh
from services.cache.store import Entry, Found
from services.cache.verifier import NEVER, Basis, Contribution, Verifier

NEIGHBOURS_READ = 16
"""Neighbours that are read per lookup; the verifier was fitted on as many."""
HEADROOM = 0.6
"""Share of the bound that thresholds are chosen for: users' questions are not those of the calibration."""
HEADROOM_AMONG_NEIGHBOURS = {Language.ENGLISH: 0.55, Language.KOREAN: 0.7}
"""The same where neighbours vote. English is calibrated on intents, which lie the closer the more of them are stored;
Korean on paraphrase sets, which do not."""
FOLLOW_UP_OVERLAP = 0.6
"""Least overlap of character 2-4-grams of two follow-up questions: short ones look alike to any embedder."""
_WEIGHED_IN_FAQ = frozenset({"one number", "acts", "names"})
"""Guards that refuse nothing in a curated set of intents, where they only weigh in the probability."""
REFUSING: dict[Mode, frozenset[str]] = {
    Mode.STRICT: frozenset(name for name, _ in (*HARD, *UNWEIGHED)),
    Mode.FAQ: frozenset(name for name, _ in (*HARD, *UNWEIGHED)) - _WEIGHED_IN_FAQ,
}
_ANSWERS_JUDGED = 3
_SAME_LETTERS = 0.99999
"""Probability for questions that only spacing, case and final marks tell apart."""
CHARACTERS_READ = 3000
"""Letters that are read per lookup, the question's and its neighbours'; where there are more, the nearest neighbour
alone is judged. They are read on the thread that serves all tenants: 2 to 3 ms per thousand."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer that might be served: ``place`` is that of its speaker among the neighbours."""

    place: int
    basis: Basis
    values: tuple[float, ...]
    """Of ``features.PAIR`` or ``features.NEIGHBOURHOOD``."""
    refusals: tuple[str, ...]
    """What the guards say against it; empty: nothing."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a neighbour is served, and every test's outcome in words."""

    found: Found
    serve: bool
    probability: float
    """Calibrated probability that its answer is right, 0..1."""
    needed: float
    """What the namespace's bound asks for; above 1: nothing is served."""
    reasons: tuple[str, ...]
    contributions: tuple[Contribution, ...]


def refusals(asked: str, stored: str, mode: Mode) -> tuple[str, ...]:
    """What the guards that refuse in a mode say against a pair of questions."""
    return tuple(str(difference) for difference in differences(asked, stored) if difference.name in REFUSING[mode])


def candidates(
    asked: str, stored: Sequence[str], similarities: Sequence[float], answers: Sequence[str], mode: Mode
) -> list[Candidate]:
    """The nearest few different answers.

    The sequences run over the neighbours, best first; equal answers are named equally, an empty name equals no other.
    """
    names = [answer or f"\0{place}" for place, answer in enumerate(answers)]
    overlaps = _overlaps(asked, stored, names)
    chosen = []
    for answer in list(dict.fromkeys(names))[:_ANSWERS_JUDGED]:
        places = [place for place, name in enumerate(names) if name == answer]
        speaker, against = places[0], refusals(asked, stored[places[0]], mode)
        if against:
            passing = (place for place in places[1:] if not refusals(asked, stored[place], mode))
            other = next(passing, None)
            speaker, against = (speaker, against) if other is None else (other, ())
        chosen.append(_candidate(asked, stored, similarities, names, overlaps, speaker, against))
    return chosen


def _candidate(
    asked: str,
    stored: Sequence[str],
    similarities: Sequence[float],
    answers: Sequence[str],
    overlaps: Sequence[float],
    place: int,
    against: tuple[str, ...],
) -> Candidate:
    """One neighbour as a candidate, with what the guards say against it."""
    values = pair_features(asked, stored[place], similarities[place])
    if not _curated(answers, place):
        return Candidate(place, Basis.PAIR, values, against)
    around = neighbourhood_features(place, similarities, overlaps, answers)
    return Candidate(place, Basis.NEIGHBOURS, values + around, against)


def _overlaps(asked: str, stored: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Shared letters with each neighbour; none where no answer occurs again, for then nobody votes."""
    named = [answer for answer in answers if answer]
    return [letter_overlap(asked, turn) for turn in stored] if len(set(named)) < len(named) else []


def _curated(answers: Sequence[str], place: int) -> bool:
    """Whether neighbours vote: the answer occurs again, or answers around it do, so that its standing alone tells."""
    times = Counter(answer for answer in answers if answer)
    return times[answers[place]] > 1 or 2 * sum(count for count in times.values() if count > 1) >= len(answers)


def judge(
    question: Question,
    neighbours: Sequence[Found],
    rules: NamespacePolicy,
    verifier: Verifier,
    error_factor: Callable[[Entry], float],
    now: float,
) -> list[Verdict]:
    """The verdicts on the candidates among the neighbours (best first), most probable first."""
    usable = _witnesses(question, [found for found in neighbours if not fresh(found.entry, question, now)], rules.mode)
    answers = [found.entry.answer_digest for found in usable]
    turns, similarities = [found.entry.turn for found in usable], [found.similarity for found in usable]
    chosen = candidates(question.last_turn, turns, similarities, answers, rules.mode)
    verdicts = [_verdict(question, usable[item.place], item, rules, verifier, error_factor, now) for item in chosen]
    return sorted(verdicts, key=lambda verdict: (-verdict.serve, -verdict.probability))


def explain(
    question: Question,
    neighbours: Sequence[Found],
    rules: NamespacePolicy,
    verifier: Verifier,
    error_factor: Callable[[Entry], float],
    now: float,
) -> list[Verdict]:
    """A verdict on every neighbour by itself, in their order; the others vote as they do in ``judge``."""
    witnesses = _witnesses(question, [one for one in neighbours if not fresh(one.entry, question, now)], rules.mode)
    verdicts = []
    for place, found in enumerate(neighbours):
        standing_for = _origin(found.entry)
        around = [one for one in neighbours[:place] if one in witnesses and _origin(one.entry) != standing_for]
        own = len(around)
        around += [
            found,
            *(one for one in neighbours[place + 1 :] if one in witnesses and _origin(one.entry) != standing_for),
        ]
        turns, answers = [one.entry.turn for one in around], [one.entry.answer_digest for one in around]
        item = _candidate(
            question.last_turn,
            turns,
            [one.similarity for one in around],
            answers,
            _overlaps(question.last_turn, turns, answers),
            own,
            refusals(question.last_turn, found.entry.turn, rules.mode),
        )
        verdicts.append(_verdict(question, found, item, rules, verifier, error_factor, now))
    return verdicts


def _witnesses(question: Question, neighbours: Sequence[Found], mode: Mode) -> list[Found]:
    """The neighbours that may vote: one of each origin, the nearest that no guard refuses, else the nearest.

    An alias repeats its source's answer and proves nothing about it; and what one user alone was answered, however
    often, is one user's word.
    """
    if len(question.last_turn) + sum(len(found.entry.turn) for found in neighbours) > CHARACTERS_READ:
        return [found for found in neighbours[:1] if len(found.entry.turn) <= CHARACTERS_READ // 3]
    chosen: dict[object, Found] = {}
    for found in neighbours:
        origin = _origin(found.entry)
        before = chosen.get(origin)
        if before is None or (
            refusals(question.last_turn, before.entry.turn, mode)
            and not refusals(question.last_turn, found.entry.turn, mode)
        ):
            chosen[origin] = found
    return sorted(chosen.values(), key=lambda found: -found.similarity)


def _origin(entry: Entry) -> object:
    if entry.owner and entry.answer_digest:
        return (entry.owner, entry.answer_digest)
    return source_of(entry.tags) or entry.entry_id


def _verdict(
    question: Question,
    found: Found,
    item: Candidate,
    rules: NamespacePolicy,
    verifier: Verifier,
    error_factor: Callable[[Entry], float],
    now: float,
) -> Verdict:
    reasons: list[str] = []
    serve = True

    def test(passed: bool, what: str) -> None:
        nonlocal serve
        serve = serve and passed
        reasons.append(f"{'ok' if passed else 'refused'}: {what}")

    # First: whoever asks why gets the first refusal, and a guard's says more than a low probability.
    for refusal in item.refusals:
        test(False, refusal)
    alike = same_letters(question.last_turn, found.entry.turn) and not item.refusals
    model = verifier.model(rules.mode.value, language(question.last_turn).value, item.basis)
    probability, needed = 0.0, NEVER
    contributions: tuple[Contribution, ...] = ()
    if model is not None:
        sure = _SAME_LETTERS if alike else model.probability(item.values)
        wrong = (1 - sure) * error_factor(found.entry)
        probability = 1 - min(wrong, 1.0)
        among = item.basis is Basis.NEIGHBOURS
        headroom = HEADROOM_AMONG_NEIGHBOURS.get(language(question.last_turn), HEADROOM) if among else HEADROOM
        needed = model.needed(rules.max_wrong_hits_per_thousand * headroom)
        contributions = model.contributions(item.values)
    rests_on = "near entries with the same answer" if item.basis is Basis.NEIGHBOURS else "the pair alone"
    rests_on = "the same letters" if alike else rests_on
    wanted = f"needs {needed:.4f}" if needed <= 1 else "no threshold holds the namespace's bound"
    test(probability >= needed, f"probability {probability:.4f}, {wanted} ({rests_on})")
    if question.is_follow_up:
        overlap = letter_overlap(question.last_turn, found.entry.turn)
        what = f"follow-up: 2-4-gram overlap of the last turns {overlap:.3f}, needs {FOLLOW_UP_OVERLAP:g}"
        test(overlap >= FOLLOW_UP_OVERLAP, what)
    old = fresh(found.entry, question, now)
    test(not old, old or f"{now - found.entry.created:.0f} s old, tier {found.entry.tier}")
    return Verdict(found, serve, probability, needed, tuple(reasons), contributions)

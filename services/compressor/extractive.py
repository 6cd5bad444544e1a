"""Which units of the chunks stay, given how probable it is that each is needed: the ``extractive`` strategy. Pure.

What a unit is worth is the probability that it is needed, plus a part of its chunk's (a reader wants what surrounds an
answer), plus more for the best unit of its chunk (a chunk that matters should not vanish). A unit stays when its worth
per token reaches a threshold; on the training sets that keeps more answers at the same size than a cut-off by score
mass, by rank, or by the probability alone. Then units that others lean on join: the title and the nearest heading, the
sentence before one that begins with a pronoun, parts of one protected span, and, in chunks of which something stays,
sentences with a number or a negation that the question asks about. Gaps are not marked: a mark costs tokens.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import numpy.typing as npt

from services.compressor.documents import Document
from services.compressor.ranking import Floats, Query, Ranked
from services.compressor.sentences import Kind
from services.compressor.wording import identifiers, numbers, terms

Mask = npt.NDArray[np.bool_]

CONTEXT_WORTH, BEST_WORTH = 0.1, 0.2
"""What a chunk's probability adds to each of its units, and to the best of them. Chosen on the training sets."""
UNIT_OVERHEAD_TOKENS = 8
"""Added to a unit's tokens, so that very short units are not kept for being short."""
REPETITION_WORTH = 0.3
"""Part of the worth left to what a better chunk says in nearly the same words: it may differ in what is asked."""
_SMALLEST_CUT_TOKENS = 10
"""Less than this is not cut out of a chunk: a gap for a handful of tokens is a bad trade."""
_LONG_UNITS = 12
_SHARED_TERMS = 2

_NEGATION = re.compile(
    r"\b(?:not|never|no|none|nor|neither|without|cannot|except|unless)\b|n['’]t\b|없|않|못\s?하|못했|아니|금지|제외|불가",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Worth:
    """What selection needs of a ranked prompt; made once, thresholds are then cheap to try."""

    density: Floats
    """Worth per token of each unit; infinite for what must stay, minus infinite for titles, which follow their text."""
    tokens: Floats
    starts: npt.NDArray[np.intp]
    owner: npt.NDArray[np.intp]
    groups: tuple[Callable[[], Sequence[tuple[int, ...]]], ...]
    """For each chunk the units that stay or go together; found when first asked for."""
    leaders: tuple[tuple[int, ...], ...]
    """For each unit those that must stay when it stays."""
    along: Mask
    """Units that stay whenever anything of their chunk but the title does."""
    titles: Mask


def worth(documents: Sequence[Document], ranked: Ranked, query: Query, near_repeats: Sequence[int]) -> Worth:
    """Prepare a selection. ``near_repeats`` are places of chunks that a better one says in nearly the same words."""
    sizes = [len(document.units) for document in documents]
    owner = np.repeat(np.arange(len(documents)), sizes)
    tokens = np.array([count for document in documents for count in document.tokens], float)
    best = ranked.units == np.maximum.reduceat(ranked.units, ranked.starts)[owner]
    chunk = ranked.chunks[owner]
    value = ranked.units + CONTEXT_WORTH * chunk + BEST_WORTH * chunk * best
    titles = np.zeros(len(owner), bool)
    along = np.zeros(len(owner), bool)
    leaders: list[tuple[int, ...]] = []
    groups: list[Callable[[], Sequence[tuple[int, ...]]]] = []
    forced = np.zeros(len(owner), bool)
    keys = identifiers(query.focus)
    asked_numbers = numbers(query.focus)
    asked = set(terms(query.focus))
    negated = bool(_NEGATION.search(query.focus))
    for document, start in zip(documents, ranked.starts.tolist(), strict=True):
        latest_heading = -1
        leaning = document.leaning()
        for place, unit in enumerate(document.units):
            at = start + place
            needed: list[int] = []
            if unit.kind is Kind.HEADING:
                latest_heading = at
                titles[at] = place == 0
            else:
                if latest_heading >= 0:
                    needed.append(latest_heading)
                if place and document.units[place - 1].kind is not Kind.HEADING and leaning[place]:
                    needed.append(at - 1)
                    if not document.heading and len(document.units) > _LONG_UNITS:
                        needed.append(start)
            leaders.append(tuple(needed))
            counts = document.counts[place]
            if asked_numbers and any(number in counts for number in asked_numbers):
                along[at] = len(asked & counts.keys()) >= _SHARED_TERMS
            if negated and _NEGATION.search(document.text[unit.start : unit.end]):
                along[at] |= len(asked & counts.keys()) >= _SHARED_TERMS
            if keys and any(key in document.text[unit.start : unit.end] for key in keys):
                forced[at] = True
        groups.append(cache(partial(_together, document, start)))
    density = value / (tokens + UNIT_OVERHEAD_TOKENS)
    # A title is worth nothing alone: it follows its text.
    density[titles & (np.array(sizes)[owner] > 1)] = -np.inf
    density[repeated_units(documents, ranked)] *= REPETITION_WORTH
    density[np.isin(owner, near_repeats)] *= REPETITION_WORTH
    density[forced] = np.inf
    return Worth(density, tokens, ranked.starts, owner, tuple(groups), tuple(leaders), along, titles)


def select(prepared: Worth, threshold: float) -> Mask:
    """The units that stay at this worth per token, with those that they lean on."""
    kept = prepared.density >= threshold
    count = len(prepared.starts)
    # What joins may need others in turn, but no chain goes further than one step: it would keep whole paragraphs.
    alive = np.zeros(count, bool)
    np.logical_or.at(alive, prepared.owner, kept & ~prepared.titles)
    kept = kept | (prepared.along & alive[prepared.owner])
    for at in np.flatnonzero(kept).tolist():
        for needed in prepared.leaders[at]:
            kept[needed] = True
    stay = np.bincount(prepared.owner, kept, count)
    for place in np.flatnonzero((stay > 0) & (stay < np.bincount(prepared.owner, minlength=count))).tolist():
        for group in prepared.groups[place]():
            if any(kept[at] for at in group):
                kept[list(group)] = True
    np.logical_or.at(alive, prepared.owner, kept & ~prepared.titles)
    single = np.bincount(prepared.owner, minlength=count) == 1
    np.logical_or.at(alive, prepared.owner, kept & single[prepared.owner])
    kept = np.where(prepared.titles & ~single[prepared.owner], alive[prepared.owner], kept)
    lost = np.bincount(prepared.owner, np.where(kept, 0.0, prepared.tokens), count)
    return kept | (alive & (lost < _SMALLEST_CUT_TOKENS))[prepared.owner]


def cut(document: Document, kept: Sequence[bool]) -> str:
    """The chunk's text with its kept units, as they stand, without white space at the end; "" when none is kept."""
    if all(kept):
        return document.text
    return "".join(
        document.text[unit.start : unit.end] for unit, stays in zip(document.units, kept, strict=True) if stays
    ).rstrip()


def _together(document: Document, start: int) -> list[tuple[int, ...]]:
    """Groups of units that one protected span runs across."""
    found: list[tuple[int, ...]] = []
    place = 0
    for left, right in sorted(document.hard()):
        while place < len(document.units) and document.units[place].end <= left:
            place += 1
        last = place
        while last + 1 < len(document.units) and document.units[last + 1].start < right:
            last += 1
        if last > place:
            found.append(tuple(range(start + place, start + last + 1)))
    return found


def repeated_units(documents: Sequence[Document], ranked: Ranked) -> list[int]:
    """Units that say nothing but what a unit of the same terms in a better or earlier chunk says."""
    rough = [
        [_rough(document, place, unit.kind) for place, unit in enumerate(document.units)] for document in documents
    ]
    often = Counter(key for keys in rough for key in keys)
    seen: dict[tuple[tuple[str, int], ...], int] = {}
    found = []
    for chunk in np.argsort(-ranked.chunks, kind="stable").tolist():
        document, start = documents[chunk], int(ranked.starts[chunk])
        for place, short in enumerate(rough[chunk]):
            # Most units are alone with what little is compared first.
            if short is None or often[short] == 1:
                continue
            key = tuple(document.counts[place].items())
            if seen.setdefault(key, start + place) != start + place:
                found.append(start + place)
    return found


def _rough(document: Document, place: int, kind: Kind) -> tuple[int, int, str] | None:
    """What units of the same terms have the same; None for one that is too short, or no prose."""
    counts = document.counts[place]
    if document.lengths[place] < 6 or kind in (Kind.CODE, Kind.TABLE, Kind.HEADING):
        return None
    return document.lengths[place], len(counts), next(iter(counts))

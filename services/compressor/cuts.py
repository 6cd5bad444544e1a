"""Where a text may be cut in two without breaking a word, a name or a phrase. Pure, linear in time."""

from __future__ import annotations

import re

from services.compressor.protected import hard_spans, soft_spans
from services.compressor.spans import Kind

_BLANKS = re.compile(r"\s+")
# Chinese and Japanese have no blanks: after their stops.
_STOPS = re.compile(r"[。！？、，；](?![。！？、，；\s」』”’）)\]】》〉])")
# A Korean particle that was set apart from its noun, dependent nouns and auxiliaries: the blank before stays whole.
_LEANING = re.compile(
    r"\s(?=(?:은|는|이|가|을|를|의|에|에서|에게|께|께서|와|과|도|로|으로|만|까지|부터|처럼|보다|마다|조차|밖에"
    r"|이나|이란|이라는|이라고|라는|라고|입니다|이다|이며"
    r"|에는|에도|에서는|으로는|과는|와는|들|들은|들이|들을|들의|씨|님|것|것은|것이|것을|것도|것입니다|게|거|수"
    r"|수는|수가|수도|줄|바|데|뿐|적|리|채|척"
    r"|때문|때문에|만큼|대로|듯|듯이|이상|이하|미만|초과|있다|있는|있습니다|있었다|없다|없는|없습니다|없었다"
    r"|않다|않는|않은|않습니다|않았다|못하다|못한|못했다|못합니다)"
    r"(?![가-힣]))"
)
# What the next word belongs to: negations, abbreviated titles and numbers' marks, prepositions of a name's parts.
_LEADING = re.compile(
    r"(?:(?<![가-힣])(?:안|못|제|약|총|각|매|첫|단|딱|더|덜|가장)|\b(?:not|no|never|without|cannot|n['’]t)"
    r"|\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|Nos|Fig|Figs|Vol|Art|Sec|Ch|pp?|vs|approx|ca)\.)\s+",
    re.IGNORECASE,
)

_ARTICLE = re.compile(r"\b(?:an?|the)\s+", re.IGNORECASE)


def safe_cuts(text: str, *, lone_articles: bool = False) -> tuple[int, ...]:
    """Positions, in order, where ``text[:at]`` and ``text[at:]`` are both whole words.

    A position is after the blanks between two words, or after a stop of a script without blanks. Never within a hard
    span or a number with its unit, between the parts of a date, between a negation and its word, or before a Korean
    particle, dependent noun or auxiliary, so that no particle is cut from its noun; with the blanks between words alone
    no grapheme (emoji, combining mark, surrogate pair) is cut either. The text's ends are not among the positions. Nor,
    unless ``lone_articles``, is a place between an English article and its word.
    """
    cuts = {match.end() for match in _BLANKS.finditer(text)}
    cuts.update(match.end() for match in _STOPS.finditer(text))
    cuts.difference_update(match.end() for match in _LEANING.finditer(text))
    cuts.difference_update(match.end() for match in _LEADING.finditer(text))
    if not lone_articles:
        cuts.difference_update(match.end() for match in _ARTICLE.finditer(text))
    cuts.discard(0)
    cuts.discard(len(text))
    closed = [(span.start, span.end) for span in hard_spans(text)]
    before = -1
    for span in soft_spans(text):
        if span.kind is not Kind.NUMBER:
            continue
        if (
            before >= 0
            and span.start - before <= 3
            and text[before : span.start].isspace()
            and "\n" not in text[before : span.start]
        ):
            cuts.discard(span.start)  # The parts of a date, or of an amount.
        closed.append((span.start, span.end))
        before = span.end
    ordered = sorted(cuts)
    closed.sort()
    return tuple(_outside(ordered, closed))


def _outside(cuts: list[int], ranges: list[tuple[int, int]]) -> list[int]:
    """The cuts that lie inside no range; both in order."""
    result, at, reach = [], 0, -1
    for cut in cuts:
        while at < len(ranges) and ranges[at][0] < cut:
            reach = max(reach, ranges[at][1])
            at += 1
        if cut >= reach:
            result.append(cut)
    return result

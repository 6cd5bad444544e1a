"""How likely a question needs each of the messages before it: a few features, weighed linearly. Pure.

| feature | what it is |
|---|---|
| similarity | cosine of the question's and the message's vectors, as standard scores within the conversation |
| similarity_near | the same of the two messages before and the two after (half weight at distance two) |
| keywords | BM25 (Robertson and Zaragoza, 2009; k1 1.2, b 0.75), as a share of the best message's |
| keywords_near | the same of the message before and the message after |
| passage | mean of ``keywords`` over the seventeen messages around |
| author | 1 when the question names who said it ("What did Anna buy?", "what did I tell you?") |
| date | 1 when the question's month or year is the message's, 2 when the day is too; a day's date holds on |
| information | logarithm of the summed rarity of its words: greetings and thanks have little |
| question | 1 when it ends with a question mark: it asks, rather than tells |
| recency | place in the conversation, 0 the oldest to 1 the newest |

The weights were fitted (``fit_history.py``), one set with vectors and one without.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.compressor.history_terms import Date, Terms, asked_authors, asked_roles, author, dates, own_date
from services.compressor.prompt import ASSISTANT, USER, Message

Floats = npt.NDArray[np.float64]
FEATURES = (
    "similarity",
    "similarity_near",
    "keywords",
    "keywords_near",
    "passage",
    "author",
    "date",
    "information",
    "question",
    "recency",
)
_K1, _B = 1.2, 0.75
_PASSAGE = 8
_FEW_TERMS = 3
_EARLIER = 0.5
"""What all words of the user message before weigh beside the question's own, when it has two at most ("why?")."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What each feature counts for, with vectors and without; features that are not named count nothing."""

    with_vectors: Mapping[str, float]
    without_vectors: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Vectors:
    """L2-normalised embeddings by one embedder."""

    question: npt.ArrayLike
    """Shape (dimension,)."""
    messages: npt.ArrayLike
    """Shape (messages, dimension); a row of zeros for a message without a vector."""


@dataclass(frozen=True, slots=True)
class Relevance:
    """A score per message, higher is more relevant, and by what measure."""

    scores: Floats
    method: str


def relevance(
    messages: Sequence[Message], asked: str, earlier: str, weights: Weights, vectors: Vectors | None = None
) -> Relevance:
    """Scores of messages for a question.

    ``earlier`` is the user message before the question; it helps only a question that has next to no words of its own.
    Raises ValueError when the vectors are not one per message.
    """
    found = features(messages, asked, earlier, vectors)
    chosen = weights.without_vectors if vectors is None else weights.with_vectors
    scores = np.zeros(len(messages))
    for name, value in found.items():
        scores = scores + chosen.get(name, 0.0) * value
    return Relevance(scores, "words" if vectors is None else "embedding similarity and words")


def features(
    messages: Sequence[Message], asked: str, earlier: str = "", vectors: Vectors | None = None
) -> dict[str, Floats]:
    """Each feature's values, one per message. ``similarity`` and ``similarity_near`` only with vectors."""
    count = len(messages)
    terms = Terms()
    wanted = dict.fromkeys(terms.of(asked), 1.0)
    if len(wanted) < _FEW_TERMS:
        before = set(terms.of(earlier))
        wanted = dict.fromkeys(sorted(before), _EARLIER * max(1, len(wanted)) / max(1, len(before))) | wanted
    keywords, information = _words(messages, wanted, terms)
    result = {
        "keywords": keywords,
        "keywords_near": _shifted(keywords, 1) + _shifted(keywords, -1),
        "passage": _smoothed(keywords, _PASSAGE),
        "author": _authored(messages, asked),
        "date": _dated(messages, asked),
        "information": information,
        "question": np.array([_is_question(message) for message in messages], float),
        "recency": np.arange(count) / max(1, count - 1),
    }
    if vectors is not None:
        similarity = _similarity(vectors, count)
        near = _shifted(similarity, 1) + _shifted(similarity, -1)
        near = near + 0.5 * (_shifted(similarity, 2) + _shifted(similarity, -2))
        result |= {"similarity": similarity, "similarity_near": near}
    return result


def text_to_embed(message: Message) -> str:
    """A message in the form whose embedding is compared with the question's."""
    text = "\n".join(message.texts)
    return f"{message.name}: {text}" if message.name else text


def _similarity(vectors: Vectors, count: int) -> Floats:
    rows = np.asarray(vectors.messages, np.float32)
    question = np.asarray(vectors.question, np.float32)
    if rows.shape != (count, question.size):
        raise ValueError(f"vectors of shape {rows.shape} for {count} messages and a question of {question.size}")
    cosines = (rows @ question).astype(float)
    if not np.isfinite(cosines).all():
        raise ValueError("a vector has values that are not finite numbers")
    spread = float(cosines.std()) if count else 0.0
    return (cosines - cosines.mean()) / spread if spread > 1e-6 else np.zeros(count)


def _words(messages: Sequence[Message], wanted: Mapping[str, float], terms: Terms) -> tuple[Floats, Floats]:
    """``keywords`` and ``information`` of each message."""
    spoken, lengths, matches = list[set[str]](), list[int](), list[dict[str, int]]()
    frequency: Counter[str] = Counter()
    for message in messages:
        own = terms.of(text_to_embed(message))
        for call in message.calls:
            own += terms.of(f"{call.name} {call.arguments}")
        different = set(own)
        frequency.update(different)
        spoken.append(different)
        lengths.append(len(own))
        matches.append({term: own.count(term) for term in sorted(different & wanted.keys())})
    total = len(messages)
    rarity = {term: math.log(1 + (total - seen + 0.5) / (seen + 0.5)) for term, seen in frequency.items()}
    average = (sum(lengths) / total if total else 0.0) or 1.0
    scores = np.zeros(total)
    for at, found in enumerate(matches):
        norm = _K1 * (1 - _B + _B * lengths[at] / average)
        scores[at] = sum(
            wanted[term] * rarity[term] * times * (_K1 + 1) / (times + norm) for term, times in found.items()
        )
    # fsum: a set has no order, and the sum must not depend on it.
    information = np.array([math.log1p(math.fsum(rarity[term] for term in own)) for own in spoken])
    best = float(scores.max()) if total else 0.0
    return (scores / best if best > 0 else scores), information


def _authored(messages: Sequence[Message], asked: str) -> Floats:
    authors = [author(message) for message in messages]
    wanted = asked_authors(asked, frozenset(authors) - {""})
    mine, yours = asked_roles(asked)
    if mine == yours:
        mine = yours = False
    return np.array(
        [
            float(
                (bool(name) and name in wanted)
                or (mine and message.role == USER)
                or (yours and message.role == ASSISTANT)
            )
            for name, message in zip(authors, messages, strict=True)
        ]
    )


def _dated(messages: Sequence[Message], asked: str) -> Floats:
    result = np.zeros(len(messages))
    wanted = list(dates(asked))
    if not wanted:
        return result
    day: Date | None = None
    for at, message in enumerate(messages):
        text = message.texts[0] if message.texts else ""
        day = own_date(text) or day
        said = [date for text in message.texts for date in dates(text)]
        if day is not None:
            said.append(day)
        result[at] = max((_meets(date, other) for date in wanted for other in said), default=0.0)
    return result


def _meets(wanted: Date, date: Date) -> float:
    if wanted.year and date.year and wanted.year != date.year:
        return 0.0
    if not wanted.month:
        return float(wanted.year == date.year)
    if wanted.month != date.month:
        return 0.0
    # People say when they told of a thing, or when it was: a few days either way.
    return 2.0 if wanted.day and date.day and abs(wanted.day - date.day) <= 2 else 1.0


def _is_question(message: Message) -> bool:
    text = message.texts[-1].rstrip() if message.texts else ""
    return text.endswith(("?", "？"))


def _shifted(values: Floats, by: int) -> Floats:
    result = np.zeros_like(values)
    if abs(by) < len(values):
        if by > 0:
            result[by:] = values[:-by]
        else:
            result[:by] = values[-by:]
    return result


def _smoothed(values: Floats, reach: int) -> Floats:
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    result: Floats = (sums[np.minimum(at + reach + 1, len(values))] - sums[np.maximum(at - reach, 0)]) / (2 * reach + 1)
    return result

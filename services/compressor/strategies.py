"""Plain BM25 over chunks, as a measure beside ``ranking.py``, which decides. Pure.

BM25 (Robertson and Zaragoza, 2009; k1 1.2, b 0.75). Korean is
split into character bigrams for it, which stands up to particles and endings without a morphological analyser.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_TERM = re.compile(r"[\uac00-\ud7a3]+|(?:(?![\uac00-\ud7a3])[^\W_])+")
_K1, _B = 1.2, 0.75
# The commonest English words, which match everything.
_STOP = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be by can do does for from how i in is it my of on or that the this to was what when where "
        "which who why will with you your",
    )
)


@dataclass(frozen=True, slots=True)
class Ranking:
    """How relevant each chunk is, higher is better, and by what measure."""

    scores: tuple[float, ...]
    method: str


def rank_by_bm25(question: str, chunks: Sequence[str]) -> Ranking:
    """BM25 scores of the chunks, the chunks themselves being the collection."""
    documents = [Counter(terms(chunk)) for chunk in chunks]
    lengths = [sum(document.values()) for document in documents]
    average = sum(lengths) / len(lengths) if lengths else 1.0
    wanted = set(terms(question))
    frequency = Counter(term for document in documents for term in document if term in wanted)
    total = len(documents)
    scores = []
    for document, length in zip(documents, lengths, strict=True):
        score = 0.0
        norm = _K1 * (1 - _B + _B * length / (average or 1.0))
        for term in sorted(wanted & document.keys()):
            idf = math.log(1 + (total - frequency[term] + 0.5) / (frequency[term] + 0.5))
            score += idf * document[term] * (_K1 + 1) / (document[term] + norm)
        scores.append(score)
    return Ranking(tuple(scores), "BM25")


def terms(text: str) -> list[str]:
    """Terms for BM25: lower-case words without the commonest English ones; of Hangul words the bigrams."""
    result = []
    for word in _TERM.findall(text.lower()):
        if "\uac00" <= word[0] <= "\ud7a3":
            result.extend([word] if len(word) == 1 else [word[at : at + 2] for at in range(len(word) - 1)])
        elif word not in _STOP:
            result.append(word)
    return result

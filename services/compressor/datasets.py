"""The evaluation sets of retrieval as cases: a question, its chunks in a seeded order, which are gold, what answers it.

Distractors are the nine other passages of the same file that BM25 ranks highest for the question. Read by the fit and
by the benchmark.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from services.compressor.sentences import split
from services.compressor.strategies import terms as plain_terms
from services.compressor.wording import terms

DISTRACTORS = 9
TRAINING_TENTHS = 6
_K1, _B = 1.2, 0.75
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NOT_WORD = re.compile(r"[^\w]+")

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One question with its chunks."""

    id: str
    group: str
    """Rows of one group are never split between training and measuring."""
    question: str
    earlier: tuple[str, ...]
    """Earlier turns of the user, newest first."""
    chunks: tuple[str, ...]
    gold: tuple[int, ...]
    """Places of the gold chunks."""
    answers: tuple[str, ...]
    evidence: tuple[frozenset[str], ...] = ()
    """Without an answer string: for each gold chunk the one sentence that supports the reference most, if any."""

    @property
    def training(self) -> bool:
        """True for groups that fitting may see."""
        digest = hashlib.sha1(self.group.encode(), usedforsecurity=False).hexdigest()
        return int(digest[:8], 16) % 10 < TRAINING_TENTHS


def normalised(text: str) -> str:
    """As usual for SQuAD: lower case, no punctuation, no articles, single blanks between words."""
    folded = unicodedata.normalize("NFKC", text).lower()
    return " ".join(_ARTICLES.sub(" ", _NOT_WORD.sub(" ", folded)).split())


def holds(text: str, answers: Sequence[str]) -> bool:
    """True when one of the answers stands in a text, both normalised."""
    inside = f" {normalised(text)} "
    # Korean particles follow a word without a blank: there the answer need only begin or stand within a word.
    return any(
        found and (f" {found} " in inside or (not found.isascii() and found in inside))
        for found in map(normalised, answers)
    )


def answered(case: Case, kept: Mapping[int, str]) -> bool:
    """True when what a question needs is still there; ``kept`` is the text left of each chunk, by place.

    Of every gold chunk something must be left besides its title, and in each that held the answer it must still stand.
    Without an answer string: the sentence that supports the reference must be left.
    """
    for at in case.gold:
        text = kept.get(at, "")
        if case.evidence:
            if any(sentence not in text for sentence in case.evidence[case.gold.index(at)]):
                return False
            continue
        _, _, body = text.partition("\n")
        if not body.strip() or (holds(case.chunks[at], case.answers) and not holds(text, case.answers)):
            return False
    return True


def read(data: Path, name: str, seed: int = 7) -> list[Case]:
    """All cases of a set that can be measured. Raises OSError, ValueError or KeyError for a file that is not so."""
    return READERS[name](_rows(data, name), seed)


def _nq(rows: Sequence[Fields], seed: int) -> list[Case]:
    passages = [f"{row['gold_title']}\n{row['gold_text']}" for row in rows]
    pool = _Pool(passages)
    return [
        _case(row["id"], f"{row['gold_title']}", row["question"], (), [passage], row["answers"], pool, seed)
        for row, passage in zip(rows, passages, strict=True)
        if holds(row["gold_text"], row["answers"])
    ]


def _beerqa(rows: Sequence[Fields], seed: int) -> list[Case]:
    def text(context: Fields) -> str:
        return f"{context['title'].replace('_', ' ')}\n{context['text']}"

    pool = _Pool(list(dict.fromkeys(text(context) for row in rows for context in row["gold_contexts"])))
    found = []
    for row in rows:
        gold = list(dict.fromkeys(text(context) for context in row["gold_contexts"]))
        if any(holds(each, row["answers"]) for each in gold):
            group = min(context["title"] for context in row["gold_contexts"])
            found.append(_case(row["id"], group, row["question"], (), gold, row["answers"], pool, seed))
    return found


def _korquad(rows: Sequence[Fields], seed: int) -> list[Case]:
    passages = [f"{row['title'].replace('_', ' ')}\n{row['context']}" for row in rows]
    pool = _Pool(passages)
    return [
        _case(asked["id"], row["title"], asked["question"], (), [passage], asked["answers"], pool, seed)
        for row, passage in zip(rows, passages, strict=True)
        for asked in row["qas"]
        if holds(row["context"], asked["answers"])
    ]


def _mtrag(rows: Sequence[Fields], seed: int) -> list[Case]:
    pool = _Pool(list(dict.fromkeys(context["text"] for row in rows for context in row["contexts"])))
    found = []
    for row in rows:
        gold = list(dict.fromkeys(context["text"] for context in row["contexts"]))
        reference = " ".join(row["reference"]) if isinstance(row["reference"], list) else str(row["reference"] or "")
        if not gold or not reference or not {"ANSWERABLE", "PARTIAL"} & set(row["answerability"]):
            continue
        asked = [message["content"] for message in row["messages"] if message["role"] == "user"]
        case = _case(row["id"], row["conversation_id"], asked[-1], tuple(asked[-2::-1][:2]), gold, (), pool, seed)
        support = _support([case.chunks[at] for at in case.gold], reference)
        if support is not None:
            evidence = tuple(support if at == support_at else frozenset() for at, support_at in _places(case, support))
            found.append(Case(case.id, case.group, case.question, case.earlier, case.chunks, case.gold, (), evidence))
    return found


def _places(case: Case, support: frozenset[str]) -> list[tuple[int, int]]:
    best = next(at for at in case.gold if all(each in case.chunks[at] for each in support))
    return [(at, best) for at in case.gold]


def _support(gold: Sequence[str], reference: str) -> frozenset[str] | None:
    """The sentence of the gold chunks that shares most with the reference answer, by terms weighted by rarity."""
    sentences = [chunk[unit.start : unit.end].strip() for chunk in gold for unit in split(chunk)]
    wanted = set(terms(reference))
    held = [set(terms(each)) for each in sentences]
    frequency = Counter(term for each in held for term in each)
    best, best_score = "", 0.0
    for text, each in zip(sentences, held, strict=True):
        score = sum(1 / (1 + frequency[term]) ** 0.5 for term in wanted & each) / (8 + len(each)) ** 0.5
        if score > best_score:
            best, best_score = text, score
    return frozenset([best]) if best else None


READERS: Mapping[str, Callable[[Sequence[Fields], int], list[Case]]] = {
    "nq_gold_passages": _nq,
    "beerqa_1000": _beerqa,
    "korquad1_dev_ko": _korquad,
    "mtrag_un_multiturn": _mtrag,
    "mtrag_human_eval3": _mtrag,
}


def alone(case: Case) -> Case:
    """The same question with its gold chunks only: sentences must be told apart within them."""
    return Case(
        f"{case.id}/alone", case.group, case.question, case.earlier, tuple(case.chunks[at] for at in case.gold),
        tuple(range(len(case.gold))), case.answers, case.evidence,
    )  # fmt: skip


def _case(
    identity: str,
    group: str,
    question: str,
    earlier: tuple[str, ...],
    gold: list[str],
    answers: Sequence[str],
    pool: _Pool,
    seed: int,
) -> Case:
    chunks = gold + pool.nearest(" ".join((question, *earlier[:1])), gold)
    random.Random(f"{seed}:{identity}").shuffle(chunks)  # noqa: S311  (an order, no secret)
    return Case(
        identity, group, question, earlier, tuple(chunks), tuple(sorted(map(chunks.index, gold))), tuple(answers)
    )


class _Pool:
    """The passages of a file with an inverted index."""

    def __init__(self, passages: list[str]) -> None:
        self._passages = list(dict.fromkeys(passages))
        found = [Counter(plain_terms(passage)) for passage in self._passages]
        lengths = np.array([each.total() for each in found], float)
        norm = _K1 * (1 - _B + _B * lengths / (lengths.mean() or 1.0))
        postings: dict[str, list[int]] = defaultdict(list)
        for place, each in enumerate(found):
            for term in each:
                postings[term].append(place)
        total = len(found)
        self._scores: dict[str, tuple[Any, Any]] = {}
        for term, places in postings.items():
            at = np.array(places)
            counts = np.array([found[place][term] for place in places], float)
            idf = np.log(1 + (total - len(places) + 0.5) / (len(places) + 0.5))
            self._scores[term] = (at, idf * counts * (_K1 + 1) / (counts + norm[at]))

    def nearest(self, question: str, besides: Sequence[str]) -> list[str]:
        scores = np.zeros(len(self._passages))
        for term in sorted(set(plain_terms(question))):
            if term in self._scores:
                at, gain = self._scores[term]
                scores[at] += gain
        found: list[str] = []
        for place in np.argsort(-scores, kind="stable"):
            if len(found) == DISTRACTORS:
                break
            if self._passages[place] not in besides:
                found.append(self._passages[place])
        return found


def _rows(data: Path, name: str) -> list[Fields]:
    with gzip.open(data / "compressor" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]

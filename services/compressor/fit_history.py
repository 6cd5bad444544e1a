"""Fits what the ``history`` strategy weighs: ``python -m services.compressor.fit_history``.

    python -m bench.compressor_history --data DIR --vectors FILE     # embeds the conversations, once
    python -m services.compressor.fit_history --data DIR --vectors FILE

Logistic regression (L2) of "this message is evidence" on the features of ``history_relevance.py``, over LoCoMo's
questions: each question's messages weigh as much as those of any other, evidence as much as a twentieth of the rest
does. Three of five conversations are fitted on (those whose ids have the smallest SHA-1), the others only measured.
Recency and the cost exponent cannot be learned there, for its questions are about any time: they are the pair of a
small grid that keeps most of what real answers say in ShareGPT's fitted chats and loses at most 0.005 on LoCoMo's.
Without ``--vectors`` only the weights without vectors are fitted, the others stay. Same data: same file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.compressor.history import STUB, HistorySettings, questions, select_history
from services.compressor.history_relevance import FEATURES, Relevance, Vectors, Weights, features
from services.compressor.history_sets import (
    Chat,
    Conversation,
    answer_terms,
    ask,
    is_fitted_on,
    read_chats,
    read_locomo,
)
from services.compressor.history_weights import SHIPPED, load_weights
from services.compressor.prompt import Message

Floats = npt.NDArray[np.float64]
SHARE_FITTED = 0.6
_RIDGE = 1.0
_NEGATIVES = 20.0
_STEPS = 50
_CHATS = 120
_RECENCY, _EXPONENTS = (0.0, 0.5, 1.0, 2.0), (0.0, 0.5, 1.0)
_LOSS_ALLOWED = 0.005
_VECTOR_FEATURES = ("similarity", "similarity_near")


@dataclass(frozen=True, slots=True)
class Embedded:
    """A conversation's vectors."""

    messages: npt.NDArray[np.float32]
    questions: npt.NDArray[np.float32]


def rough_cost(message: Message) -> int:
    """Tokens of a message, roughly: a quarter of its bytes, and four for its frame."""
    return 4 + len("".join(message.texts).encode("utf-8", "surrogatepass")) // 4


def split(conversations: Sequence[Conversation]) -> tuple[list[Conversation], list[Conversation]]:
    """Those to fit on, and those to measure on."""
    ordered = sorted(conversations, key=lambda one: hashlib.sha1(one.id.encode(), usedforsecurity=False).digest())
    count = round(SHARE_FITTED * len(ordered))
    return ordered[:count], ordered[count:]


def read_vectors(path: Path, conversations: Sequence[Conversation]) -> dict[str, Embedded]:
    """The vectors of a file that the bench wrote. Raises OSError and KeyError."""
    with np.load(path) as content:
        return {
            one.id: Embedded(content[f"{one.id}/messages"], content[f"{one.id}/questions"]) for one in conversations
        }


def fit_weights(
    conversations: Sequence[Conversation], names: Sequence[str], vectors: Mapping[str, Embedded] | None
) -> dict[str, float]:
    """Weights of the named features."""
    rows, labels, importance = list[Floats](), list[Floats](), list[Floats]()
    for one in conversations:
        own = vectors[one.id] if vectors is not None else None
        for at, question in enumerate(one.questions):
            given = Vectors(own.questions[at], own.messages) if own is not None else None
            found = features(one.messages, question.text, "", given)
            rows.append(np.stack([found[name] for name in names], axis=1))
            label = np.zeros(len(one.messages))
            label[sorted(question.evidence)] = 1.0
            labels.append(label)
            importance.append(np.where(label > 0, 1.0, _NEGATIVES / len(label)))
    found_weights = _logistic(np.concatenate(rows), np.concatenate(labels), np.concatenate(importance))
    return {name: round(float(weight), 3) for name, weight in zip(names, found_weights, strict=True)}


def _logistic(rows: Floats, labels: Floats, importance: Floats) -> Floats:
    """Newton's method; the last column is the intercept, which is not shrunk and not returned."""
    design = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    shrink = np.full(design.shape[1], _RIDGE)
    shrink[-1] = 1e-6
    weights = np.zeros(design.shape[1])
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        slope = design.T @ (importance * (chance - labels)) + shrink * weights
        curve = (design * (importance * chance * (1 - chance))[:, None]).T @ design + np.diag(shrink)
        step = np.linalg.solve(curve, slope)
        weights = weights - step
        if float(np.abs(step).max()) < 1e-8:
            break
    return weights[:-1]


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt with the features of its messages; ``wanted`` has what a good selection keeps."""

    messages: tuple[Message, ...]
    costs: dict[int, int]
    found: Mapping[str, Floats]
    wanted: frozenset[int]
    said: list[frozenset[str]]

    def selection(self, settings: HistorySettings, weights: Mapping[str, float], share: float) -> set[int]:
        """Positions that stay whole when ``share`` of the tokens before the question may."""
        scores = np.zeros(len(self.messages))
        for name, value in self.found.items():
            scores = scores + weights.get(name, 0.0) * value
        last = len(self.messages) - 1
        budget = int(share * sum(self.costs[at] for at in range(last))) + self.costs[last]
        chosen = select_history(self.messages, budget, self._cost, settings, found=Relevance(scores, "fit"))
        return set(chosen.positions) - set(chosen.stubbed)

    def _cost(self, message: Message) -> int:
        return rough_cost(message) if message.texts[0] == STUB else self.costs[message.index]


def question_cases(conversations: Sequence[Conversation], vectors: Mapping[str, Embedded] | None) -> list[Case]:
    """One case per question of LoCoMo's."""
    cases = []
    for one in conversations:
        own = vectors[one.id] if vectors is not None else None
        for at, question in enumerate(one.questions):
            given = None
            if own is not None:
                given = Vectors(own.questions[at], np.concatenate([own.messages, own.questions[at : at + 1]]))
            cases.append(_case(ask(one, question), given, question.evidence, []))
    return cases


def chat_cases(chats: Sequence[Chat]) -> list[Case]:
    """One case per chat, without vectors."""
    return [_case(chat.messages, None, frozenset(), answer_terms(chat)) for chat in chats if any(answer_terms(chat))]


def _case(
    messages: tuple[Message, ...], vectors: Vectors | None, wanted: frozenset[int], said: list[frozenset[str]]
) -> Case:
    asked, earlier = questions(messages)
    costs = {message.index: rough_cost(message) for message in messages}
    return Case(messages, costs, features(messages, asked, earlier, vectors), wanted, said)


def evidence_kept(
    cases: Sequence[Case], settings: HistorySettings, weights: Mapping[str, float], share: float
) -> float:
    """Share of questions whose evidence stays whole, all of it."""
    return float(np.mean([case.wanted <= case.selection(settings, weights, share) for case in cases]))


def terms_kept(cases: Sequence[Case], settings: HistorySettings, weights: Mapping[str, float], share: float) -> float:
    """Mean share of the answers' words from the history that are kept."""
    shares = []
    for case in cases:
        every = frozenset[str]().union(*case.said)
        stays = case.selection(settings, weights, share)
        kept = frozenset[str]().union(*(case.said[at] for at in stays if at < len(case.said)))
        shares.append(len(kept) / len(every))
    return float(np.mean(shares)) if shares else 0.0


def main() -> None:
    """Fit, print what the choice rests on, write the file."""
    parser = argparse.ArgumentParser(prog="python -m services.compressor.fit_history", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the layout of the evaluation data")
    parser.add_argument("--vectors", type=Path, help="vectors of the conversations, written by the bench")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    arguments = parser.parse_args()
    conversations = read_locomo(arguments.data)
    fitted, measured = split(conversations)
    chats = [chat for chat in read_chats(arguments.data, "sharegpt_multiturn_en") if is_fitted_on(chat.group)][:_CHATS]
    vectors = read_vectors(arguments.vectors, conversations) if arguments.vectors else None
    words = [name for name in FEATURES if name not in _VECTOR_FEATURES and name != "recency"]
    without = fit_weights(fitted, words, None)
    if vectors is not None:
        with_vectors = fit_weights(fitted, [*_VECTOR_FEATURES, *words], vectors)
    else:
        with_vectors = dict(load_weights(arguments.out)[0].with_vectors)

    def settings(recency: float, exponent: float) -> HistorySettings:
        weights = Weights(with_vectors | {"recency": recency}, without | {"recency": recency})
        return HistorySettings(weights, cost_exponent=exponent)

    cases, talk = question_cases(fitted, vectors), chat_cases(chats)
    tried = []
    for recency in _RECENCY:
        for exponent in _EXPONENTS:
            chosen = settings(recency, exponent)
            weights = chosen.weights.without_vectors if vectors is None else chosen.weights.with_vectors
            evidence = evidence_kept(cases, chosen, weights, 0.5)
            spoken = terms_kept(talk, chosen, chosen.weights.without_vectors, 0.5)
            print(f"recency {recency} exponent {exponent}: evidence {evidence:.3f}, words of answers {spoken:.3f}")
            tried.append((evidence, spoken, recency, exponent))
    best = max(evidence for evidence, *_ in tried)
    _, _, recency, exponent = max(
        (row for row in tried if row[0] >= best - _LOSS_ALLOWED), key=lambda row: (row[1], -row[2], -row[3])
    )
    final = settings(recency, exponent)
    weights = final.weights.without_vectors if vectors is None else final.weights.with_vectors
    unseen = question_cases(measured, vectors)
    for share in (0.25, 0.5, 0.75):
        figures = [evidence_kept(part, final, weights, share) for part in (cases, unseen)]
        print(f"evidence kept at {share:.0%}: fitted {figures[0]:.3f}, measured {figures[1]:.3f}")
    content = {
        "fitted_on": [hashlib.sha256(one.id.encode()).hexdigest()[:8] for one in fitted],
        "cost_exponent": exponent,
        "with_vectors": dict(final.weights.with_vectors),
        "without_vectors": dict(final.weights.without_vectors),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

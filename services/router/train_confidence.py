"""Fits the map from token margins to the probability of a good answer: ``python -m services.router.train_confidence``.

    python -m services.router.train_confidence --data DIR --models DIR --out services/router/weights/confidence.json

Asks the local engine (vLLM on SmolLM2-135M, in this process, greedy, short answers) the questions of
``DIR/compressor/nq_gold_passages.jsonl.gz``, each with its gold passage. An answer is right when a gold answer stands
in it, both normalised as usual for SQuAD. The map is fitted on seven of ten questions, by a hash of the question, and
measured on the rest; what it prints is of those. Same data, model, engine and row count: same file.

What this fit is worth. On the 303 held-out answers of the shipped fit (43% right) the AUC is 0.62 (95% interval 0.56 to
0.68) and the calibration error 0.10: accepting the surest sixth raises the share of right answers to 0.59, and no
threshold finds answers that are nearly all right. The three statistics do equally well. So the margins of a model this
small say little about when it is wrong; the text checks and the prices carry a cascade more than they do. And it is one
model on extractive questions in English: for another model, or another kind of question, the probabilities are wrong,
so models without a fit get the default map below. Fit again on answers of the model in question, checked by people or
a judge, before relying on a threshold.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
import string
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from services.router.confidence import STATISTICS, TOP_LOGPROBS, Certainty, ConfidenceMap, Token, certainty_of

QUESTIONS = "compressor/nq_gold_passages.jsonl.gz"
FOLDER, MODEL = "smollm2-135m-instruct", "smollm2-135m"
"""The model's folder, and its name in the catalogue."""
DEFAULT_MAP = ConfidenceMap("mean_margin", (0.3, 0.7, 0.9, 0.98, 1.0), (0.0, 0.3, 0.6, 0.8, 0.9))
"""For models without a fit. Set by hand: even an answer without any doubt is taken to be wrong one time in ten."""
_MAX_OUTPUT_TOKENS = 24
_MAX_PASSAGE_CHARS = 900
_BINS = 16
_WINDOW_TOKENS = 1024
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its passage and the answers that count."""

    text: str
    passage: str
    answers: tuple[str, ...]

    @property
    def held_out(self) -> bool:
        """True for three questions of ten."""
        return int(hashlib.sha256(self.text.encode()).hexdigest()[:8], 16) % 10 >= 7


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and doubled blanks (SQuAD's)."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def is_right(answer: str, golds: Sequence[str]) -> bool:
    """True when a gold answer stands in the answer, as whole words."""
    padded = f" {normalised(answer)} "
    return any(f" {normalised(gold)} " in padded for gold in golds if normalised(gold))


def fit(statistic: str, values: Numbers, right: Numbers) -> ConfidenceMap:
    """The isotonic map of values to the share of right answers: bins of equal count, Laplace's rule, then PAVA.

    Bins first, because an isotonic fit on single answers ends in blocks of one answer, which promise 0 and 1.
    """
    order = np.argsort(values, kind="stable")
    blocks: list[tuple[float, float, float]] = []
    for part in np.array_split(order, min(_BINS, max(1, len(order) // 10))):
        rate = (float(right[part].sum()) + 1.0) / (len(part) + 2.0)
        blocks.append((float(values[part].mean()), rate, float(len(part))))
        while len(blocks) > 1 and (blocks[-2][1] >= blocks[-1][1] or blocks[-2][0] >= blocks[-1][0]):
            (x1, y1, n1), (x2, y2, n2) = blocks.pop(-2), blocks.pop()
            total = n1 + n2
            blocks.append(((x1 * n1 + x2 * n2) / total, (y1 * n1 + y2 * n2) / total, total))
    return ConfidenceMap(
        statistic, tuple(round(block[0], 5) for block in blocks), tuple(round(block[1], 4) for block in blocks)
    )


def auc(scores: Numbers, right: Numbers) -> float:
    """Chance that a right answer scores above a wrong one; ties count half. NaN without both kinds."""
    good, bad = scores[right > 0.5], scores[right <= 0.5]
    if not (len(good) and len(bad)):
        return float("nan")
    wins = (good[:, None] > bad[None, :]).sum() + 0.5 * (good[:, None] == bad[None, :]).sum()
    return float(wins / (len(good) * len(bad)))


def calibration_error(confidence: Numbers, right: Numbers, bins: int = 10) -> float:
    """Expected calibration error over bins of equal count, 0..1."""
    parts = np.array_split(np.argsort(confidence, kind="stable"), bins)
    gaps = [abs(confidence[part].mean() - right[part].mean()) * len(part) for part in parts if len(part)]
    return float(sum(gaps) / len(right))


def read_questions(data: Path, count: int) -> list[Question]:
    """The first ``count`` questions, in the order of a hash, whose passage is not long."""
    found = []
    with gzip.open(data / QUESTIONS, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if len(row["gold_text"]) <= _MAX_PASSAGE_CHARS:
                found.append(Question(row["question"], row["gold_text"], tuple(row["answers"])))
    found.sort(key=lambda question: hashlib.sha256(f"order\0{question.text}".encode()).digest())
    return found[:count]


def ask(questions: Sequence[Question], folder: Path) -> list[tuple[str, list[Token]]]:
    """Answers with their tokens, from the engine in this process; all at once, the engine batches."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=str(folder),
        max_model_len=_WINDOW_TOKENS,
        max_num_seqs=16,
        enforce_eager=True,
        seed=0,
        kv_cache_memory_bytes=256 * 1024 * 1024,
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=_MAX_OUTPUT_TOKENS, logprobs=TOP_LOGPROBS)
    chats: list[Any] = [
        [
            {
                "role": "user",
                # Passages stand before the question as inference puts them there.
                "content": f"Context:\n[1] {question.passage}\n\nAnswer in a few words: {question.text}?",
            }
        ]
        for question in questions
    ]
    return [
        (output.outputs[0].text, _tokens(output.outputs[0])) for output in engine.chat(chats, sampling, use_tqdm=False)
    ]


def _tokens(part: Any) -> list[Token]:
    found = []
    for token_id, position in zip(part.token_ids, part.logprobs or (), strict=False):
        best = sorted(position.values(), key=lambda item: item.rank)[:TOP_LOGPROBS]
        found.append(
            Token(
                position[token_id].decoded_token or "",
                position[token_id].logprob,
                tuple((item.decoded_token or "", item.logprob) for item in best),
            )
        )
    return found


def report(name: str, chosen: ConfidenceMap, certainties: Sequence[Certainty], right: Numbers) -> None:
    """Print what a map does on held-out answers."""
    confidence = np.array([chosen.probability(certainty) for certainty in certainties])
    print(
        f"{name}: {len(right)} held-out answers, {right.mean():.3f} right, AUC {auc(confidence, right):.3f}, "
        f"calibration error {calibration_error(confidence, right):.3f}"
    )
    spread = float(confidence.var())
    if spread:
        mean = float(confidence.mean())
        print(f"  the confidences are as wide as a Beta of a + b = {mean * (1.0 - mean) / spread - 1.0:.1f}")
    for threshold in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7):
        kept = confidence >= threshold
        rate = f"{right[kept].mean():.3f} of them right" if kept.any() else "none"
        print(f"  confidence >= {threshold:.1f}: {kept.mean():.3f} accepted, {rate}")


def main() -> None:
    """Ask, fit, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="folder with compressor/nq_gold_passages.jsonl.gz")
    parser.add_argument("--models", type=Path, required=True, help=f"folder with {FOLDER}")
    parser.add_argument("--out", type=Path, required=True, help="weights file to write")
    parser.add_argument("--rows", type=int, default=1000, help="questions to ask at most")
    options = parser.parse_args()
    questions = read_questions(options.data, options.rows)
    started = time.monotonic()
    answers = ask(questions, options.models / FOLDER)
    print(f"{len(answers)} questions asked in {time.monotonic() - started:.0f} s, loading included")
    rows = [
        (question.held_out, certainty, float(is_right(text, question.answers)))
        for question, (text, tokens) in zip(questions, answers, strict=True)
        if (certainty := certainty_of(tokens)) is not None
    ]
    train = [(certainty, right) for held, certainty, right in rows if not held]
    tested = [certainty for held, certainty, _ in rows if held]
    test_right = np.array([right for held, _, right in rows if held])
    train_right = np.array([right for _, right in train])
    for statistic in STATISTICS:
        values = np.array([getattr(certainty, statistic) for certainty, _ in train])
        tested_values = np.array([getattr(certainty, statistic) for certainty in tested])
        print(
            f"{statistic}: AUC {auc(values, train_right):.3f} in training, "
            f"{auc(tested_values, test_right):.3f} held out"
        )
    # Chosen on the training questions alone.
    chosen = max(
        STATISTICS, key=lambda name: auc(np.array([getattr(certainty, name) for certainty, _ in train]), train_right)
    )
    fitted = fit(chosen, np.array([getattr(certainty, chosen) for certainty, _ in train]), train_right)
    report(f"fit on {chosen}", fitted, tested, test_right)
    report("default map", DEFAULT_MAP, tested, test_right)
    weights = {"maps": {MODEL: _entry(fitted)}, "default": _entry(DEFAULT_MAP)}
    options.out.write_text(json.dumps(weights, indent=1) + "\n", encoding="utf-8")


def _entry(one: ConfidenceMap) -> dict[str, Any]:
    return {"statistic": one.statistic, "values": list(one.values), "probabilities": list(one.probabilities)}


if __name__ == "__main__":
    main()

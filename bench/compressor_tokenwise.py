"""Words pruned by surprisal, beside sentences chosen by the question: ``tokenwise/<system>_at_<share>/<measure>``.

NQ questions with ten chunks each, as in ``nq_gold_passages``. ``tokenwise`` prunes each chunk once, without knowing the
question, by what SmolLM2-135M finds surprising (the service's own engine and code); ``random_words`` prunes the same
words in a random order, so what lies between the two is what the model's surprisal is worth. ``extractive_words`` and
``extractive`` (with vectors of the chunks) are the online strategy: they know the question, and are forced to save what
``tokenwise`` saved over the whole set. ``answer_kept``: a gold answer still stands in the gold chunk, normalised.

A share is what is asked for of each chunk; ``tokens_saved`` is what went, for much of a text may not be cut.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.cache_vectors import KeptEncoder
from bench.compressor_local import MODEL, SET, cases_for_engine
from bench.compressor_product import Product
from bench.compressor_vectors import embed
from bench.result import Result
from mesh.errors import TenthError
from services.compressor.datasets import Case, answered
from services.compressor.documents import Documents
from services.compressor.fit import vectors_of
from services.compressor.ranking import Level, Query
from services.compressor.retrieval import Prepared, mask, prepare, selection, threshold_for_share
from services.compressor.tokenwise import Surprisal, budget_of, prune
from services.inference.policy import Generation, Message, Meter, Sampling
from services.inference.vllm import VllmBackend
from services.inference.vllm_load import EngineOptions
from services.router.scores import mean, ratio, resamples

PART = "tokenwise"
SHARES = (0.20, 0.35, 0.50)
_ROWS, _QUICK_ROWS = 60, 6
_RESAMPLES = 1000
_WINDOW_TOKENS = 2048
_START_SECONDS, _LOOK_SECONDS = 180.0, 0.2

Kept = Mapping[int, str]
Scores = Mapping[str, Sequence[Surprisal]]
"""The tokens of every chunk's text."""


def measure(
    result: Result,
    data: Path,
    models_dir: Path,
    product: Product,
    encoder: KeptEncoder | None,
    seed: int,
    *,
    held_out: bool,
) -> None:
    """All of it, or the reason why not."""
    cases = cases_for_engine(result, PART, data, models_dir, seed, held_out=held_out)
    if cases is None:
        return
    wanted = min(len(cases), _QUICK_ROWS if result.quick else _ROWS)
    cases = random.Random(seed).sample(cases, wanted)  # noqa: S311  (a sample of rows)
    if not cases:
        result.skipped.append(f"{PART}: no rows")
        return
    try:
        scores = asyncio.run(_scores(models_dir / MODEL, sorted({text for case in cases for text in case.chunks})))
    except TenthError as error:
        result.skipped.append(f"{PART}: the engine does not run here: {error}")
        return
    bench = Measured(result, cases, product, seed)
    known = None if encoder is None else embed(encoder, f"compressor_{SET}", cases, sentences=False)
    prepared = {"extractive_words": bench.prepared(None)}
    if known is not None:
        prepared["extractive"] = bench.prepared(known)
    for share in SHARES:
        saved = bench.note(f"tokenwise_at_{share * 100:.0f}", bench.pruned(scores, share))
        bench.note(f"random_words_at_{share * 100:.0f}", bench.pruned(shuffled(scores, seed), share))
        for name, each in prepared.items():
            bench.note(f"{name}_at_{share * 100:.0f}", bench.extracted(each, saved))
    result.assumptions[PART] = (
        f"{wanted} rows, {len(scores)} chunks scored once each by {MODEL} without the question; extractive with it, "
        "forced to the saving that tokenwise had"
    )


class Measured:
    """The cases, and the measures of what each system leaves of them."""

    def __init__(self, result: Result, cases: Sequence[Case], product: Product, seed: int) -> None:
        self._result = result
        self._cases = cases
        self._count = product.counter.text
        self._fitted = product.fitted
        self._memory = Documents(self._count, 64 << 20)
        self._draws = resamples(len(cases), _RESAMPLES, seed)
        self._whole = np.array([sum(map(self._count, case.chunks)) for case in cases], float)

    def prepared(self, known: Mapping[bytes, np.ndarray] | None) -> list[Prepared]:
        """Every case ranked for its question, by words alone or with vectors."""
        found = []
        for case in self._cases:
            documents = self._memory.prepare(case.chunks)
            vectors = None if known is None else vectors_of(case, documents, known, Level.CHUNKS)
            found.append(prepare(documents, Query(case.question, case.earlier), vectors, self._fitted))
        return found

    def pruned(self, scores: Scores, share: float) -> list[Kept]:
        """Each chunk less this share of its tokens, or what may go of them."""
        left = {
            text: prune(text, tokens, budget_of(self._count(text), share), self._count).text
            for text, tokens in scores.items()
        }
        return [{at: left[text] for at, text in enumerate(case.chunks)} for case in self._cases]

    def extracted(self, prepared: Sequence[Prepared], share: float) -> list[Kept]:
        """Sentences chosen so that about this share of all tokens together goes."""
        threshold = threshold_for_share(prepared, share)
        found = [selection(each, mask(each, threshold), cut_records=True) for each in prepared]
        return [{chunk.place: chunk.text for chunk in each.chunks} for each in found]

    def note(self, system: str, kept: Sequence[Kept]) -> float:
        """Add the two measures of one system; returns the share of tokens that it saved."""
        left = np.array([sum(map(self._count, each.values())) for each in kept], float)
        right = np.array([answered(case, each) for case, each in zip(self._cases, kept, strict=True)], float)
        saved, answers = ratio(self._whole - left, self._whole, self._draws), mean(right, self._draws)
        self._result.add(f"{PART}/{system}/tokens_saved", saved.value, "ratio", len(kept), saved.ci95)
        self._result.add(f"{PART}/{system}/answer_kept", answers.value, "ratio", len(kept), answers.ci95)
        return saved.value


def shuffled(scores: Scores, seed: int) -> Scores:
    """Surprisals drawn anew, and unknown where they were."""
    draw = random.Random(seed)  # noqa: S311  (a control, not a secret)
    return {
        text: [Surprisal(each.start, each.end, None if each.nats is None else draw.random()) for each in tokens]
        for text, tokens in scores.items()
    }


async def _scores(folder: Path, texts: Sequence[str]) -> dict[str, list[Surprisal]]:
    """What the engine of the inference service tells of these texts. Raises TenthError when it does not run."""
    options = EngineOptions(folder, _WINDOW_TOKENS, threads=2, kv_cache_bytes=256 << 20, max_running=8)
    backend = VllmBackend(MODEL, "local", MODEL, options)
    backend.start()
    try:
        for _ in range(round(_START_SECONDS / _LOOK_SECONDS)):
            if not (backend.runs() and backend.unavailable_reason()):
                break
            await asyncio.sleep(_LOOK_SECONDS)
        found = {}
        for at, text in enumerate(texts):
            asked = Generation(
                f"bench-{at}",
                1,
                MODEL,
                (Message("user", (text,)),),
                sampling=Sampling(temperature=0.0, max_output_tokens=1),
                prompt_logprobs=True,
            )
            answer = await backend.generate(asked, Meter(0, len))
            found[text] = [
                Surprisal(token.start, token.end, None if token.logprob is None else -token.logprob)
                for token in answer.delta.prompt
            ]
        return found
    finally:
        await backend.close()

"""What the ``history`` strategy keeps of long conversations, beside the newest messages.

- ``locomo10_history/<system>_at_<10|25|50|75>/evidence_kept``: share of questions whose evidence turns all stay
  whole when that share of the history's tokens (cl100k, frames included, the question not counted) may. ``ours`` has
  vectors, ``ours_words`` none; ``last_n`` takes the newest messages while they fit. The question is LoCoMo's, as the
  last user message; turns are messages. ``locomo10_history_unseen``: the same on conversations that were not fitted on.
- ``<chat set>_history/<system>_at_<share>/answer_terms_kept``: of the words of the real next answer that stand in the
  history and not in the question, the share that stays, mean over chats. What an answer needs is not marked in these
  sets; its words are the nearest there is. ``tokens_saved`` is of the whole prompt.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.cache_vectors import KeptEncoder, batches
from bench.result import Result
from mesh.errors import TenthError
from services.cache.embedding import Encoder, load_encoder
from services.compressor.catalog import Model
from services.compressor.history import HistorySettings, select_history
from services.compressor.history import questions as asked_of
from services.compressor.history_relevance import Relevance, Vectors, relevance, text_to_embed
from services.compressor.history_sets import (
    CHATS,
    LOCOMO,
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
from services.compressor.tokens import TokenCounters

SHARES = (0.1, 0.25, 0.5, 0.75)
EMBEDDED_CHATS = frozenset({"mtrag_un_multiturn", "sharegpt_multiturn_ko"})
"""ShareGPT's English messages are too long and too many to embed in a bench: words alone choose there."""
QUICK_ROWS = 40
_RESAMPLES = 1000
_TOKENIZER = Model("bench", "cl100k_base", "bench", 0)

Cost = Callable[[Message], int]
Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class HistoryBench:
    """What a run measures with."""

    data: Path
    result: Result
    cost: Cost
    settings: HistorySettings
    fitted_on: frozenset[str]
    seed: int
    encoder: Encoder | None = None
    """None: only ``ours_words`` is measured."""
    held_out: bool = False
    """Only conversations that were not fitted on."""


def history_bench(
    data: Path, result: Result, models_dir: Path, seed: int, encoder: Encoder | None, *, held_out: bool = False
) -> HistoryBench:
    """A bench of the shipped weights."""
    weights, exponent = load_weights()
    fitted = frozenset(json.loads(SHIPPED.read_text("utf-8"))["fitted_on"])
    counters = TokenCounters(models_dir, 64 << 20)
    counters.load([_TOKENIZER])
    cost = counters.of(_TOKENIZER).message
    return HistoryBench(data, result, cost, HistorySettings(weights, exponent), fitted, seed, encoder, held_out)


def measure(bench: HistoryBench) -> None:
    """Add all figures to the result; what is absent is skipped."""
    parts: list[tuple[str, Callable[[], None]]] = [(LOCOMO, lambda: _locomo(bench))]
    parts += [(name, lambda name=name: _chats(bench, name)) for name in CHATS]  # type: ignore[misc]  # Inferred.
    for name, part in parts:
        if not (bench.data / "compressor" / f"{name}.jsonl.gz").is_file():
            bench.result.skipped.append(f"history, {name}: no file")
            continue
        try:
            part()
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            bench.result.skipped.append(f"history, {name}: cannot be read: {error or type(error).__name__}")
    bench.result.assumptions["history"] = (
        "cl100k tokens with message frames; roles kept apart by stubs, which count; "
        "LoCoMo's sessions are dated at their first turn; answer_terms_kept stands in for what an answer needs"
    )


def last_n(messages: Sequence[Message], budget_tokens: int, cost: Cost) -> list[int]:
    """Positions of the newest messages that fit; the last always stays."""
    kept, spent = [len(messages) - 1], cost(messages[-1])
    for at in range(len(messages) - 2, -1, -1):
        spent += cost(messages[at])
        if spent > budget_tokens:
            break
        kept.append(at)
    return kept[::-1]


def embedded(encoder: Encoder, texts: Sequence[str], what: str) -> Rows:
    """One row per text; each distinct text is embedded once."""
    known = {
        text: row for batch in batches(texts, what) for text, row in zip(batch, encoder.encode(batch), strict=True)
    }
    return np.stack([known[text] for text in texts])


def interval(values: Sequence[float], seed: int) -> tuple[float, float] | None:
    """95% bootstrap interval of the mean."""
    if len(values) < 2:
        return None
    given = np.asarray(values, float)
    generator = np.random.default_rng(seed)
    means = [given[generator.integers(0, len(given), len(given))].mean() for _ in range(_RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _locomo(bench: HistoryBench) -> None:
    conversations = read_locomo(bench.data)
    if bench.held_out:
        conversations = [one for one in conversations if _unseen(bench, one)]
    if bench.result.quick:
        conversations = conversations[:1]
    kept: dict[tuple[bool, str], list[float]] = {}
    seconds: list[float] = []
    for one in conversations:
        unseen = _unseen(bench, one)
        vectors = _vectors_of(bench, one)
        for system, share, flags in _conversation(bench, one, vectors, seconds):
            kept.setdefault((unseen, f"{system}_at_{share * 100:.0f}"), []).extend(flags)
    for name in sorted({name for _, name in kept}):
        every = [flag for (_, own), flags in kept.items() if own == name for flag in flags]
        _add(bench, f"{LOCOMO}/{name}/evidence_kept", every)
        if (True, name) in kept:
            _add(bench, f"{LOCOMO}_unseen/{name}/evidence_kept", kept[True, name])
    if seconds:
        milliseconds = [1000 * value for value in seconds]
        bench.result.add(f"{LOCOMO}/ours/p50_ms", statistics.median(milliseconds), "ms", len(milliseconds))


def _unseen(bench: HistoryBench, one: Conversation) -> bool:
    return hashlib.sha256(one.id.encode()).hexdigest()[:8] not in bench.fitted_on


def _conversation(
    bench: HistoryBench, one: Conversation, vectors: tuple[Rows, Rows] | None, seconds: list[float]
) -> list[tuple[str, float, list[float]]]:
    """For each system and share one flag per question."""
    history = sum(map(bench.cost, one.messages))
    questions = one.questions[:QUICK_ROWS] if bench.result.quick else one.questions
    flags: dict[tuple[str, float], list[float]] = {}
    for at, question in enumerate(questions):
        asked = ask(one, question)
        systems: dict[str, Relevance] = {}
        for system in ("ours_words", "ours")[: 1 if vectors is None else 2]:
            given = None
            if vectors is not None and system == "ours":
                given = Vectors(vectors[1][at], np.concatenate([vectors[0], vectors[1][at : at + 1]]))
            started = time.perf_counter()
            systems[system] = relevance(asked, *asked_of(asked), bench.settings.weights, given)
            spent = time.perf_counter() - started
        for share in SHARES:
            budget = int(share * history) + bench.cost(asked[-1])
            newest = set(last_n(asked, budget, bench.cost))
            flags.setdefault(("last_n", share), []).append(float(question.evidence <= newest))
            for system, found in systems.items():
                started = time.perf_counter()
                stays = _whole(bench, asked, budget, found)
                if system == "ours":
                    seconds.append(spent + time.perf_counter() - started)
                flags.setdefault((system, share), []).append(float(question.evidence <= stays))
    return [(system, share, values) for (system, share), values in flags.items()]


def _whole(bench: HistoryBench, messages: Sequence[Message], budget: int, found: Relevance) -> set[int]:
    """Positions that stay whole. Raises AssertionError when the budget is passed."""
    chosen = select_history(messages, budget, bench.cost, bench.settings, found=found)
    if sum(map(bench.cost, chosen.messages)) > budget:
        raise AssertionError(f"{chosen.token_count} tokens in a budget of {budget}")
    return set(chosen.positions) - set(chosen.stubbed) - set(chosen.shortened)


def _chats(bench: HistoryBench, name: str) -> None:
    """All chats but those whose group recency was chosen on, for the set where it was."""
    chats = read_chats(bench.data, name)
    if name == CHATS[0]:
        chats = [chat for chat in chats if not is_fitted_on(chat.group)]
    if bench.result.quick:
        chats = chats[:QUICK_ROWS]
    vectors = _chat_vectors(bench, chats, name) if name in EMBEDDED_CHATS else {}
    for share in SHARES:
        kept: dict[str, list[float]] = {}
        saved: dict[str, list[float]] = {}
        for chat in chats:
            said = answer_terms(chat)
            every = frozenset[str]().union(*said)
            if not every:
                continue
            history = sum(map(bench.cost, chat.messages[:-1]))
            budget = int(share * history) + bench.cost(chat.messages[-1])
            for system, positions, tokens in _systems(bench, chat, budget, vectors):
                stays = frozenset[str]().union(*(said[at] for at in positions if at < len(said)))
                kept.setdefault(system, []).append(len(stays) / len(every))
                saved.setdefault(system, []).append(1 - tokens / (history + bench.cost(chat.messages[-1])))
        for system, values in kept.items():
            label = f"{name}_history/{system}_at_{share * 100:.0f}"
            _add(bench, f"{label}/answer_terms_kept", values)
            _add(bench, f"{label}/tokens_saved", saved[system])


def _systems(
    bench: HistoryBench, chat: Chat, budget: int, vectors: Mapping[str, Vectors]
) -> list[tuple[str, Sequence[int], int]]:
    newest = last_n(chat.messages, budget, bench.cost)
    result: list[tuple[str, Sequence[int], int]] = [
        ("last_n", newest, sum(bench.cost(chat.messages[at]) for at in newest))
    ]
    for system, given in (("ours_words", None), ("ours", vectors.get(chat.id))):
        if system == "ours" and given is None:
            continue
        try:
            chosen = select_history(chat.messages, budget, bench.cost, bench.settings, given)
        except TenthError:
            # What must stay (the question and a stub) does not fit: the newest that does is all that can be sent.
            result.append((system, [len(chat.messages) - 1], bench.cost(chat.messages[-1])))
            continue
        stubs = set(chosen.stubbed)
        result.append((system, [at for at in chosen.positions if at not in stubs], chosen.token_count))
    return result


def _vectors_of(bench: HistoryBench, one: Conversation) -> tuple[Rows, Rows] | None:
    if bench.encoder is None:
        return None
    kept = bench.encoder if isinstance(bench.encoder, KeptEncoder) else None
    if kept is not None:
        kept.load(f"history-{one.id.replace('/', '-')}")
    messages = embedded(bench.encoder, [text_to_embed(message) for message in one.messages], one.id)
    questions = embedded(bench.encoder, [question.text for question in one.questions], one.id)
    if kept is not None:
        kept.save(f"history-{one.id.replace('/', '-')}")
    return messages, questions


def _chat_vectors(bench: HistoryBench, chats: Sequence[Chat], name: str) -> dict[str, Vectors]:
    if bench.encoder is None or not chats:
        return {}
    kept = bench.encoder if isinstance(bench.encoder, KeptEncoder) else None
    if kept is not None:
        kept.load(f"history-{name}")
    rows = embedded(bench.encoder, [text_to_embed(message) for chat in chats for message in chat.messages], name)
    if kept is not None:
        kept.save(f"history-{name}")
    result, at = {}, 0
    for chat in chats:
        own = rows[at : at + len(chat.messages)]
        at += len(chat.messages)
        result[chat.id] = Vectors(own[-1], own)
    return result


def _add(bench: HistoryBench, name: str, values: Sequence[float]) -> None:
    if values:
        bench.result.add(name, statistics.fmean(values), "ratio", len(values), interval(values, bench.seed))


def main() -> None:
    """``--vectors`` writes what ``fit_history`` needs; without it the figures are printed."""
    parser = argparse.ArgumentParser(prog="python -m bench.compressor_history", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=Path(".models"))
    parser.add_argument("--embedder", default="multilingual-e5-small")
    parser.add_argument("--vectors", type=Path, help="write the vectors of LoCoMo's conversations here, and stop")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    encoder = KeptEncoder(load_encoder(arguments.models, arguments.embedder), arguments.models / arguments.embedder)
    result = Result("compressor_history", arguments.quick)
    if arguments.vectors:
        rows: dict[str, Rows] = {}
        for one in read_locomo(arguments.data):
            rows[f"{one.id}/messages"] = embedded(encoder, [text_to_embed(message) for message in one.messages], one.id)
            rows[f"{one.id}/questions"] = embedded(encoder, [question.text for question in one.questions], one.id)
        # By file: numpy would add a suffix to a name.
        with arguments.vectors.open("wb") as file:
            np.savez(file, allow_pickle=False, **rows)
        return
    measure(history_bench(arguments.data, result, arguments.models, arguments.seed, encoder))
    result.write(arguments.json)


if __name__ == "__main__":
    main()

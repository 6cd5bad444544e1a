"""The compressor's whole path, as its service runs it, on plain prompts: what the benchmark calls ``ours``.

No context window and no price: every cut that a mode wants is taken. What prices change is measured as ``net_dollars``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from services.compressor.catalog import Model
from services.compressor.choosing import FittedChunks, fitted_chunks
from services.compressor.documents import Documents
from services.compressor.fit import Known, digest
from services.compressor.history_weights import history_settings
from services.compressor.modes import Mode, Plan, plans
from services.compressor.policy import Compressed, compress
from services.compressor.prompt import SYSTEM, USER, Message, Prompt
from services.compressor.retrieval import Fitted
from services.compressor.settings import CompressorSettings
from services.compressor.tokens import TokenCounters
from services.compressor.vectors import rough_tokens
from services.compressor.work import Counter

TOKENIZER = Model("bench", "cl100k_base", "bench", 0)
MODES = (Mode.SAFE, Mode.BALANCED, Mode.AGGRESSIVE)
_COUNTS_BYTES, _DOCUMENTS_BYTES = 64 << 20, 256 << 20
_MOST_COUNTED_CHARS = 100_000
"""As in ``services/compressor/vectors.py``: chunks of longer prompts are prepared with rough counts."""


class Product:
    """The compressor with its shipped weights and settings; tokens are counted by cl100k_base."""

    def __init__(self, counter: Counter, modes: Mapping[Mode, Plan], fitted: Fitted) -> None:
        """Prepared chunks are remembered, as in the service."""
        self.counter = counter
        self.modes = modes
        self.fitted = fitted
        self._memory = Documents(counter.text, _DOCUMENTS_BYTES)
        self._rough = Documents(rough_tokens, _DOCUMENTS_BYTES)

    def fresh(self) -> Product:
        """The same with nothing remembered but counts."""
        return Product(self.counter, self.modes, self.fitted)

    def chunks(
        self, mode: Mode, question: str, earlier: Sequence[str], chunks: Sequence[str], known: Known | None = None
    ) -> dict[int, str]:
        """What is left of each chunk, by its place. ``earlier`` are the user's turns before, newest first."""
        talk = [*reversed(earlier), question]
        prompt = Prompt(tuple(Message(at, USER, (text,)) for at, text in enumerate(talk)), tuple(chunks))
        done = self.prompt(mode, prompt, known)
        return dict(zip(done.chunk_positions, done.prompt.chunks, strict=True))

    def system(self, mode: Mode, text: str) -> str:
        """What a system message becomes; empty when it goes."""
        prompt = Prompt((Message(0, SYSTEM, (text,)), Message(1, USER, ("?",))))
        first = self.prompt(mode, prompt).prompt.messages[0]
        return "\n".join(first.texts) if first.role == SYSTEM else ""

    def prompt(self, mode: Mode, prompt: Prompt, known: Known | None = None) -> Compressed:
        """The shortened prompt; ``known`` are vectors by digest of text: of questions and chunks, or none."""
        question, earlier, rows = None, None, []
        if known is not None and prompt.chunks:
            asked = [message.texts[0] for message in prompt.messages if message.role == USER]
            question = known[digest(asked[-1])].tolist()
            earlier = known[digest(asked[-2])].tolist() if len(asked) > 1 else None
            rows = [known[digest(text)].tolist() for text in prompt.chunks]
        chooser = self.chooser(prompt, question, rows, earlier)
        return compress(prompt, self.modes[mode], self.counter, chooser, 0, None)

    def chooser(
        self,
        prompt: Prompt,
        question: Sequence[float] | None = None,
        rows: Sequence[Sequence[float]] = (),
        earlier: Sequence[float] | None = None,
    ) -> FittedChunks:
        """Chooses the prompt's chunks; the vectors are the question's, the chunks' and the question's before."""
        long = sum(map(len, prompt.chunks)) > _MOST_COUNTED_CHARS
        memory = self._rough if long else self._memory
        return fitted_chunks(prompt.messages, prompt.chunks, memory, self.fitted, question, rows, earlier)


def product(models_dir: Path, fitted: Fitted) -> Product:
    """The compressor as shipped. Raises MissingVocabularyError without cl100k_base."""
    counters = TokenCounters(models_dir, _COUNTS_BYTES)
    counters.load([TOKENIZER])
    return Product(counters.of(TOKENIZER), shipped_plans(), fitted)


def shipped_plans() -> dict[Mode, Plan]:
    """The plans of the service's default settings."""
    settings = CompressorSettings()
    return plans(settings.balanced_history_tokens, settings.aggressive_history_tokens, history_settings())

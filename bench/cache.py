"""How often the semantic cache answers, and how often wrongly, beside the article's default.

- **streams** (banking77, clinc150, parakqc_ko, chatbot_ko): a seeded half of the rows is stored, the other half asks;
- **pairs** (qqp_pairs, gptcache_mock, korsts_ko, klue_sts_ko, question_pair_ko): one text stored, the other asked;
- **inference** (kornli_xnli_ko, klue_nli_ko): the premise stored, the hypothesis asked, which must not be served;
- **adversarial**: this project's own traps (bench/adversarial), English and Korean;
- **lookup**: what a lookup costs by the number of entries (``cache_lookup``).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # It ships no types.

from bench import cache_plots
from bench.cache_counts import add_adversarial, add_frontier, add_inference, add_pairs, add_stream, frontier
from bench.cache_sets import (
    INFERENCE,
    KORSTS_SAME,
    PAIRS,
    STREAMS,
    Choice,
    Pair,
    halves,
    present,
    read_adversarial,
    read_pairs,
    read_stream,
)
from bench.cache_systems import ARTICLE_COSINE, ARTICLE_MODEL, Article, Ours, System
from bench.cache_vectors import BATCH, KeptEncoder
from bench.result import Result, arguments
from mesh.errors import TenthError
from services.cache.embedding import Embedder, load_encoder
from services.cache.namespaces import Mode
from services.cache.onnx import OnnxEncoder
from services.cache.settings import CacheSettings
from services.cache.verifier import WEIGHTS, load_verifier

PARTS = (*STREAMS, *PAIRS, *INFERENCE, "adversarial", "lookup")


def main() -> int:
    """Run the benchmark; exit code 1 when it could not measure."""
    parser = arguments("cache", (__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure only these parts")
    parser.add_argument("--held-out", action="store_true", help="only rows of groups that training never saw")
    parser.add_argument("--models-dir", type=Path, default=Path(".models"))
    options = parser.parse_args()
    result = Result("cache", options.quick)
    choice = Choice(options.quick, options.held_out, options.seed)
    settings = CacheSettings(models_dir=options.models_dir)
    result.assumptions |= {
        "rows": "held out of training" if options.held_out else "all of the data given",
        "seed": options.seed,
        "embedder": settings.embedder,
        "article": f"{ARTICLE_MODEL} (fp32), cosine >= {ARTICLE_COSINE:g}, nearest served",
        "korsts_same": f"score >= {KORSTS_SAME:g}",
    }
    result.skipped += [f"{part}: not asked for" for part in PARTS if part not in options.only]
    with threadpool_limits(1):
        if set(options.only) != {"lookup"}:
            asyncio.run(measure(result, options.data, choice, options.only, settings, options.plots))
        if "lookup" in options.only:
            _lookup(result, options.seed)
    result.write(options.json)
    return 0 if result.metrics else 1


async def measure(
    result: Result, data: Path | None, choice: Choice, only: Sequence[str], settings: CacheSettings,
    plots: Path | None,
) -> None:  # fmt: skip
    """All parts but the lookup."""
    async with AsyncExitStack() as stack:
        systems = _systems(result, settings, stack)
        if not systems:
            return
        for name in (*STREAMS, *PAIRS, *INFERENCE):
            if name not in only:
                continue
            if data is None or not present(data, name):
                result.skipped.append(f"{name}: no cache/{name}.jsonl.gz in the evaluation data")
            elif name in STREAMS:
                await _stream(result, systems, name, data, choice, plots)
            else:
                await _pairs(result, systems, name, read_pairs(data, name, choice))
        if "adversarial" in only:
            traps = read_adversarial()
            if not traps:
                result.skipped.append("adversarial: no tables")
            for language, pairs in traps.items():
                await _pairs(result, systems, f"adversarial_{language}", pairs)


def _systems(result: Result, settings: CacheSettings, stack: AsyncExitStack) -> list[System]:
    systems: list[System] = []
    article = settings.models_dir / ARTICLE_MODEL
    if (article / "onnx" / "model.onnx").is_file():
        systems.append(Article(KeptEncoder(OnnxEncoder(article), article)))
    else:
        result.skipped.append(f"article: no {ARTICLE_MODEL} in the models folder; `make models` builds it")
    try:
        loaded = load_encoder(settings.models_dir, settings.embedder, settings.embedder_precision)
    except TenthError as error:
        result.skipped.append(f"ours: {error}")
        return systems
    encoder = KeptEncoder(loaded, settings.models_dir / settings.embedder)
    # A memory for all texts: lookups then measure the decision, not the embedding.
    embedder = Embedder(encoder, settings.embedder, batch_count=BATCH, memory_count=200_000)
    stack.push_async_callback(embedder.close)
    if load_verifier(WEIGHTS, embedder.version) is None:
        result.skipped.append(f"ours: no weights for {embedder.version}: exact hits only")
    return [*systems, *(Ours(mode, embedder, encoder) for mode in (Mode.STRICT, Mode.FAQ))]


async def _stream(
    result: Result, systems: list[System], name: str, data: Path, choice: Choice, plots: Path | None
) -> None:
    warm, asked = halves(read_stream(data, name, choice), choice.seed)
    if not warm or not asked:
        result.skipped.append(f"{name}: too few rows")
        return
    lines: dict[str, cache_plots.Line] = {}
    for system in systems:
        await system.prepare(name, [row.text for row in (*warm, *asked)])
        done = await system.stream(warm, asked)
        add_stream(result, f"{name}/{system.name}", done)
        points = frontier(done)
        add_frontier(result, f"{name}/{system.name}", points, len(done))
        served, wrong = (sum(each.served for each in done), sum(each.wrong for each in done))
        lines[system.name] = cache_plots.Line(points, (served / len(done), wrong / len(done)))
    if plots is not None:
        said = cache_plots.draw(plots / f"cache_{name}.png", name, lines)
        if said:
            result.skipped.append(f"{name}, plot: {said}")


async def _pairs(result: Result, systems: list[System], name: str, pairs: list[Pair]) -> None:
    add = add_inference if name in INFERENCE else add_pairs if name in PAIRS else add_adversarial
    for system in systems:
        await system.prepare(name, [text for pair in pairs for text in (pair.stored, pair.asked)])
        add(result, f"{name}/{system.name}", await system.pairs(pairs))


def _lookup(result: Result, seed: int) -> None:
    if find_spec("bench.cache_lookup") is None:
        result.skipped.append("lookup: bench.cache_lookup is not there")
    else:
        import_module("bench.cache_lookup").measure(result, result.quick, seed)


if __name__ == "__main__":
    sys.exit(main())

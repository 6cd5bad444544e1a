"""How well the router tells which questions need the strong model, beside what costs nothing to know.

- **sets** (every file of the data's ``router/`` folder): APGR and CPT of the trained heads, in domain and on sets that
  they never saw, beside random, length, the task's mean and the nearest questions;
- sets with recorded costs: the heads' picks among all models beside the best single model;
- **quality_target**: whether the promised share of the strongest model's quality is kept;
- **decision**: what one decision costs, the question's vector given.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # It ships no types.

from bench import router_decision, router_plots, router_systems, router_target
from bench.cache_vectors import KeptEncoder
from bench.pictures import draw
from bench.result import Result, arguments
from bench.router_baselines import FOLDS, NEIGHBOURS
from bench.router_costs import Costs, measure
from bench.router_heads import Loaded, load
from bench.router_pricing import COST_TO_KEEP, QUALITY_TO_KEEP
from bench.router_sets import Choice, MeasuredSet, Memory, embed, read
from mesh.errors import TenthError
from services.cache.embedding import Embedder, load_encoder
from services.cache.settings import CacheSettings
from services.router import datasets
from services.router.catalog import Catalog, parse_catalog
from services.router.datasets import Row
from services.router.decide import Knowledge
from services.router.heads import Heads
from services.router.scores import curve, resamples
from services.router.settings import RouterSettings

KNOWN = (*datasets.PAIRS, "routerarena_2models")
"""Sets whose absence is worth saying."""
PARTS = ("decision", "quality_target")
_RESAMPLES, _QUICK_RESAMPLES = 1000, 100


@dataclass(slots=True)
class Bench:
    """One run: what it measures with, and what it found."""

    result: Result
    choice: Choice
    loaded: Loaded
    encoder: Memory | None
    settings: RouterSettings
    plots: Path | None = None
    catalog: Catalog | None = None
    knowledge: Knowledge | None = None
    kept: list[router_target.Kept] = field(default_factory=list)

    @property
    def draw_count(self) -> int:
        """Bootstrap samples."""
        return _QUICK_RESAMPLES if self.choice.quick else _RESAMPLES

    def set(self, name: str, rows: Sequence[Row]) -> None:
        """Measure one set. Raises ValueError when there is nothing to measure in it."""
        measured = MeasuredSet(name, rows, self.choice, self.encoder)
        heads = self.loaded.by_system(name)
        if heads and "ours_in_domain" not in heads:
            self.skip(f"{name}/ours_in_domain: the heads were not trained on this set; they are its transfer heads")
        if heads and "ours_transfer" not in heads:
            self.skip(f"{name}/ours_transfer: there are no heads without this set")
        draws = resamples(len(measured.measured), self.draw_count, self.choice.seed)
        held_out = self.choice.held_out
        scores = router_systems.scores(measured, heads, self.choice.seed, self.skip, held_out=held_out)
        router_systems.add(self.result, measured, scores, draws)
        self.result.assumptions[f"{name}_pair"] = f"weak {measured.weak}, strong {measured.strong}"
        gain = measured.gain[measured.measured]
        if self.plots is not None:
            curves = {system: curve(score, gain) for system, score in {"oracle": gain, **scores}.items()}
            weak = float(measured.weak_quality.mean())
            picture = router_plots.call_shares(name, measured.weak, measured.strong, weak, curves)
            self._draw(f"router_{name}.png", picture)
        self._costs(measured, heads)
        self._target(measured)

    def target(self) -> None:
        """The quality target over the sets that were measured."""
        if self.knowledge is None or self.catalog is None:
            self.skip("quality_target: no heads, or no catalogue")
            return
        router_target.add(self.result, self.kept, self.knowledge, self.catalog, self.draw_count, self.choice.seed)

    def decision(self, texts: Sequence[str]) -> None:
        """The time of a decision on questions drawn from these."""
        count = 200 if self.choice.quick else router_decision.QUESTIONS
        questions = router_decision.sample(texts, count, self.choice.seed)
        if not questions or self.catalog is None:
            self.skip("decision: no questions in the evaluation data, or no catalogue")
            return
        vectors, knowledge = np.zeros((len(questions), 1), np.float32), self.knowledge
        if knowledge is not None and self.encoder is not None:
            vectors = embed(self.encoder, "router_decision", questions)
        else:
            knowledge = None
            self.skip("decision/ours: no heads, or no embedder for their vectors")
        router_decision.measure(self.result, questions, vectors, knowledge, self.catalog)

    def skip(self, why: str) -> None:
        """Note what was not measured."""
        self.result.skipped.append(why)

    def _costs(self, measured: MeasuredSet, heads: Mapping[str, Heads]) -> None:
        if not any(row.cost_usd for row in measured.rows):
            return
        name = measured.name
        try:
            costs = Costs(measured)
        except ValueError as error:
            self.skip(f"{name}, costs: {error}")
            return
        draws = resamples(len(costs.measured), self.draw_count, self.choice.seed)
        frontier = measure(self.result, costs, heads, draws, self.choice.seed)
        if self.plots is not None and frontier.by_system:
            self._draw(f"router_{name}_costs.png", router_plots.costs(name, costs.models[costs.best], frontier))

    def _target(self, measured: MeasuredSet) -> None:
        if self.knowledge is None or self.catalog is None:
            return
        try:
            for target in router_target.TARGETS:
                self.kept.append(router_target.keep(measured, self.knowledge, self.catalog, target))
        except ValueError as error:
            self.skip(f"quality_target/{measured.name}: {error}")

    def _draw(self, file_name: str, picture: dict[str, object]) -> None:
        said = draw(self.plots / file_name, picture) if self.plots is not None else ""
        if said:
            self.skip(f"{file_name}: {said}")


def main() -> int:
    """Run the benchmark; exit code 1 when it could not measure."""
    parser = arguments("router", (__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="SET", help=f"only these sets, or parts ({', '.join(PARTS)})")
    parser.add_argument("--held-out", action="store_true", help="only questions that training never saw")
    parser.add_argument("--models-dir", type=Path, default=Path(".models"))
    options = parser.parse_args()
    result = Result("router", options.quick)
    choice = Choice(options.quick, options.held_out, options.seed)
    bench = Bench(result, choice, load(held_out=options.held_out), None, RouterSettings(), options.plots)
    _assume(result, choice, bench.loaded)
    if options.data is None:
        bench.skip("everything: no --data")
    else:
        with threadpool_limits(1):
            _prepare(bench, options.models_dir)
            run(bench, options.data, options.only)
    result.write(options.json)
    return 0 if result.metrics else 1


def run(bench: Bench, data: Path, only: Sequence[str] | None) -> None:
    """Measure every set of the data, or those asked for, then the other parts."""
    there = datasets.set_names(data)
    names = [name for name in only if name not in PARTS] if only else [*there, *KNOWN]
    texts: list[str] = []
    for name in dict.fromkeys(names):
        if name not in there:
            bench.skip(f"{name}: no router/{name}{datasets.SUFFIX} in the evaluation data")
            continue
        try:
            bench.set(name, read(data, name))
        except ValueError as error:
            bench.skip(f"{name}: {error}")
    if only:
        bench.result.skipped += [f"{part}: not asked for" for part in (*there, *PARTS) if part not in only]
    if not only or "quality_target" in only:
        bench.target()
    if not only or "decision" in only:
        for name in there:
            try:
                texts += [row.text for row in read(data, name)]
            except ValueError:
                continue  # Said above, where the set was to be measured.
        bench.decision(texts)


def _prepare(bench: Bench, models_dir: Path) -> None:
    """The catalogue, and the embedder, if its vectors are those of the heads."""
    file = bench.settings.catalog_file
    try:
        bench.catalog = parse_catalog(file.read_text("utf-8"), file.name, datetime.now(UTC))
    except (OSError, ValueError) as error:
        bench.skip(f"quality_target, decision: no catalogue: {error}")
    heads = bench.loaded.heads
    if heads is None:
        bench.skip("ours: no trained heads")
    settings = CacheSettings(models_dir=models_dir)
    try:
        loaded = load_encoder(models_dir, settings.embedder, settings.embedder_precision)
    except TenthError as error:
        bench.skip(f"ours and knn: {error}")
        return
    bench.encoder = KeptEncoder(loaded, models_dir / settings.embedder)
    embedder = Embedder(loaded, settings.embedder)
    asyncio.run(embedder.close())
    bench.result.assumptions["embedder"] = embedder.version
    if heads is not None and heads.embedder_version != embedder.version:
        bench.skip(
            f"ours: the heads were trained on vectors of {heads.embedder_version}, the embedder is {embedder.version}"
        )
        bench.loaded = Loaded(None)
    elif heads is not None:
        bench.knowledge = router_target.knowledge_of(heads, bench.settings)


def _assume(result: Result, choice: Choice, loaded: Loaded) -> None:
    result.assumptions |= {
        "rows": "held out of training"
        if choice.held_out
        else "all of the data given, those of the sets of training among them: the heads saw those",
        "heads": f"{loaded.file}, version {loaded.heads.version}" if loaded.heads is not None else "none",
        "seed": choice.seed,
        "intervals": "bootstrap by row; learned scores are not learned again",
        "random": "the mean over all orders",
        "task_prior, knn": f"learned from the measured rows themselves in {FOLDS} folds, copies of a question in one; "
        f"knn by the {NEIGHBOURS} nearest; *_in_domain: from the rows that are not held out",
        "best_single": "the best mean quality on the rows that are not held out, on all where there are none",
        "costs": "expected by model from the question's length, a line through the rows that are not held out. The "
        "price of quality is set on those rows, all where there are none, by heads of other folds. score_ratio: the "
        f"last price before {QUALITY_TO_KEEP:g} of best_single's quality is not kept with 95% confidence; _on_average: "
        f"the cheapest that keeps it on average; _at_{100 * COST_TO_KEEP:.0f}: the lowest price at "
        f"{COST_TO_KEEP:g} of its cost",
        "quality_target": "the router's own decisions with the heads above; recorded quality of the class that the "
        "chosen model stands for, expected cost by the shipped catalogue; models whose class was not recorded on a row "
        "are excluded there; the strongest is the strongest recorded class",
        "transfer": "heads trained on all other sets and on no row that overlaps; what they say is not calibrated, the "
        "order counts",
    }


if __name__ == "__main__":
    sys.exit(main())

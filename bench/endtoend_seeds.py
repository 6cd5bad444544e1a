"""The mixes of ``bench.endtoend`` drawn anew with several seeds: do their figures differ by less than their intervals?

``python -m bench.endtoend_seeds [--data DIR] [--seeds 7,8,9] [--requests N] [--json F]``. A seed draws the rows, their
order, the repeats and the arrivals; each seed has a mesh of its own that begins cold. Only the mixes and their
baselines are asked, without ablation, frontier, timing and peer.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import endtoend
from bench.endtoend_workload import MIXES
from bench.result import Metrics, Result, arguments

MEASURES = ("cost_ratio", "quality_ratio")
"""Those with an interval, which is what a difference is set beside."""
ZEROS = ("failed", "identity_violations")


def main() -> int:
    """Run the benchmark; exit code 1 when it could not measure."""
    parser = arguments("endtoend_seeds", __doc__ or "")
    parser.add_argument("--requests", type=int, default=600, help="requests of each mix (default %(default)s)")
    parser.add_argument("--seeds", default="7,8,9", help="by comma (default %(default)s); --seed is not used")
    parser.add_argument("--mix", default=",".join(MIXES), help="which mixes, by comma (default: all)")
    parser.add_argument("--models-dir", type=Path, default=Path(".models"))
    options = parser.parse_args()
    result = Result("endtoend_seeds", options.quick)
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
        if len(set(seeds)) < 2:
            raise ValueError("--seeds: give two different ones or more")
        found = {seed: asyncio.run(measured(seed, options)) for seed in seeds}
    except (ValueError, OSError) as error:
        print(f"could not measure: {error}", file=sys.stderr)
        return 1
    combine(result, {seed: each.metrics for seed, each in found.items()})
    last = found[seeds[-1]]
    result.assumptions |= {"seeds": seeds, "requests": options.requests, "prices": last.assumptions["prices"]}
    result.skipped += last.skipped
    result.write(options.json)
    return 0


async def measured(seed: int, options: argparse.Namespace) -> Result:
    """The mixes with one seed."""
    endtoend.say(f"seed {seed}")
    result = Result("endtoend", options.quick)
    only = argparse.Namespace(**vars(options) | {"seed": seed, "only_mixes": True, "outcomes": None, "plots": None})
    await endtoend.measure(result, only)
    return result


def combine(result: Result, by_seed: Mapping[int, Metrics]) -> None:
    """Each seed's figures, how far they lie apart, and how wide their intervals are on average. Pure.

    Named ``MIX/seed_SEED/MEASURE``, ``MIX/spread/MEASURE`` and ``MIX/mean_interval/MEASURE``. The mean, because a seed
    in which nothing was answered wrongly has an interval of no width at all.
    """
    mixes = dict.fromkeys(name.split("/")[0] for name in next(iter(by_seed.values())) if name.endswith("ours/failed"))
    for mix in mixes:
        for measure in (*MEASURES, "quality_covered", *ZEROS):
            mine: dict[int, dict[str, Any]] = {
                seed: metrics[name] for seed, metrics in by_seed.items() if (name := f"{mix}/ours/{measure}") in metrics
            }
            for seed, metric in mine.items():
                result.metrics[f"{mix}/seed_{seed}/{measure}"] = metric
            if measure in MEASURES and len(mine) == len(by_seed):
                values = [float(metric["value"]) for metric in mine.values()]
                widths = [_width(metric["ci95"]) for metric in mine.values()]
                result.add(f"{mix}/spread/{measure}", max(values) - min(values), "ratio", len(values))
                result.add(f"{mix}/mean_interval/{measure}", sum(widths) / len(widths), "ratio", len(values))


def _width(interval: Sequence[float] | None) -> float:
    return interval[1] - interval[0] if interval else 0.0


if __name__ == "__main__":
    sys.exit(main())

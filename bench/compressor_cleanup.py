"""What cleaning a system message saves: ``<set>/ours_safe/tokens_saved`` and ``changed``, the share of prompts touched.

Each prompt is the system message of a request by itself. ``protected_kept`` is the share of prompts whose hard spans
(code, JSON, tables, URLs, quotations, identifiers) all come out byte for byte and in order.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from bench.compressor_product import Product
from bench.result import Result
from services.compressor.modes import Mode
from services.compressor.protected import hard_ranges
from services.router.scores import mean, ratio, resamples

AWESOME = "awesome_prompts"
OWN = Path(__file__).parent / "prompts" / "system.yaml"
_RESAMPLES = 1000
_QUICK_ROWS = 40


def measure(result: Result, data: Path | None, product: Product, seed: int) -> None:
    """The public prompts, where they are there, and this project's own."""
    own: dict[str, list[str]] = yaml.safe_load(OWN.read_text("utf-8"))
    sets = {f"own_prompts_{language}": prompts for language, prompts in own.items()}
    file = None if data is None else data / "compressor" / f"{AWESOME}.jsonl.gz"
    if file is None or not file.is_file():
        result.skipped.append(f"cleanup, {AWESOME}: no file")
    else:
        try:
            with gzip.open(file, "rt", encoding="utf-8") as lines:
                texts = [str(json.loads(line)["prompt"]) for line in lines]
            sets = {AWESOME: texts[:_QUICK_ROWS] if result.quick else texts, **sets}
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            result.skipped.append(f"cleanup, {AWESOME}: cannot be read: {error or type(error).__name__}")
    for name, prompts in sets.items():
        if prompts:
            _measure_set(result, name, prompts, product, seed)


def _measure_set(result: Result, name: str, prompts: Sequence[str], product: Product, seed: int) -> None:
    draws = resamples(len(prompts), _RESAMPLES, seed)
    cleaned = [product.system(Mode.SAFE, prompt) for prompt in prompts]
    before = np.array([product.counter.text(prompt) for prompt in prompts], float)
    after = np.array([product.counter.text(prompt) for prompt in cleaned], float)
    pairs = list(zip(prompts, cleaned, strict=True))
    figures = {
        "tokens_saved": ratio(before - after, before, draws),
        "changed": mean(np.array([old != new for old, new in pairs], float), draws),
        "protected_kept": mean(np.array([protected_kept(old, new) for old, new in pairs], float), draws),
    }
    for measure_name, found in figures.items():
        result.add(f"{name}/ours_safe/{measure_name}", found.value, "ratio", len(prompts), found.ci95)


def protected_kept(before: str, after: str) -> bool:
    """True when each hard span of one text stands in the other, one after the other."""
    at = 0
    for start, end in hard_ranges(before):
        found = after.find(before[start:end], at)
        if found < 0:
            return False
        at = found + end - start
    return True

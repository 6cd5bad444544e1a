"""A verifier whose probability follows the cosine alone: .5 at .95, steep. For tests of what stands around it."""

from __future__ import annotations

from services.cache.features import NEIGHBOURHOOD, PAIR
from services.cache.verifier import Model, RiskPoint, Verifier


def model(names: tuple[str, ...], curve: tuple[RiskPoint, ...]) -> Model:
    """A model of these features in which only the similarity weighs."""
    weights = tuple(400.0 if name == "similarity" else 0.0 for name in names)
    means = tuple(0.95 if name == "similarity" else 0.0 for name in names)
    return Model(names, means, tuple(1.0 for _ in names), weights, 0.0, curve)


CURVE = (RiskPoint(0.2, 10.0, 0.9), RiskPoint(0.5, 2.0, 0.6), RiskPoint(0.99, 0.4, 0.2))
VERIFIER = Verifier(
    "words@1",
    {
        f"{mode}/{language}/{evidence}": model(names, CURVE)
        for mode in ("strict", "faq")
        for language in ("en", "ko")
        for evidence, names in (("pair", PAIR), ("neighbours", NEIGHBOURHOOD))
    },
    {f"{mode}/{language}": 0.3 for mode in ("strict", "faq") for language in ("en", "ko")},
)

"""Folders that are made from another folder of `recipes.py` instead of from a wheel."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from models.recipes import RECIPES, check_smollm2


@dataclass(frozen=True, slots=True)
class Derived:
    """How one folder is made from another: ``make`` and ``check`` get the source's folder first, then the new one;
    ``check`` returns one line of evidence, or raises. A change of ``make`` must raise ``revision``."""

    name: str
    folder: str
    source: str
    make: Callable[[Path, Path], None]
    check: Callable[[Path, Path], str]
    revision: int = 1

    @property
    def stamp(self) -> dict[str, object]:
        """What the finished folder says about itself: made anew when its source's recipe changes too."""
        made_from = RECIPES[self.source]
        return {"source_folder": made_from.folder, "source_stamp": made_from.stamp, "revision": self.revision}


_LEAST_AGREEMENT, _MOST_RATIO = 0.87, 1.07
"""Between the int8 folder and its source, on the shipped text."""


def _make_int8(source: Path, target: Path) -> None:
    from models.round_to_nearest import quantize

    with _quiet():
        quantize(source, target, "int8")


def _check_int8(source: Path, target: Path) -> str:
    from models import evaluation
    from models.transformers_reading import evaluate
    from services.inference.model_folder import stored_types

    rounded = sum(kind == "I8" for kind in stored_types(target).values())
    if rounded != 7 * 30:
        raise ValueError(f"{rounded} of 210 linear layers are stored in 8 bits")
    with _quiet():
        result = evaluate(target, source)
        said = check_smollm2(target)
    ratio, agreement = result["perplexity_ratio"], result["agreement"]
    if not (ratio <= _MOST_RATIO and agreement >= _LEAST_AGREEMENT):
        raise ValueError(f"perplexity is {ratio} times the source's, agreement {agreement}: the rounding went wrong")
    evaluation.write(target, result)
    return (
        f"{result['weight_bytes'] / 1e6:.0f} of {result['reference_weight_bytes'] / 1e6:.0f} MB, "
        f"perplexity x {ratio:.3f}, same likeliest token {agreement:.1%}; {said}"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # transformers and compressed-tensors draw progress bars of their own.
    with contextlib.redirect_stderr(io.StringIO()):
        yield


DERIVED: dict[str, Derived] = {
    recipe.name: recipe
    for recipe in (
        Derived(
            name="smollm2-int8",
            folder="smollm2-135m-instruct-int8",
            source="smollm2",
            make=_make_int8,
            check=_check_int8,
        ),
    )
}

"""The recovery gate: what a quantized model must show before it is served, and that it really runs quantized.

Three ways a quantized model goes wrong while its answers look sane: nobody measured what rounding cost; the folder
claims a scheme that its weights do not have; the engine accepts a scheme and quantizes nothing (seen in vLLM 0.32 on
CPU with `int8_per_channel_weight_only`). The first two are found before the engine loads, the last right after.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh.errors import Code, TenthError
from services.inference.engine_plan import unsupported
from services.inference.errors import Reason
from services.inference.hardware import Hardware
from services.inference.model_folder import (
    Evaluation,
    FolderError,
    Scheme,
    declared_scheme,
    holds_rounded_weights,
    read_config,
    read_evaluation,
    stored_types,
    weights_sha256,
)

log = logging.getLogger("tenth.inference.quantization")

FORCE = "TENTH_INFERENCE_FORCE_QUANTIZED=true serves it all the same"
_LAYERS = {"LinearBase", "FusedMoE", "RoutedExperts"}
"""vLLM's classes of layers that hold most weights, and that every scheme quantizes."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """The least recovery of a scheme: perplexity over the reference's at most, agreement (0..1) at least."""

    perplexity_ratio: float
    agreement: float


THRESHOLDS: Mapping[Scheme, Threshold] = {
    Scheme.INT8: Threshold(1.07, 0.87),
    Scheme.FP8: Threshold(1.05, 0.90),
    Scheme.INT4: Threshold(1.15, 0.75),
}
"""Defaults, set by what was seen on SmolLM2-135M (README.md). Other schemes (fp4, unknown ones) are held to int4's."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What is asked of a quantized model. ``forced``: what it lacks is logged, and it is served."""

    thresholds: Mapping[Scheme, Threshold] = field(default_factory=lambda: THRESHOLDS)
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Layers:
    """How many of an engine's layers are quantized."""

    quantized_count: int
    count: int


def shortfall(scheme: Scheme, evaluation: Evaluation | None, sha256: str, recovery: Recovery) -> str:
    """What a quantized folder lacks, in words; empty when nothing. ``sha256`` is of the weights that are there now."""
    if evaluation is None:
        return "it has not been evaluated: `tenth model evaluate` measures what rounding cost it"
    if evaluation.weights_sha256 != sha256:
        return "its weights are not those that were evaluated: `tenth model evaluate` measures these"
    least = recovery.thresholds.get(scheme, recovery.thresholds[Scheme.INT4])
    # Written so that NaN fails.
    if not evaluation.perplexity_ratio <= least.perplexity_ratio:
        return (
            f"its perplexity is {evaluation.perplexity_ratio:.3f} times the unquantized model's, "
            f"{least.perplexity_ratio:g} is allowed for {scheme}: quantize it by another recipe"
        )
    if not evaluation.agreement >= least.agreement:
        return (
            f"it agrees with the unquantized model on {evaluation.agreement:.1%} of tokens, "
            f"{least.agreement:.0%} is the least for {scheme}: quantize it by another recipe"
        )
    return ""


def admit(folder: Path, recovery: Recovery, hardware: Hardware | None = None) -> Scheme:
    """The scheme of a folder that may be loaded. Raises TenthError: QUANTIZATION_UNPROVEN, MODEL_CORRUPT, and, where
    ``hardware`` is known, SCHEME_UNSUPPORTED.

    UNAVAILABLE, all of them: another model answers meanwhile. Reads the weights of a quantized folder once, to know
    that they are the evaluated ones: about a second a gigabyte.
    """
    try:
        scheme = declared_scheme(read_config(folder))
        types = stored_types(folder)
        if scheme is Scheme.NONE and holds_rounded_weights(types):
            said = f"{folder} stores rounded weights and its config.json names no quantization: fetch it again"
            raise FolderError(said)
        if scheme is Scheme.NONE:
            return scheme
        if types and not holds_rounded_weights(types):
            kinds = ", ".join(sorted(set(types.values())))
            raise FolderError(
                f"{folder} claims to be {scheme} and stores its weights as {kinds}: take `quantization_config` out of "
                "its config.json, or quantize it again"
            )
        cannot = "" if hardware is None else unsupported(hardware, scheme)
        if cannot:
            raise TenthError(Code.UNAVAILABLE, Reason.SCHEME_UNSUPPORTED, f"{folder.name} is not served: {cannot}")
        lack = shortfall(scheme, read_evaluation(folder), weights_sha256(folder), recovery)
    except FolderError as error:
        raise TenthError(Code.UNAVAILABLE, Reason.MODEL_CORRUPT, str(error)) from error
    if lack and not recovery.forced:
        message = f"{folder.name} ({scheme}) is not served: {lack}; {FORCE}"
        raise TenthError(Code.UNAVAILABLE, Reason.QUANTIZATION_UNPROVEN, message)
    if lack:
        log.warning("%s (%s) is served by force: %s", folder.name, scheme, lack)
    return scheme


def layers_of(model: Any) -> Layers:
    """Counts a loaded vLLM model's layers by the method that multiplies them; ``model`` is its torch module."""
    quantized = count = 0
    for module in model.modules():
        if not _LAYERS.isdisjoint(kind.__name__ for kind in type(module).__mro__):
            count += 1
            method = getattr(module, "quant_method", None)
            quantized += method is not None and not type(method).__name__.startswith("Unquantized")
    return Layers(quantized, count)


def check_engine(name: str, claimed: str, engine: Any) -> None:
    """Raises TenthError (QUANTIZATION_INEFFECTIVE) when vLLM's LLMEngine claims a scheme and quantized no layer; it is
    shut down then.
    """
    if claimed in ("", Scheme.NONE):
        return
    try:
        check_layers(name, claimed, engine.apply_model(layers_of)[0])
    except TenthError:
        engine.engine_core.shutdown()
        raise


def check_layers(name: str, claimed: str, layers: Layers) -> None:
    """Raises TenthError (QUANTIZATION_INEFFECTIVE) when a scheme is claimed and no layer is quantized.

    ``claimed`` is the scheme that the folder or the setting says; empty or "none": nothing is claimed. Never forced: a
    model that is billed and reported as quantized must be.
    """
    if claimed in ("", Scheme.NONE):
        return
    if not layers.quantized_count:
        raise TenthError(
            Code.UNAVAILABLE,
            Reason.QUANTIZATION_INEFFECTIVE,
            f"{name} should run as {claimed}, and the engine quantized none of its {layers.count} layers: take a "
            "folder that `tenth model quantize` made for this hardware, or serve the unquantized one",
        )
    log.info("%s: %d of %d layers run as %s", name, layers.quantized_count, layers.count, claimed)

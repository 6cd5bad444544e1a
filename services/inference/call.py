"""How the catalogue says that a model is called: parameters it does not take, names it wants, hedging. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from services.inference.errors import unsupported
from services.inference.policy import Generation, Sampling

DROP, REFUSE = "drop", "refuse"
PARAMETERS = (
    "temperature",
    "top_p",
    "stop",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "logprobs",
    "prompt_cache_hint",
)
"""What a catalogue entry may declare unsupported. ``prompt_cache_hint`` is ours and can only be dropped."""
LIMIT_NAMES = ("max_tokens", "max_completion_tokens")

_WITHOUT = {
    "temperature": Sampling(temperature=None),
    "top_p": Sampling(top_p=None),
    "stop": Sampling(stop=()),
    "seed": Sampling(seed=None),
    "frequency_penalty": Sampling(frequency_penalty=None),
    "presence_penalty": Sampling(presence_penalty=None),
    "logprobs": Sampling(top_logprobs=0),
}


@dataclass(frozen=True, slots=True)
class CallRules:
    """``unsupported``: parameter -> "drop" or "refuse". ``limit_name``: what the provider calls the most output tokens;
    empty: by its host. ``hedge_after_seconds`` 0: never a second attempt beside the first."""

    unsupported: Mapping[str, str] = field(default_factory=dict)
    limit_name: str = ""
    hedge_after_seconds: float = 0.0

    @property
    def prompt_cache_hint(self) -> bool:
        """False when hints for the provider's prompt cache are left out."""
        return "prompt_cache_hint" not in self.unsupported


def fitted(generation: Generation, rules: CallRules) -> Generation:
    """The generation without the parameters that are dropped. Raises UNSUPPORTED naming one that is refused."""
    sampling = generation.sampling
    changes: dict[str, object] = {}
    for name, what in rules.unsupported.items():
        if name not in _WITHOUT:
            continue
        attribute, wire = ("top_logprobs", "top_logprobs_count") if name == "logprobs" else (name, name)
        absent = getattr(_WITHOUT[name], attribute)
        if getattr(sampling, attribute) == absent:
            continue
        if what == REFUSE:
            raise unsupported(f"{generation.model} does not take {name}", f"generation.sampling.{wire}")
        changes[attribute] = absent
    return replace(generation, sampling=replace(sampling, **changes)) if changes else generation  # type: ignore[arg-type]  # values of the class itself

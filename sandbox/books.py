"""What the sandbox has served, and what shall go wrong with what it serves next."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Failure:
    """What shall go wrong, how often, and with which model (empty: any)."""

    mode: str
    count: int
    model: str = ""


@dataclass(slots=True)
class Books:
    """What was served. A request counts when its usage was reported or its text was sent."""

    requests: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    tokens_in: Counter[str] = field(default_factory=Counter)
    tokens_cached: Counter[str] = field(default_factory=Counter)
    tokens_out: Counter[str] = field(default_factory=Counter)
    request_ids: list[str] = field(default_factory=list)

    def served(self, model: str, request_id: str, usage: dict[str, Any], *, whole: bool) -> None:
        """One answer, or what was sent of it before the caller left."""
        self.requests[model] += 1
        self.cut[model] += not whole
        self.tokens_in[model] += usage["prompt_tokens"]
        self.tokens_cached[model] += usage["prompt_tokens_details"]["cached_tokens"]
        self.tokens_out[model] += usage["completion_tokens"]
        if request_id:
            self.request_ids.append(request_id)

    def failed(self, model: str) -> None:
        """One failure."""
        self.failures[model] += 1

    def to_json(self) -> dict[str, Any]:
        """The books by model, and the ids in order."""
        names = sorted(self.requests | self.failures)
        return {
            "sandbox": True,
            "models": {
                name: {
                    "requests": self.requests[name],
                    "cut_off": self.cut[name],
                    "failures": self.failures[name],
                    "input_tokens": self.tokens_in[name],
                    "cached_input_tokens": self.tokens_cached[name],
                    "output_tokens": self.tokens_out[name],
                }
                for name in names
            },
            "requests": sum(self.requests.values()),
            "request_ids": self.request_ids,
        }

"""Which models are down, by what inference says of its providers and by attempts that failed. Pure.

Inference's circuit closes again only when a call succeeds, so a router that never chose a model which is down would
keep it down for ever. Therefore a model is left alone for a time, doubled with every trial that fails, and is then up
until it is chosen once: that request is the trial, and it has its fallbacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_MODELS = 1000
"""Models that are remembered to fail, at most."""


@dataclass(slots=True)
class _Absence:
    """A model that is, or begins to look, down."""

    reason: str
    failures: int = 0
    """Failed attempts in a row."""
    listed: bool = False
    """Inference says that it is down."""
    trials: int = 0
    """Trials that have begun since it was up last."""
    until: float | None = None
    """When the next trial may begin; None while it is not down."""


class Health:
    """The models that are down now. Written by one task and by every request, all on one event loop."""

    def __init__(
        self, clock: Callable[[], float], *, failure_count: int, down_seconds: float, max_down_seconds: float
    ) -> None:
        """``clock`` gives seconds that only grow; the others are as in the settings."""
        self._clock = clock
        self._failure_count = failure_count
        self._down_seconds = down_seconds
        self._max_down_seconds = max_down_seconds
        self._absent: dict[str, _Absence] = {}
        self._reachable = True

    def down(self) -> Mapping[str, str]:
        """Why each model that is down is; a model whose trial is due is not among them."""
        if not self._reachable or not self._absent:
            return {}
        now = self._clock()
        return {
            model: absence.reason
            for model, absence in self._absent.items()
            if absence.until is not None and now < absence.until
        }

    def note_choice(self, model: str) -> None:
        """The model was chosen for a request. If it was due for a trial, this request is it, and the only one."""
        absence = self._absent.get(model)
        if absence is not None and absence.until is not None and self._clock() >= absence.until:
            absence.trials += 1
            self._leave_alone(absence)

    def note_failure(self, model: str, reason: str = "calls to it failed") -> None:
        """An attempt on a model of the catalogue failed, as the first choice or as a fallback.

        Not counted while inference is out of reach: the model is not to blame.
        """
        if not self._reachable or (model not in self._absent and len(self._absent) >= MAX_MODELS):
            return
        absence = self._absent.setdefault(model, _Absence(reason))
        absence.failures += 1
        if absence.until is None:
            if absence.failures >= self._failure_count:
                self._leave_alone(absence)
        elif self._clock() >= absence.until:
            # A trial that was not told of by note_choice: the caller took it as a fallback.
            absence.trials += 1
            self._leave_alone(absence)

    def note_success(self, model: str) -> None:
        """The model answered: it is up, whatever was known of it."""
        self._absent.pop(model, None)

    def listed(self, models: Mapping[str, str]) -> None:
        """What inference says now: a reason for each model that it serves, empty where it is healthy.

        A model that inference had down and now calls healthy is up. One that only failed here stays as it is: another
        replica of inference may be the one that sees it fail.
        """
        self._reachable = True
        for model, reason in models.items():
            absence = self._absent.get(model)
            if not reason:
                if absence is not None and absence.listed:
                    del self._absent[model]
                continue
            if absence is None:
                absence = self._absent[model] = _Absence(reason)
            absence.reason, absence.listed = reason, True
            if absence.until is None:
                self._leave_alone(absence)
        for model in [model for model, absence in self._absent.items() if absence.listed and model not in models]:
            del self._absent[model]  # It is served no more; that is the catalogue's business.

    def unreachable(self) -> None:
        """Inference does not answer: nothing is known of any model, and none is down."""
        self._reachable = False
        self._absent.clear()

    def _leave_alone(self, absence: _Absence) -> None:
        # The exponent has a bound: a float overflows beyond 2**1023.
        seconds = self._down_seconds * 2.0 ** min(absence.trials, 64)
        absence.until = self._clock() + min(seconds, self._max_down_seconds)

"""The ``summary`` strategy in the service: when it is due, who makes the summary, what a failure after it carries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from tenth.compressor.v1 import compressor_pb2
from tenth.inference.v1 import inference_pb2_grpc
from tenth.type.v1 import receipt_pb2

from mesh import deadlines
from mesh.auth import identity_or_none
from mesh.catalog import WatchedFile
from mesh.errors import Code, TenthError
from services.compressor.catalog import Model
from services.compressor.errors import Reason
from services.compressor.modes import SUMMARY, Plan
from services.compressor.prompt import Prompt
from services.compressor.summary_inference import FIRST_ATTEMPT, InferenceSummarizer
from services.compressor.summary_step import Case, Decision, Summaries, Told
from services.compressor.summary_worth import MakingPrice
from services.compressor.weighing import Facts
from services.compressor.work import Counter, Step

_SHARE_OF_TIME_LEFT = 0.5
"""Of the time that the request has left a summary gets at most so much: the prompt is still to be shortened."""


@dataclass(frozen=True, slots=True)
class SummaryTimes:
    """Seconds."""

    wait_seconds: float
    """Longest wait of a request."""
    timeout_seconds: float
    """Of the model's call, which goes on when the request does."""


class SummaryStep:
    """Summaries by one model of the catalogue; without a model or an inference service it says that it cannot."""

    def __init__(
        self,
        stub: inference_pb2_grpc.InferenceServiceAsyncStub | None,
        model: str,
        summaries: Summaries,
        catalog: WatchedFile[dict[str, Model]],
        times: SummaryTimes,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
    ) -> None:
        """``now`` says which prices hold; ``new_id`` names the calls of requests that come without an id."""
        self._stub = stub
        self._model = model
        self._summaries = summaries
        self._catalog = catalog
        self._times = times
        self._now = now
        self._new_id = new_id

    def why_not(self) -> str:
        """Why no summary can be made; empty: one can."""
        if self._stub is None:
            return "no inference service is set that could make summaries"
        if not self._model:
            return "no model is set that makes summaries"
        if self._model not in self._catalog.current:
            return f"the catalogue has no model {self._model}, which should make summaries"
        return ""

    def decide(self, prompt: Prompt, counter: Counter, facts: Facts, held: float, *, preview: bool) -> Decision:
        """What to do about one request. CPU work, to be done where other work on prompts is."""
        identity, model = identity_or_none(), self._catalog.current.get(self._model)
        why = self.why_not()
        if why or model is None:
            step = Step(SUMMARY, 0, why, counter.prompt(prompt))
            case = Case(prompt, counter, "", None, None, 0.0, "", None)
            return Decision(case, Told(prompt, declined=(step,)))
        now = self._now()
        price, output = model.price(now), model.output_price(now)
        making = None if price is None or output is None else MakingPrice(price.input, output)
        scope = identity.tenant_id if identity else ""
        window = model.context_window_tokens
        case = Case(prompt, counter, scope, facts.price, facts.terms, held, self._model, making, window)
        return self._summaries.decide(case, preview=preview)

    async def finish(self, decision: Decision, request: compressor_pb2.CompressPromptRequest) -> Told:
        """Ask the model, if that was decided. Waits as long as was set, and never over half of the time left."""
        if decision.plan is None or self._stub is None:
            return decision.told
        identity, left = identity_or_none(), deadlines.remaining()
        wait = self._times.wait_seconds
        summarizer = InferenceSummarizer(
            self._stub,
            self._model,
            self._times.timeout_seconds,
            request.request.request_id or f"summary-{self._new_id()}",
            request.summary_attempt or FIRST_ATTEMPT,
            identity.project_id if identity else "",
        )
        return await self._summaries.finish(
            decision, summarizer, wait if left is None else min(wait, left * _SHARE_OF_TIME_LEFT)
        )


def named(request: compressor_pb2.CompressPromptRequest) -> bool:
    """True when the caller asked for summaries by name."""
    return any(item.strategy == SUMMARY and item.enabled for item in request.strategy_overrides)


def due(prompt: Prompt, plan: Plan, counter: Counter, room_tokens: int | None) -> bool:
    """True when the history is over what the mode allows, or the prompt over what there is room for."""
    limit = plan.summary_over_tokens
    if limit is not None and sum(map(counter.message, prompt.messages)) > limit:
        return True
    return room_tokens is not None and counter.prompt(prompt) > room_tokens


def not_set_up(why: str, path: str) -> TenthError:
    """What a caller who named the strategy is told."""
    field = f"{path}strategy_overrides"
    return TenthError(Code.FAILED_PRECONDITION, Reason.SUMMARY_NOT_SET_UP, why, field)


@contextmanager
def spent_on(told: Told, request_id: str) -> Iterator[None]:
    """Whatever fails from here on tells what the summary has cost."""
    try:
        yield
    except TenthError as error:
        if told.overheads:
            spent = receipt_pb2.SpentDetail(request_id=request_id, attempts=overheads_of(told))
            error.details = (*error.details, spent)
        raise


def overheads_of(told: Told) -> list[receipt_pb2.OverheadItem]:
    """What was spent, as the wire has it."""
    return [item for item in told.overheads if isinstance(item, receipt_pb2.OverheadItem)]

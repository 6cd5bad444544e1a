"""The answer of PruneText: a request's checks, the scores, the pruned text and what it saves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tenth.compressor.v1 import compressor_pb2
from tenth.type.v1 import receipt_pb2

from mesh.errors import Code, TenthError, invalid_argument, required
from mesh.money import TOKENS_PER_PRICE
from services.compressor.errors import Reason
from services.compressor.money import InputPrice
from services.compressor.tokens import ModelCounter
from services.compressor.tokenwise import MOST_SHARE, Pruned, budget_of, prune
from services.compressor.tokenwise_inference import PromptScorer

MOST_CHARACTERS = 100_000


class Tokenwise:
    """Prunes texts with a scorer; without one every request is refused."""

    def __init__(self, scorer: PromptScorer | None, new_id: Callable[[], str]) -> None:
        """``new_id`` names each request in the ledger: an id of the caller's, used twice, would be charged once."""
        self._scorer = scorer
        self._new_id = new_id

    @property
    def scoring_model(self) -> str:
        """The catalogue model that scores; empty without one."""
        return self._scorer.model if self._scorer is not None else ""

    async def prune(
        self,
        request: compressor_pb2.PruneTextRequest,
        counter: ModelCounter,
        price: InputPrice | None,
        scoring_price: InputPrice | None,
    ) -> compressor_pb2.PruneTextResponse:
        """Score the text, prune it, and tell what that saves at ``price`` and cost at ``scoring_price``."""
        check(request)
        if self._scorer is None:
            raise TenthError(
                Code.FAILED_PRECONDITION,
                Reason.TOKENWISE_NOT_SET_UP,
                "texts are pruned by a model: set TENTH_COMPRESSOR_INFERENCE_ADDRESS and _TOKENWISE_MODEL",
            )
        request_id = self._new_id()
        text = request.text
        scored = await self._scorer.score(text, request_id, request.project_id)

        def work() -> Pruned:
            shared = request.WhichOneof("target") == "share"
            budget = budget_of(counter.text(text), request.share) if shared else request.token_budget
            return prune(text, scored.surprisals, budget, counter.text)

        done = await asyncio.to_thread(work)
        saved = done.before_tokens - done.after_tokens
        return compressor_pb2.PruneTextResponse(
            text=done.text,
            removed=[
                compressor_pb2.RemovedText(start_character=each.start, end_character=each.end, nats=each.nats)
                for each in done.removed
            ],
            original_token_count=done.before_tokens,
            pruned_token_count=done.after_tokens,
            estimated=counter.estimated,
            reached=done.reached,
            input_nano_usd_per_million_tokens=price.input if price else 0,
            saving_nano_usd=_worth(saved, price.input) if price else 0,
            scoring_model=self._scorer.model,
            scoring_cost_nano_usd=_read_cost(scored.overheads, scoring_price),
            overheads=scored.overheads,
            request_id=request_id,
        )


def check(request: compressor_pb2.PruneTextRequest) -> None:
    """Refuse a request that cannot be worked on. Raises REQUIRED_FIELD or INVALID_FIELD."""
    if not request.text.strip():
        raise required("text")
    if len(request.text) > MOST_CHARACTERS:
        raise invalid_argument(f"more than {MOST_CHARACTERS:,} characters", field="text")
    target = request.WhichOneof("target")
    if target is None:
        raise required("target")
    if target == "share" and not 0 < request.share <= MOST_SHARE:
        raise invalid_argument(f"must be above 0 and at most {MOST_SHARE:g}", field="share")
    if target == "token_budget" and request.token_budget < 1:
        raise invalid_argument("less than 1", field="token_budget")


def _read_cost(overheads: tuple[receipt_pb2.OverheadItem, ...], price: InputPrice | None) -> int:
    return _worth(sum(item.usage.input_token_count for item in overheads), price.input) if price else 0


def _worth(tokens: int, nano_usd_per_million: int) -> int:
    return round(tokens * nano_usd_per_million / TOKENS_PER_PRICE)

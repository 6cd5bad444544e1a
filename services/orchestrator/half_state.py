"""What the second half of a request must know of the first, as the bytes that travel in between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf.message import DecodeError
from tenth.orchestrator.v1 import halves_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.errors import invalid_argument
from mesh.receipt import CPU, Price
from mesh.wire import price_from_proto, price_to_proto
from services.orchestrator.call import Call, Prompt, Route

MOST_BYTES = 64 * 1024
"""What the contract says that a state has at most."""


def to_bytes(
    call: Call, route: Route, prompt: Prompt, attempt: int, may_store: bool, embedding: chat_pb2.Embedding | None
) -> bytes:
    """The state of a request whose first half is done. Long ones go without the embedding, then without the hops."""
    state = halves_pb2.PreparedState(
        tenant_id=call.identity.tenant_id,
        payload_digest=call.digest,
        price_book_version=call.price_book_version,
        prices=_prices(call, route.model),
        baseline_model=call.tenant.baseline_model,
        trace_id=call.trace_id,
        hops=call.hops,
        overheads=call.overheads,
        compute_micros=call.compute_micros,
        attempts_unknown=call.attempts_unknown,
        reservation_id=call.reservation_id,
        downgraded=call.downgraded,
        excluded_models=call.excluded,
        routed=call.routed,
        compressed_for=call.compressed_for,
        told_input_token_count=call.told_tokens,
        token_correction=call.token_correction,
        model=route.model,
        tier=route.tier,
        router_degraded=route.degraded,
        original_input_token_count=prompt.original_tokens,
        sent_input_token_count=prompt.sent_tokens,
        baseline_input_token_count=prompt.baseline_tokens,
        attempt=attempt,
        may_store=may_store,
    )
    state.create_time.FromNanoseconds(int(call.created * 1e9))
    if embedding is not None:
        state.embedding.CopyFrom(embedding)
    for field in ("embedding", "hops"):
        if state.ByteSize() > MOST_BYTES:
            state.ClearField(field)
    return state.SerializeToString()


def from_bytes(data: bytes) -> halves_pb2.PreparedState:
    """The state again. Raises INVALID_FIELD for what is none."""
    try:
        return halves_pb2.PreparedState.FromString(data)
    except DecodeError:
        raise invalid_argument("no state of a prepared request", field="state") from None


def route_of(state: halves_pb2.PreparedState) -> Route:
    """The model that was chosen."""
    return Route(model=state.model, tier=state.tier, degraded=state.router_degraded)


def prompt_of(state: halves_pb2.PreparedState) -> Prompt:
    """The token counts of the prompt; its text has gone out and is needed no more."""
    return Prompt(
        messages=(),
        chunks=(),
        original_tokens=state.original_input_token_count,
        sent_tokens=state.sent_input_token_count,
        baseline_tokens=state.baseline_input_token_count,
        estimated=False,
    )


def prices_of(
    state: halves_pb2.PreparedState, later: Mapping[str, Price] | None, models: Iterable[str]
) -> dict[str, Price]:
    """The prices of the receipt: those of the state, and those of other ``models`` that were paid meanwhile.

    ``later`` is what the price book says of that time now; None where its version has moved on: those models are then
    left to the ledger, which knows every version.
    """
    prices = {each.model: price_from_proto(each) for each in state.prices}
    if later is not None:
        for model in models:
            price = None if model in prices else later.get(model)
            if price is not None:
                prices[model] = price
    return prices


def _prices(call: Call, model: str) -> list[receipt_pb2.Price]:
    names = {call.tenant.baseline_model, model, CPU, *(item.model for item in call.overheads)}
    found = (call.prices.get(name) for name in sorted(names))
    return [price_to_proto(price) for price in found if price is not None]

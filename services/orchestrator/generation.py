"""Hop 5: asking the model, and putting a streamed answer together again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import cast

from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.type.v1 import chat_pb2

from mesh import deadlines
from mesh.errors import Code, Reason, TenthError
from services.orchestrator.call import DEGRADED, Call, Generated, Prompt, Route
from services.orchestrator.errors import Reason as OrchestratorReason

Emit = Callable[[chat_pb2.CompletionDelta], None]
_HOLD_SECONDS = 0.2
"""Pause between tries while the inference service itself is away (a restart, a rolling update)."""


_ENGINE_FAILED, _ENGINE_RESTARTING = "ENGINE_FAILED", "ENGINE_RESTARTING"
"""Inference's reasons."""
_MOST_FAILED_ENGINES = 2


class Generation:
    """Asks inference for an answer, streamed or whole."""

    def __init__(self, inference: inference_pb2_grpc.InferenceServiceAsyncStub) -> None:
        self._inference = inference

    async def generate(
        self, call: Call, route: Route, prompt: Prompt, emit: Emit, held_logprobs: int | None = None
    ) -> Generated:
        """One answer from one model. With ``held_logprobs`` it comes whole, also for a stream, and no piece is emitted;
        its tokens have that many alternatives at least.

        While the inference service cannot be reached at all, the request is held and tried again until its
        deadline: nothing was spent, and a restarting replica comes back. So is one that no other model may answer (the
        caller named this one, or has read a part) while a replica's engine starts again; a request under which an
        engine failed is tried once more and not again, it may be its cause. Other failures raise as they are. A break
        after the first piece that cannot be made good is STREAM_BROKEN, before anything more is spent.
        """
        with call.hop("inference") as hop:
            if not _resumable(call, route):
                hop.outcome, hop.reason = DEGRADED, "the followed answer broke off"
                raise broken()
            failed_engines = 0
            while True:
                try:
                    return await self._attempt(call, route, prompt, emit, held_logprobs)
                except TenthError as error:
                    hop.outcome, hop.reason = DEGRADED, f"{route.model}: {error.reason}"
                    call.note_failed_attempt(route.model, error)
                    failed_engines += error.reason == _ENGINE_FAILED
                    bound = call.began or bool(call.request.policy.model)
                    again = bound and _comes_back(error) and failed_engines < _MOST_FAILED_ENGINES
                    if not _away(error) and not again:
                        raise
                    remaining = deadlines.remaining()
                    late = remaining is not None and remaining < 2 * _HOLD_SECONDS
                    if late or not _resumable(call, route):
                        if call.began:
                            raise broken() from error
                        raise
                    await asyncio.sleep(_HOLD_SECONDS)

    async def _attempt(
        self, call: Call, route: Route, prompt: Prompt, emit: Emit, held_logprobs: int | None
    ) -> Generated:
        request = build_generation(call, route, prompt, call.next_attempt())
        if held_logprobs is not None:
            wanted = max(held_logprobs, request.sampling.top_logprobs_count)
            request.sampling.top_logprobs_count = wanted
        elif call.streaming:
            return await self._stream(call, route, request, emit)
        started = time.perf_counter()
        reply = await self._inference.GenerateText(request)
        reply.completion.model = route.model
        call.note_overheads(reply.overheads)
        attempt = reply.attempt or request.attempt
        return Generated(reply.completion, reply.quantized, attempt, time.perf_counter() - started)

    async def _stream(
        self, call: Call, route: Route, request: inference_pb2.GenerateTextRequest, emit: Emit
    ) -> Generated:
        answer = Assembly()
        skip = call.sent_text
        started = time.perf_counter()
        stream = self._inference.StreamGenerateText(inference_pb2.StreamGenerateTextRequest(generation=request))
        # Closed here and now: a stream given up in the middle would have the model go on until it is collected.
        async with aclosing(cast(AsyncGenerator[inference_pb2.StreamGenerateTextResponse], stream)) as events:
            async for event in events:
                kind = event.WhichOneof("event")
                if kind == "delta":
                    answer.add(event.delta)
                    fresh = _after_prefix(answer.text, skip, event.delta) if skip else event.delta
                    if fresh is not None:
                        skip = ""
                        call.note_sent(answer.text, event.delta)
                        emit(fresh)
                elif kind == "finished":
                    if skip and answer.text != skip:
                        raise broken()  # The second answer ended before the part that the caller has already read.
                    whole = answer.completion(route.model, event.finished)
                    call.note_overheads(event.finished.overheads)
                    seconds = time.perf_counter() - started
                    return Generated(
                        whole, event.finished.quantized, event.finished.attempt or request.attempt, seconds
                    )
        raise TenthError(Code.UNAVAILABLE, OrchestratorReason.STREAM_BROKEN, "the model's stream ended without an end")


def build_generation(call: Call, route: Route, prompt: Prompt, attempt: int) -> inference_pb2.GenerateTextRequest:
    """What inference is asked for an answer; ``attempt`` is its number."""
    request = inference_pb2.GenerateTextRequest(
        request_id=call.request.request_id,
        attempt=attempt,
        model=route.model,
        messages=prompt.messages,
        retrieved_chunks=prompt.chunks,
        tools=[tool for at, tool in enumerate(call.request.tools) if at not in prompt.cut_tools],
        tool_choice=call.request.tool_choice,
        response_format=call.request.response_format,
        sampling=call.request.sampling,
        purpose=inference_pb2.PURPOSE_ANSWER,
        price_book_version=call.price_book_version,
        reservation_id=call.reservation_id,
        estimated_input_token_count=prompt.sent_tokens,
        project_id=call.identity.project_id,
        stable_prefix_message_count=prompt.stable_messages,
        prefix_version=prompt.prefix_version,
        priority=_priority(call),
    )
    if prompt.max_output_tokens:
        request.sampling.max_output_tokens = prompt.max_output_tokens
    return request


class Assembly:
    """Folds the pieces of a stream into one message."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, chat_pb2.ToolCall] = {}
        self._logprobs: list[chat_pb2.TokenLogprob] = []

    @property
    def text(self) -> str:
        """The answer text so far."""
        if len(self._texts) > 1:
            self._texts = ["".join(self._texts)]
        return self._texts[0] if self._texts else ""

    def add(self, delta: chat_pb2.CompletionDelta) -> None:
        """Take the next piece."""
        if delta.text:
            self._texts.append(delta.text)
        if delta.reasoning:
            self._reasoning.append(delta.reasoning)
        for piece in delta.tool_calls:
            call = self._calls.setdefault(piece.index, chat_pb2.ToolCall())
            call.id = call.id or piece.id
            call.name = call.name or piece.name
            call.arguments_json += piece.arguments_json
        self._logprobs.extend(delta.logprobs)

    def holds_all_but_text_of(self, completion: chat_pb2.Completion) -> bool:
        """True when the pieces so far have an answer's reasoning, tool calls and log probabilities."""
        message = completion.message
        return (
            "".join(self._reasoning) == message.reasoning
            and [self._calls[index] for index in sorted(self._calls)] == list(message.tool_calls)
            and self._logprobs == list(completion.logprobs)
        )

    def completion(self, model: str, finished: inference_pb2.GenerationFinished) -> chat_pb2.Completion:
        """The whole answer."""
        return chat_pb2.Completion(
            message=chat_pb2.ChatMessage(
                role=chat_pb2.ROLE_ASSISTANT,
                parts=[chat_pb2.ContentPart(text=self.text)] if self._texts else [],
                tool_calls=[self._calls[index] for index in sorted(self._calls)],
                reasoning="".join(self._reasoning),
            ),
            finish_reason=finished.finish_reason,
            model=model,
            usage=finished.usage,
            logprobs=self._logprobs,
        )


def whole_delta(completion: chat_pb2.Completion) -> chat_pb2.CompletionDelta:
    """A whole answer as one piece, for replaying it as a stream."""
    message = completion.message
    return chat_pb2.CompletionDelta(
        text="".join(part.text for part in message.parts),
        reasoning=message.reasoning,
        tool_calls=[
            chat_pb2.ToolCallDelta(index=index, id=call.id, name=call.name, arguments_json=call.arguments_json)
            for index, call in enumerate(message.tool_calls)
        ],
        logprobs=completion.logprobs,
    )


def _after_prefix(text: str, sent: str, delta: chat_pb2.CompletionDelta) -> chat_pb2.CompletionDelta | None:
    """What of a repeated answer is new to the caller; None while it is still repeating what was sent."""
    if len(text) <= len(sent):
        if sent.startswith(text):
            return None
    elif text.startswith(sent):
        fresh = chat_pb2.CompletionDelta()
        fresh.CopyFrom(delta)
        fresh.text = text[len(sent) :]
        return fresh
    raise broken()


def broken() -> TenthError:
    """The error of an answer that broke off after its first piece."""
    return TenthError(
        Code.UNAVAILABLE, OrchestratorReason.STREAM_BROKEN, "the answer broke off and could not be continued"
    )


def _priority(call: Call) -> inference_pb2.Priority.ValueType:
    """A caller who gave a window does not sit and wait."""
    window = call.request.policy.completion_window
    later = call.later is not None or window.seconds > 0 or window.nanos > 0
    return inference_pb2.PRIORITY_BATCH if later else inference_pb2.PRIORITY_INTERACTIVE


def _away(error: TenthError) -> bool:
    """True when the inference service itself did not answer: it is down or restarting."""
    return error.code is Code.UNAVAILABLE and error.reason in (Reason.UNREACHABLE, Reason.DRAINING)


def _comes_back(error: TenthError) -> bool:
    """True when a replica's own engine failed, which starts it again; other replicas may answer meanwhile."""
    return error.code is Code.UNAVAILABLE and error.reason in (_ENGINE_FAILED, _ENGINE_RESTARTING)


def _resumable(call: Call, route: Route) -> bool:
    """True when trying again cannot contradict what the caller already read.

    A greedy answer of an own model repeats itself exactly, so a broken stream is made again and continued after the
    part that was sent.
    """
    if not call.began:
        return True
    sampling = call.request.sampling
    greedy = sampling.HasField("temperature") and sampling.temperature == 0
    return greedy and route.self_hosted and not call.sent_other

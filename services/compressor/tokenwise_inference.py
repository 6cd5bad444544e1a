"""How surprising each token of a text is, by a catalogue model, through the inference service."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.errors import Code, TenthError
from mesh.status import detail
from services.compressor.errors import Reason
from services.compressor.tokenwise import Surprisal

KIND = "tokenwise"
"""Of the overhead items."""
FIRST_ATTEMPT = 1601
_LEAST_WINDOW = 250
"""A model that does not hold so many characters scores nothing."""
_CONTEXT_SHARE = 4
_PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
_BLANKS = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Scored:
    """The tokens of a text in order, and what it cost to learn of them."""

    surprisals: tuple[Surprisal, ...]
    overheads: tuple[receipt_pb2.OverheadItem, ...]


class PromptScorer:
    """Asks one model of a vllm provider for the log probabilities of a text.

    Long texts are read in windows. Each but the first begins with the last quarter of a window again, as context of
    what is new in it: the model has at least that much before every token, but at the text's start.
    """

    def __init__(
        self,
        stub: inference_pb2_grpc.InferenceServiceAsyncStub,
        model: str,
        timeout_seconds: float,
        window_characters: int,
    ) -> None:
        """Ask ``model`` through ``stub``, at most ``timeout_seconds`` for each window of so many characters."""
        self.model = model
        self._stub = stub
        self._timeout_seconds = timeout_seconds
        self._window = window_characters

    async def score(self, text: str, request_id: str, project_id: str = "") -> Scored:
        """All of the text, window after window. Every call is an attempt of ``request_id`` of its own number.

        Raises TenthError as inference does, with SpentDetail of all that was spent before.
        """
        found: list[Surprisal] = []
        spent: list[receipt_pb2.OverheadItem] = []
        window, done, attempt = self._window, 0, FIRST_ATTEMPT
        while done < len(text):
            start = _blank_before(text, done - window // _CONTEXT_SHARE, 0, window // 8) if done else 0
            end = len(text)
            if start + window < end:
                end = _blank_before(text, start + window, done + 1, window // 8)
            try:
                response = await self._ask(text[start:end], request_id, attempt, project_id)
            except TenthError as error:
                spent.extend(_spent(error, attempt))
                attempt += 1
                if error.reason == _PROMPT_TOO_LONG and window // 2 >= _LEAST_WINDOW:
                    window //= 2
                    continue
                raise _with_spent(error, request_id, spent) from error
            spent.append(
                receipt_pb2.OverheadItem(
                    kind=KIND,
                    model=self.model,
                    usage=response.completion.usage,
                    attempt=attempt,
                    quantized=response.quantized,
                )
            )
            if not response.prompt_tokens:
                silent = TenthError(
                    Code.FAILED_PRECONDITION, Reason.TOKENWISE_NOT_SET_UP, f"{self.model} told no probabilities"
                )
                raise _with_spent(silent, request_id, spent)
            found.extend(_new(response, start, done))
            attempt += 1
            done = end
        return Scored(tuple(found), tuple(spent))

    async def _ask(
        self, text: str, request_id: str, attempt: int, project_id: str
    ) -> inference_pb2.GenerateTextResponse:
        generation = inference_pb2.GenerateTextRequest(
            request_id=request_id,
            attempt=attempt,
            model=self.model,
            messages=[chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])],
            sampling=chat_pb2.SamplingParameters(temperature=0.0, max_output_tokens=1),
            purpose=inference_pb2.PURPOSE_TOKENWISE,
            estimated_input_token_count=max(len(text.encode()) // 3, 1),
            project_id=project_id,
            prompt_logprobs=True,
        )
        response: inference_pb2.GenerateTextResponse = await self._stub.GenerateText(
            generation, timeout=self._timeout_seconds
        )
        return response


def _blank_before(text: str, at: int, least: int, reach: int) -> int:
    """The last place up to ``at`` where blanks begin, or ``at`` itself: none before ``least``, none ``reach`` away.

    There a token begins in the whole text as in a window of it, for tokenizers put a blank before its word.
    """
    at = max(at, least)
    low = max(least, at - reach)
    found = [match.start() for match in _BLANKS.finditer(text, low, at + 1) if match.start() >= least]
    return found[-1] if found else at


def _new(response: inference_pb2.GenerateTextResponse, start: int, done: int) -> list[Surprisal]:
    """The tokens of a window that begins at ``start``, but for those of its context, up to ``done``."""
    return [
        Surprisal(
            start + token.start_character,
            start + token.end_character,
            -token.logprob if token.HasField("logprob") else None,
        )
        for token in response.prompt_tokens
        if start + token.end_character > done
    ]


def _spent(error: TenthError, attempt: int) -> list[receipt_pb2.OverheadItem]:
    """What a failed call spent all the same, as inference counted it."""
    spent = detail(error, receipt_pb2.SpentDetail)
    items = list(spent.attempts) if isinstance(spent, receipt_pb2.SpentDetail) else []
    for item in items:
        item.kind = KIND
        item.attempt = item.attempt or attempt
    return items


def _with_spent(error: TenthError, request_id: str, spent: list[receipt_pb2.OverheadItem]) -> TenthError:
    details = (receipt_pb2.SpentDetail(request_id=request_id, attempts=spent),) if spent else ()
    return TenthError(
        error.code,
        error.reason,
        error.message,
        error.field,
        metadata=error.metadata,
        retry_after_seconds=error.retry_after_seconds,
        details=details,
    )

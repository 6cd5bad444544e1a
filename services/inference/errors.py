"""Reasons that inference gives, and the errors that carry them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from mesh.errors import Code, TenthError


class Reason(StrEnum):
    """Why a generation failed."""

    MODEL_UNKNOWN = "MODEL_UNKNOWN"
    """The catalogue has no such model."""
    MODEL_UNAVAILABLE = "MODEL_UNAVAILABLE"
    """This replica cannot serve the local model: no engine, no model folder, or still starting."""
    MODEL_CORRUPT = "MODEL_CORRUPT"
    """A file of the local model's folder is damaged; the message names it and says how to build the folder again."""
    MODEL_INCOMPLETE = "MODEL_INCOMPLETE"
    """The local model's folder lacks a file (weights, tokenizer); the message names it."""
    MODEL_TOO_LARGE = "MODEL_TOO_LARGE"
    """The local model does not fit this machine's memory; the message has the figures. It was not loaded."""
    SCHEME_UNSUPPORTED = "SCHEME_UNSUPPORTED"
    """The local model is quantized in a way that this hardware has no kernel for."""
    ENGINE_RESTARTING = "ENGINE_RESTARTING"
    """The local engine failed and is being started again; RetryInfo says when to come back. Nothing was spent."""
    QUEUE_FULL = "QUEUE_FULL"
    """The local engine has as much work as it may take, or gave this request no first token in the time that the queue
    allows; RetryInfo says when a place is likely to be free. Nothing was spent."""
    QUEUE_DEADLINE = "QUEUE_DEADLINE"
    """The deadline passed while the request waited for the local engine. Nothing was spent."""
    ADAPTER_UNAVAILABLE = "ADAPTER_UNAVAILABLE"
    """The LoRA adapter of the model's catalogue entry is not there, or is none that the engine takes."""
    UNSUPPORTED = "UNSUPPORTED"
    """The model or its engine cannot do what a field asks for; `field` names it."""
    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
    """The prompt does not fit the model's context window; metadata has `prompt_tokens` where they are known."""
    PURPOSE_FORBIDDEN = "PURPOSE_FORBIDDEN"
    """Unmetered generation was asked for by somebody other than the sandbox."""
    ATTEMPT_RUNNING = "ATTEMPT_RUNNING"
    """The same attempt of the same request, or the same submission of a provider's batch, is running now."""
    ATTEMPT_LOG_UNAVAILABLE = "ATTEMPT_LOG_UNAVAILABLE"
    """The attempt could not be written down, so the provider was not called: spend must never be lost. A full disk is
    named in the message."""
    PROVIDER_NOT_CONFIGURED = "PROVIDER_NOT_CONFIGURED"
    """The provider has no key and no sandbox plays it."""
    PROVIDER_UNHEALTHY = "PROVIDER_UNHEALTHY"
    """The last calls to this model failed in a row; it is tried again in a few seconds."""
    PROVIDER_UNREACHABLE = "PROVIDER_UNREACHABLE"
    """No connection to the provider, or it broke before an answer began."""
    PROVIDER_TIMEOUT = "PROVIDER_TIMEOUT"
    """The provider did not answer within the deadline."""
    PROVIDER_REJECTED = "PROVIDER_REJECTED"
    """The provider refused the request as invalid (400, 413, 422); its words are in the message."""
    PROVIDER_UNAUTHENTICATED = "PROVIDER_UNAUTHENTICATED"
    """The provider does not accept the key (401)."""
    PROVIDER_FORBIDDEN = "PROVIDER_FORBIDDEN"
    """The key may not use this model (403), or the provider's account is out of credit (402)."""
    PROVIDER_MODEL_NOT_FOUND = "PROVIDER_MODEL_NOT_FOUND"
    """The provider has no such model or path (404)."""
    PROVIDER_RATE_LIMITED = "PROVIDER_RATE_LIMITED"
    """The provider limits the rate (429); RetryInfo says when to come back, where it said so."""
    PROVIDER_BUSY = "PROVIDER_BUSY"
    """As many requests run at the provider as the catalogue allows (`max_concurrent_requests`), and none would end
    within the deadline; RetryInfo says when to come back."""
    PROVIDER_STALLED = "PROVIDER_STALLED"
    """Within an answer that had begun, nothing came for longer than TENTH_INFERENCE_STREAM_SILENCE_SECONDS."""
    PROVIDER_FAILED = "PROVIDER_FAILED"
    """The provider failed (5xx, or an error event in its stream)."""
    PROVIDER_GARBAGE = "PROVIDER_GARBAGE"
    """The provider's answer is not what the OpenAI format says."""
    PROVIDER_INCOMPLETE = "PROVIDER_INCOMPLETE"
    """The provider's stream ended before the answer did."""
    PROVIDER_BATCH_EXPIRED = "PROVIDER_BATCH_EXPIRED"
    """The provider's batch expired before it ran this generation. Nothing was spent on it."""
    PROVIDER_BATCH_CANCELLED = "PROVIDER_BATCH_CANCELLED"
    """The provider's batch was cancelled before it ran this generation. Nothing was spent on it."""
    PROVIDER_BATCH_TOO_LARGE = "PROVIDER_BATCH_TOO_LARGE"
    """More generations or bytes than the provider takes in one batch; metadata has `max_item_count` and
    `max_byte_count`. Nothing was sent."""
    PROVIDER_BATCH_UNCERTAIN = "PROVIDER_BATCH_UNCERTAIN"
    """An earlier, broken call may have made this batch, and the provider does not tell before the batches in question
    have ended; RetryInfo says when to come back. No batch was made by this call."""
    PROVIDER_BATCH_NOT_ENDED = "PROVIDER_BATCH_NOT_ENDED"
    """Results were asked for of a provider's batch that runs."""
    PROVIDER_BATCH_NOT_FOUND = "PROVIDER_BATCH_NOT_FOUND"
    """The provider has no batch of this id, or no results of it any more."""
    ENGINE_FAILED = "ENGINE_FAILED"
    """The local engine failed while it worked on this; the log has it. SpentDetail has what was made before."""
    QUANTIZATION_UNPROVEN = "QUANTIZATION_UNPROVEN"
    """The local model is quantized and its evaluation is absent, of other weights, or below the threshold."""
    QUANTIZATION_INEFFECTIVE = "QUANTIZATION_INEFFECTIVE"
    """The local model should run quantized, and the engine quantized none of its layers."""


PROVIDER_STATUS: Mapping[int, tuple[Code, Reason]] = {
    400: (Code.INVALID_ARGUMENT, Reason.PROVIDER_REJECTED),
    401: (Code.FAILED_PRECONDITION, Reason.PROVIDER_UNAUTHENTICATED),
    402: (Code.FAILED_PRECONDITION, Reason.PROVIDER_FORBIDDEN),
    403: (Code.FAILED_PRECONDITION, Reason.PROVIDER_FORBIDDEN),
    404: (Code.FAILED_PRECONDITION, Reason.PROVIDER_MODEL_NOT_FOUND),
    408: (Code.UNAVAILABLE, Reason.PROVIDER_TIMEOUT),
    413: (Code.INVALID_ARGUMENT, Reason.PROVIDER_REJECTED),
    422: (Code.INVALID_ARGUMENT, Reason.PROVIDER_REJECTED),
    429: (Code.RESOURCE_EXHAUSTED, Reason.PROVIDER_RATE_LIMITED),
}
"""What an HTTP status of a provider means; any other is PROVIDER_FAILED, UNAVAILABLE."""
TOO_LONG = ("context_length", "prompt is too long")
"""How providers say that the prompt does not fit, in the code or the text of a 400."""


def unsupported(message: str, field: str) -> TenthError:
    """What a field asks for cannot be done by this model."""
    return TenthError(Code.UNIMPLEMENTED, Reason.UNSUPPORTED, message, field)


def prompt_too_long(model: str, context_window: int, prompt_tokens: int | None = None) -> TenthError:
    """The prompt does not fit; ``prompt_tokens`` None: nobody counted, it is certain from its length."""
    said = "far more" if prompt_tokens is None else str(prompt_tokens)
    metadata = {"context_window_tokens": str(context_window)}
    if prompt_tokens is not None:
        metadata["prompt_tokens"] = str(prompt_tokens)
    return TenthError(
        Code.INVALID_ARGUMENT,
        Reason.PROMPT_TOO_LONG,
        f"{model} holds {context_window} tokens, the prompt has {said}",
        "generation.messages",
        metadata=metadata,
    )

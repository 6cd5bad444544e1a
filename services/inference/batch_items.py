"""The generations of a provider's batch: what names them there, what a batch may hold, how each of them ended. Pure."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from mesh.errors import Code, TenthError, invalid_argument
from services.inference.backend import Answer
from services.inference.batch_upload import Limits, Upload
from services.inference.errors import PROVIDER_STATUS, TOO_LONG, Reason
from services.inference.policy import Generation
from services.inference.usage import Usage

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
"""What Anthropic takes as a custom_id; OpenAI takes it too."""
_NUMBER = re.compile(r"[0-9a-f]{1,16}")
_MOST_ESTIMATED = 16**7 - 1
_TAG = 10
_MOST_KNOWN = 10_000
_RETRYABLE_BELOW_500 = frozenset({408, 409, 429})


@dataclass(frozen=True, slots=True)
class BatchItem:
    """A generation as its custom id names it: REQUEST_ID-ATTEMPT-ESTIMATED_INPUT-TAG, the numbers hexadecimal: with
    a UUID for the request, attempts of ten digits and the longest prompts must have room.

    The estimate stands there because nothing of a batch is kept here, and an answer whose provider reports no usage
    must still be paid for. ``tag`` is of the submission: it tells whose batch one is that has no other mark.
    """

    request_id: str
    attempt: int
    estimated_input: int
    tag: str

    @property
    def custom_id(self) -> str:
        """Its name at the provider. Raises INVALID_ARGUMENT for a request_id that cannot be in one."""
        name = f"{self.request_id}-{self.attempt:x}-{min(self.estimated_input, _MOST_ESTIMATED):x}-{self.tag}"
        if not _NAME.fullmatch(name):
            raise invalid_argument(
                "in a provider's batch it has a-z, A-Z, 0-9, _ and -, and with attempt and estimate at most 51 "
                "characters",
                field="generation.request_id",
            )
        return name


def item_of(custom_id: object) -> BatchItem | None:
    """What a custom id names; None for one that is not ours."""
    parts = custom_id.rsplit("-", 3) if isinstance(custom_id, str) else []
    if len(parts) != 4 or not parts[0] or len(parts[3]) != _TAG:
        return None
    attempt, estimate = parts[1:3]
    if not (_NUMBER.fullmatch(attempt) and _NUMBER.fullmatch(estimate)):
        return None
    return BatchItem(parts[0], int(attempt, 16), int(estimate, 16), parts[3])


def tag_of(submission_id: str) -> str:
    """The mark of a submission in its custom ids: 40 bits."""
    return hashlib.sha256(submission_id.encode("utf-8", "surrogatepass")).hexdigest()[:_TAG]


@dataclass(frozen=True, slots=True)
class Submission:
    """What is asked of a provider. ``begun``: when it was asked first, seconds since 1970; what the provider made
    before that is not it. ``first``: no earlier call can have made anything."""

    id: str
    begun: float
    first: bool = False


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """How far a batch is: ``state`` is "running", "ended" or "failed"; ``expires``: seconds since 1970; ``retryable``:
    one that failed may be taken later."""

    id: str
    state: str
    items: int
    done: int = 0
    failed: int = 0
    expires: float | None = None
    error: str = ""
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class ItemFailure:
    """Why an item has no answer; ``usage``: what it cost all the same, None: nothing."""

    reason: str
    message: str
    retryable: bool
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class ItemResult:
    """How an item ended."""

    item: BatchItem
    outcome: Answer | ItemFailure


class KnownBatches:
    """Whose batches are, by their ids: this process made them, or has read their results. Shared by the models of a
    provider; the eldest are forgotten."""

    def __init__(self, most: int = _MOST_KNOWN) -> None:
        self._most = most
        self._tags: OrderedDict[str, str] = OrderedDict()

    def add(self, batch_id: str, tag: str) -> None:
        """A batch is the one of the submission with this tag; an empty tag: it is of nobody here."""
        self._tags[batch_id] = tag
        while len(self._tags) > self._most:
            self._tags.popitem(last=False)

    def tag(self, batch_id: str) -> str | None:
        """None: not known."""
        return self._tags.get(batch_id)


class ProviderBatches(Protocol):
    """The batch interface of one model's provider. Every method raises TenthError."""

    provider_model: str
    limits: Limits

    def upload(self) -> Upload:
        """An empty upload; the caller closes it."""
        ...

    def add(self, upload: Upload, generation: Generation, item: BatchItem) -> None:
        """Put a generation into it. Raises UNSUPPORTED, INVALID_ARGUMENT and PROVIDER_BATCH_TOO_LARGE."""
        ...

    async def submit(self, submission: Submission, upload: Upload) -> tuple[BatchStatus, bool]:
        """The batch, and whether an earlier call had made it."""
        ...

    async def find(self, submission: Submission, most_items: int) -> BatchStatus | None:
        """The batch that an earlier call made; None: there is none, or it was refused whole. ``most_items``: of the
        submission. Raises PROVIDER_BATCH_UNCERTAIN where it cannot be told."""
        ...

    async def status(self, batch_id: str) -> BatchStatus:
        """How far it is."""
        ...

    def results(self, batch_id: str) -> AsyncGenerator[ItemResult]:
        """The results of one that has ended, each once."""
        ...

    async def cancel(self, batch_id: str) -> BatchStatus:
        """Stop it; nothing happens to one that is over."""
        ...


EXPIRED = ItemFailure(Reason.PROVIDER_BATCH_EXPIRED, "the provider's batch expired before it ran this", True)
CANCELLED = ItemFailure(Reason.PROVIDER_BATCH_CANCELLED, "the provider's batch was cancelled before it ran this", True)


def failure_of_status(status: int, said: str, code: str = "") -> ItemFailure:
    """What an item's HTTP status means; ``said`` and ``code`` are the provider's words."""
    _, reason = PROVIDER_STATUS.get(status, (Code.UNAVAILABLE, Reason.PROVIDER_FAILED))
    if status == 400 and any(word in f"{said} {code}" for word in TOO_LONG):
        reason = Reason.PROMPT_TOO_LONG
    retryable = status >= 500 or status in _RETRYABLE_BELOW_500
    return ItemFailure(reason, f"HTTP {status}: {said[:300] or 'no reason given'}", retryable)


def not_ended(batch_id: str) -> TenthError:
    """Results of a batch that runs."""
    said = f"the provider's batch {batch_id} has not ended: it has no results yet"
    return TenthError(Code.FAILED_PRECONDITION, Reason.PROVIDER_BATCH_NOT_ENDED, said)


def not_found(error: TenthError, batch_id: str) -> TenthError:
    """The error itself, or for a 404 that there is no such batch."""
    if error.reason != Reason.PROVIDER_MODEL_NOT_FOUND:
        return error
    said = f"the provider has no batch {batch_id}, or no results of it any more"
    return TenthError(Code.NOT_FOUND, Reason.PROVIDER_BATCH_NOT_FOUND, said, "request.provider_batch_id")


def seconds_of(value: object) -> float | None:
    """A time as providers write it, seconds since 1970: a number of seconds, or RFC 3339."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return None if at is None else (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()

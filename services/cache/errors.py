"""The cache's own error reasons, all on this page."""

from __future__ import annotations

from enum import StrEnum

from mesh.errors import Code, TenthError


class Reason(StrEnum):
    """Reasons that the cache gives beside the mesh's own."""

    EMBEDDER_MISSING = "EMBEDDER_MISSING"
    """The folder of the embedding model is absent or incomplete; `make models` builds it."""
    EMBEDDER_UNSUPPORTED = "EMBEDDER_UNSUPPORTED"
    """The folder holds a model that no encoder here can load: broken files, or a library that is not installed."""
    EMBED_TOO_MANY_TEXTS = "EMBED_TOO_MANY_TEXTS"
    """Embed was given more than 512 texts."""
    EMBED_TEXT_TOO_LONG = "EMBED_TEXT_TOO_LONG"
    """Embed was given a text of more than 32,768 characters; `field` names it."""
    EMBED_QUEUE_FULL = "EMBED_QUEUE_FULL"
    """More texts wait for the embedder than it can work off in time; try again shortly."""
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    """The vector store is down or slower than its timeout. Callers treat a lookup that fails so as a miss."""
    STORE_IN_USE = "STORE_IN_USE"
    """Another process has the embedded store's directory open: every replica needs a data directory of its own."""
    STORE_DIMENSION_MISMATCH = "STORE_DIMENSION_MISMATCH"
    """The stored vectors have another dimension than the embedder's: another collection or data directory is needed."""
    FLIGHT_GONE = "FLIGHT_GONE"
    """The flight to follow is over and its answer is not stored; look the request up again."""
    LEASE_GONE = "LEASE_GONE"
    """The lease to publish under has passed to another request, or is over."""
    LEASE_MISMATCH = "LEASE_MISMATCH"
    """The answer to store is for another request than its lease."""
    PUBLISH_UNFINISHED = "PUBLISH_UNFINISHED"
    """A publish stream ended without `finished`; the lease passes to a follower."""
    FEEDBACK_UNAVAILABLE = "FEEDBACK_UNAVAILABLE"
    """The file of reports cannot be read or written (a full disk). A wrong answer is retired and counted all the same;
    report it again under the same id to have it kept."""


def embedder_missing(folder: str, missing: str) -> TenthError:
    """The model folder is not there."""
    return TenthError(
        Code.FAILED_PRECONDITION,
        Reason.EMBEDDER_MISSING,
        f"the embedding model's folder {folder} lacks {missing}: run `make models`",
        metadata={"folder": folder},
    )


def store_unavailable(what: str) -> TenthError:
    """The vector store did not answer."""
    return TenthError(Code.UNAVAILABLE, Reason.STORE_UNAVAILABLE, f"the vector store did not answer: {what}")


def journal_unavailable(what: str) -> TenthError:
    """The file of reports does not work."""
    return TenthError(Code.UNAVAILABLE, Reason.FEEDBACK_UNAVAILABLE, f"reports cannot be kept: {what}")


def dimension_mismatch(where: str, stored: int, wanted: int) -> TenthError:
    """The store was made for another embedder."""
    return TenthError(
        Code.FAILED_PRECONDITION,
        Reason.STORE_DIMENSION_MISMATCH,
        f"{where} holds vectors of {stored} dimensions, the embedder makes {wanted}",
        metadata={"stored": str(stored), "embedder": str(wanted)},
    )


def store_in_use(path: str) -> TenthError:
    """The embedded store is locked."""
    return TenthError(
        Code.FAILED_PRECONDITION,
        Reason.STORE_IN_USE,
        f"{path} is open in another process: give every replica its own TENTH_DATA_DIR",
    )

"""Where what is durable of a batch lies: whole objects under names, and sequences of records in them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from google.protobuf.internal.decoder import _DecodeVarint  # type: ignore[attr-defined]
from google.protobuf.internal.encoder import _VarintBytes  # type: ignore[attr-defined]
from google.protobuf.message import DecodeError, Message

from mesh.errors import Code, TenthError
from services.batch.errors import Reason, store_damaged

_SEGMENT = re.compile(r"(?!\.)[A-Za-z0-9._%=-]{1,250}")
M = TypeVar("M", bound=Message)


class ObjectNotFound(LookupError):  # noqa: N818  # An answer more often than a failure.
    """There is no object of that name."""


class ObjectStore(Protocol):
    """Objects by name. A name is made of segments with "/" between them (``check_name``).

    Every method raises UNAVAILABLE (STORE_UNAVAILABLE) while the store cannot be reached.
    """

    async def put(self, name: str, content: bytes) -> None:
        """Write an object, whole or not at all; it replaces one of the same name. Durable when this returns.

        Raises RESOURCE_EXHAUSTED (STORE_FULL) when there is no room.
        """

    async def get(self, name: str) -> bytes:
        """An object's content. Raises ObjectNotFound."""

    async def delete(self, name: str) -> None:
        """Remove an object; no error when there is none."""

    async def exists(self, name: str) -> bool:
        """Whether there is an object of that name."""

    def list(self, prefix: str, after: str = "") -> AsyncIterator[str]:
        """Names that begin with ``prefix`` and stand after ``after``, in the order of their UTF-8 bytes."""

    async def ping(self) -> None:
        """Raise while the store cannot be used."""

    async def close(self) -> None:
        """Let go of what the store holds open."""


def check_name(name: str) -> str:
    """The name, if an object may have it: segments of letters, digits and "._%=-", none beginning with a dot.

    Raises INTERNAL (STORE_NAME): names are made by this service, so another one is a defect, not a caller's fault.
    """
    if len(name) > 1000 or not all(_SEGMENT.fullmatch(segment) for segment in name.split("/")):
        raise TenthError(Code.INTERNAL, Reason.STORE_NAME, f"no object may be named {name!r}")
    return name


def write_records(records: Iterable[Message]) -> bytes:
    """Messages one after the other, each with its length before it as a varint."""
    parts = bytearray()
    for record in records:
        content = record.SerializeToString(deterministic=True)
        parts += _VarintBytes(len(content))
        parts += content
    return bytes(parts)


def read_records(content: bytes, kind: type[M]) -> Iterator[M]:
    """The messages of an object. Raises DATA_LOSS (STORE_DAMAGED) when it is cut or holds something else."""
    position = 0
    while position < len(content):
        try:
            size, start = _DecodeVarint(content, position)
            position = start + size
            if position > len(content):
                raise store_damaged(f"a {kind.DESCRIPTOR.name} is cut")
            yield kind.FromString(content[start:position])
        except (DecodeError, IndexError) as error:
            raise store_damaged(f"no {kind.DESCRIPTOR.name}") from error


def open_store(url: str, *, s3_endpoint_url: str = "", s3_region: str = "") -> ObjectStore:
    """The store at a URL: a path or ``file:///path`` is a directory, ``s3://bucket/prefix`` an S3 bucket.

    ``s3_endpoint_url`` and ``s3_region``: empty means what the usual AWS environment and files say, as do the
    credentials. Raises ValueError for any other URL. Connects to nothing.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3":
        from services.batch.objects_s3 import S3Store  # Not every deployment has boto3 installed.

        if not parts.netloc:
            raise ValueError(f"{url!r} names no bucket: write s3://bucket/prefix")
        return S3Store(parts.netloc, parts.path, endpoint_url=s3_endpoint_url, region=s3_region)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise ValueError(f"{url!r} is no local path: write file:///path")
        path = Path(unquote(parts.path))
    elif "://" not in url and url:
        path = Path(url)
    else:
        raise ValueError(f"{url!r} is no store: write a path, file:///path or s3://bucket/prefix")
    from services.batch.objects_directory import DirectoryStore

    return DirectoryStore(path)

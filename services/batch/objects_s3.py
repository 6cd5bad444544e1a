"""Objects in an S3 bucket, or in whatever else speaks S3."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from services.batch.errors import store_full, store_unavailable
from services.batch.objects import ObjectNotFound, check_name

_ABSENT = frozenset({"NoSuchKey", "404", "NotFound"})
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientCapacity", "507"})
_CONNECT_SECONDS, _READ_SECONDS, _TRIES = 5, 60, 4
T = TypeVar("T")


class S3Store:
    """An ObjectStore in a bucket, under a prefix. S3's PUT is whole or not at all, and its listing ordered by bytes.

    Credentials come from the usual environment, files or machine role. Calls run in threads: boto3 knows no other way.
    """

    def __init__(self, bucket: str, prefix: str, *, endpoint_url: str = "", region: str = "") -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._endpoint_url = endpoint_url
        self._region = region
        self._made: Any = None
        self._making = threading.Lock()

    async def put(self, name: str, content: bytes) -> None:
        """Write an object, whole or not at all; it replaces one of the same name. Durable when this returns."""
        key = self._key(name)
        await self._do(name, lambda s3: s3.put_object(Bucket=self._bucket, Key=key, Body=content))

    async def get(self, name: str) -> bytes:
        """An object's content. Raises ObjectNotFound."""
        key = self._key(name)

        def read(s3: Any) -> bytes:
            content: bytes = s3.get_object(Bucket=self._bucket, Key=key)["Body"].read()
            return content

        return await self._do(name, read)

    async def delete(self, name: str) -> None:
        """Remove an object; no error when there is none."""
        key = self._key(name)
        await self._do(name, lambda s3: s3.delete_object(Bucket=self._bucket, Key=key))

    async def exists(self, name: str) -> bool:
        """Whether there is an object of that name."""
        key = self._key(name)
        try:
            await self._do(name, lambda s3: s3.head_object(Bucket=self._bucket, Key=key))
        except ObjectNotFound:
            return False
        return True

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[str]:
        """Names that begin with ``prefix`` and stand after ``after``, in the order of their UTF-8 bytes."""
        options = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        if after:
            options["StartAfter"] = self._prefix + after
        while True:
            page = await self._do(prefix, lambda s3: s3.list_objects_v2(**options))
            for entry in page.get("Contents", ()):
                yield entry["Key"][len(self._prefix) :]
            if not page.get("IsTruncated"):
                return
            options["ContinuationToken"] = page["NextContinuationToken"]

    async def ping(self) -> None:
        """Raise while the bucket cannot be read."""
        await self._do("", lambda s3: s3.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1))

    async def close(self) -> None:
        """Close the connections."""
        if self._made is not None:
            await asyncio.to_thread(self._made.close)
            self._made = None

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name)

    def _client(self) -> Any:
        with self._making:
            if self._made is None:
                self._made = self._make()
            return self._made

    def _make(self) -> Any:
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self._endpoint_url or None,
            region_name=self._region or None,
            config=Config(
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
                retries={"mode": "standard", "total_max_attempts": _TRIES},
                max_pool_connections=32,
                # Others than AWS know neither virtual hosts nor the newer checksums.
                s3={"addressing_style": "path" if self._endpoint_url else "auto"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    async def _do(self, name: str, work: Callable[[Any], T]) -> T:
        try:
            return await asyncio.to_thread(lambda: work(self._client()))
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _ABSENT:
                raise ObjectNotFound(name) from None
            typed = store_full if code in _FULL else store_unavailable
            raise typed(f"{name}: {code}") from error
        except (BotoCoreError, OSError) as error:
            raise store_unavailable(f"{name}: {type(error).__name__}") from error

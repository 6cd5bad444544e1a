"""What is sent to make a provider's batch: put into a temporary file as it comes, never in memory whole."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mesh.errors import Code, TenthError, invalid_argument
from services.inference.errors import Reason

_PIECE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What a provider takes in one batch, and after how many seconds it gives up on it."""

    items: int
    bytes: int
    expiry_seconds: float = 86_400.0


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands before, between and after the items of an upload."""

    before: bytes = b""
    between: bytes = b"\n"
    after: bytes = b"\n"


class Upload:
    """The items of a batch in a file without a name, which is gone with its handle, however the process ends."""

    def __init__(self, limits: Limits, frame: Frame, directory: Path | None = None) -> None:
        """``directory`` None: the system's place for temporary files."""
        self._limits = limits
        self._frame = frame
        self._names: set[str] = set()
        self.file: IO[bytes] = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115  # closed by close()
        self.file.write(frame.before)
        self.size = len(frame.before) + len(frame.after)

    @property
    def count(self) -> int:
        """Items in it."""
        return len(self._names)

    def add(self, custom_id: str, item: bytes) -> None:
        """One more item. Raises PROVIDER_BATCH_TOO_LARGE, and INVALID_ARGUMENT for one that is there."""
        if custom_id in self._names:
            raise invalid_argument("this attempt of this request is in the batch", field="generation.request_id")
        between = self._frame.between if self._names else b""
        limits, size = self._limits, self.size + len(between) + len(item)
        if self.count >= limits.items or size > limits.bytes:
            raise TenthError(
                Code.INVALID_ARGUMENT,
                Reason.PROVIDER_BATCH_TOO_LARGE,
                f"the provider takes at most {limits.items} generations and {limits.bytes} bytes in one batch",
                "generation",
                metadata={"max_item_count": str(limits.items), "max_byte_count": str(limits.bytes)},
            )
        self._names.add(custom_id)
        self.size = size
        self.file.write(between)
        self.file.write(item)

    def finish(self) -> None:
        """No more comes."""
        self.file.write(self._frame.after)
        self.file.flush()

    def rewound(self) -> IO[bytes]:
        """The finished file, at its start."""
        self.file.seek(0)
        return self.file

    async def pieces(self) -> AsyncIterator[bytes]:
        """The finished file, piece by piece."""
        file = self.rewound()
        while piece := file.read(_PIECE_BYTES):
            yield piece

    def close(self) -> None:
        """Let go of it."""
        self.file.close()

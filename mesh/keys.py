"""The secrets that sign identity between services, rotated without a restart.

The file has one secret per line, at least 16 bytes each. The first signs; every one is accepted. To rotate: add the new
one as the second line everywhere, move it to the first, remove the old one; each step is taken within two seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("tenth.auth")

_RELOAD_SECONDS = 2.0
_LEAST_BYTES = 16


class IdentityKeys:
    """The secrets in force. Without a file and without a fixed key there are none, and no identity is accepted."""

    def __init__(self, path: Path | None = None, fixed: bytes = b"", now: Callable[[], float] = time.monotonic) -> None:
        """Raises OSError and ValueError when the file is absent or a secret too short."""
        self._path = path
        self._now = now
        self._checked_at = now()
        self._stamp = (0, 0)
        self.accepted: tuple[bytes, ...] = (fixed,) if fixed else ()
        self.version = 0
        """Changes with the secrets; what was made with the old ones is to be forgotten then."""
        if path is not None:
            self._load(path)

    @property
    def signing(self) -> bytes:
        """The secret that signs; empty without any."""
        return self.accepted[0] if self.accepted else b""

    def refresh(self) -> int:
        """Take a changed file, looked at every two seconds; returns ``version``. A bad file leaves the old secrets."""
        if self._path is not None and self._now() - self._checked_at >= _RELOAD_SECONDS:
            self._checked_at = self._now()
            try:
                if _stamp(self._path) != self._stamp:
                    self._load(self._path)
                    log.info("%s was read again", self._path)
            except (OSError, ValueError) as error:
                log.error("the changed identity key is not taken, the old one stays: %s", error)
        return self.version

    def _load(self, path: Path) -> None:
        stamp = _stamp(path)
        secrets = tuple(line.strip() for line in path.read_bytes().splitlines() if line.strip())
        if not secrets or any(len(secret) < _LEAST_BYTES for secret in secrets):
            raise ValueError(f"{path}: the identity key must have at least {_LEAST_BYTES} bytes")
        self._stamp = stamp
        if secrets != self.accepted:
            self.accepted = secrets
            self.version += 1


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_ino

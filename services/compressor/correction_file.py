"""Learned token corrections in a JSON file."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from pathlib import Path

from services.compressor.corrections import CorrectionRules, Corrections

log = logging.getLogger("tenth.compressor.tokens")


class CorrectionFile:
    """A file that is replaced as a whole, so that a crash leaves the old one."""

    def __init__(self, path: Path) -> None:
        """Nothing is read or written yet."""
        self._path = path

    def load(self, rules: CorrectionRules | None = None) -> Corrections:
        """What was kept; empty corrections where there is none or it is damaged (logged)."""
        try:
            return Corrections.from_json(self._path.read_text("utf-8"), rules)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.warning("token corrections start anew, %s: %s", self._path, error)
        return Corrections(rules)

    def save(self, text: str) -> None:
        """Replace the file. Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).replace(self._path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise

"""The rules file, read at the start. A wrong one ends the start and names its setting."""

from __future__ import annotations

from pathlib import Path

from mesh.catalog import CatalogError, WatchedFile
from services.router.rules import Rules, parse_rules


def rules_file(path: Path | None) -> WatchedFile[Rules] | None:
    """The rules of the file, if one is set. Raises SystemExit: without its rules a request may go where it must not."""
    try:
        return None if path is None else WatchedFile(path, parse_rules)
    except (CatalogError, OSError) as error:
        raise SystemExit(f"setting TENTH_ROUTER_RULES_FILE: {error}") from None

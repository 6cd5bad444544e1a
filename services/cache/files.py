"""The files that the cache reads at its start. A wrong one ends the start and names its setting."""

from __future__ import annotations

from pathlib import Path

from mesh.catalog import CatalogError, WatchedFile
from services.cache.namespaces import NamespacePolicy, Rules, parse_namespaces
from services.cache.verifier import Verifier, load_verifier


def namespaces_file(path: Path | None, defaults: NamespacePolicy) -> WatchedFile[Rules] | None:
    """The rules of the file, if there is one. Raises SystemExit."""
    try:
        return None if path is None else WatchedFile(path, lambda text, name: parse_namespaces(text, name, defaults))
    except (CatalogError, OSError) as error:
        raise SystemExit(f"setting TENTH_CACHE_NAMESPACES_FILE: {error}") from None


def weights(folder: Path, embedder: str) -> Verifier | None:
    """The weights of an embedder, if there are any. Raises SystemExit: a damaged file says what a wrong answer is."""
    try:
        return load_verifier(folder, embedder)
    except (ValueError, OSError) as error:
        raise SystemExit(f"setting TENTH_CACHE_WEIGHTS_DIR: {error}") from None

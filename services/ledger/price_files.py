"""Price files as rows: LiteLLM's map, and our own YAML. Pure: bytes in, rows out."""

from __future__ import annotations

import gzip
import io
import zlib
from dataclasses import replace
from enum import StrEnum

from mesh.catalog import CatalogError
from services.ledger.errors import price_file_invalid
from services.ledger.importing import FileRow
from services.ledger.litellm_map import parse_map
from services.ledger.seeds import parse_prices

LARGEST_BYTES = 32 * 1024 * 1024
"""Largest file, unpacked."""
_GZIP = b"\x1f\x8b"


class Format(StrEnum):
    """What a price file is."""

    LITELLM = "litellm"
    TENTH = "tenth"


def read_file(content: bytes, form: Format, source: str, valid_from_ns: int | None) -> list[FileRow]:
    """The rows of a file, plain or gzip. Raises PRICE_FILE_INVALID for one that cannot be read.

    LiteLLM's map takes the source and the instant for all its rows. Our own rows carry theirs: a source that is given
    stands in for all of them, and ``valid_from_ns`` is for the other format only.
    """
    text = unpack(content)
    if form is Format.LITELLM:
        return parse_map(text, source, valid_from_ns or 0)
    try:
        rows = parse_prices(text, "the file")
    except CatalogError as error:
        raise price_file_invalid(str(error)[:500]) from None
    except RecursionError:
        raise price_file_invalid("not YAML: nested too deep") from None
    rows = [replace(row, source=source) for row in rows] if source else rows
    return [FileRow(row.model, row, "" if row.price.confirmed else "not confirmed in the file") for row in rows]


def unpack(content: bytes) -> str:
    """The text of a file. It is never unpacked beyond the limit. Raises PRICE_FILE_INVALID."""
    if content.startswith(_GZIP):
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
                content = packed.read(LARGEST_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise price_file_invalid(f"damaged gzip: {error}") from None
    if len(content) > LARGEST_BYTES:
        raise price_file_invalid(f"more than {LARGEST_BYTES} bytes unpacked")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise price_file_invalid(f"not UTF-8: {error}") from None

"""A table of a benchmark that is both printed in Markdown and shown on the HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.cells import head, row


@dataclass(frozen=True, slots=True)
class Sheet:
    """Rows of text under titles."""

    name: str
    """Of the table, for who takes one of several; no spaces."""
    titles: tuple[str, ...]
    texts: int
    """How many of the first columns are text; the others are numbers."""
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        """As a Markdown table. Raises ValueError when a row has not as many cells as there are titles."""
        for cells in self.rows:
            if len(cells) != len(self.titles):
                raise ValueError(f"{self.name}: {len(cells)} cells under {len(self.titles)} titles")
        lines = head(*self.titles, texts=self.texts)
        return "\n".join([*lines, *(row(*(cell.replace("|", "\\|") for cell in cells)) for cells in self.rows)])


def percent(value: float | None, places: int = 1) -> str:
    """A share as a percentage; empty when there is none, and never ``-0.0%``."""
    if value is None:
        return ""
    text = f"{100 * value:.{places}f}"
    return f"{text.removeprefix('-') if float(text) == 0 else text}%"

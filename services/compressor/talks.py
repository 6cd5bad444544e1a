"""How the earlier messages of a talk were sent, so that its next request can begin with the same bytes. Pure.

A provider's prompt cache reads a start only as it was sent. A talk that was shortened once and is then sent whole, or
shortened another way, pays for all of it again; sent as before, with what is new behind it, it reads the short start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.compressor.prompt import Message

_BYTES_PER_FORM, _BYTES_PER_RUN, _BYTES_PER_EDIT = 400, 150, 200
"""About what a form takes in memory beside its texts, at one byte a character or two."""


@dataclass(frozen=True, slots=True)
class Form:
    """What became of the first ``count`` messages of a request."""

    count: int
    dropped: tuple[tuple[int, int], ...]
    """Runs of positions that were left out: the first, and the first behind it."""
    edited: tuple[tuple[int, tuple[str, ...]], ...]
    """Positions whose texts were others, with these."""

    @property
    def changes(self) -> bool:
        """True when anything was left out or edited."""
        return bool(self.dropped or self.edited)

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        letters = sum(2 * len(text) for _, texts in self.edited for text in texts)
        return _BYTES_PER_FORM + _BYTES_PER_RUN * len(self.dropped) + _BYTES_PER_EDIT * len(self.edited) + letters

    def of(self, messages: Sequence[Message]) -> tuple[Message, ...] | None:
        """The messages of a later request as they were sent, with what is new; None where a pinned one was changed."""
        gone = {at for first, behind in self.dropped for at in range(first, behind)}
        texts = dict(self.edited)
        if any(messages[at].pinned for at in (*gone, *texts)):
            return None
        return tuple(
            replace(message, texts=texts[at]) if at in texts else message
            for at, message in enumerate(messages)
            if at not in gone
        )


def form_of(asked: Sequence[Message], sent: Sequence[Message]) -> Form:
    """The form in which the messages asked with were sent; those sent are the same by ``index``."""
    now = {message.index: message for message in sent}
    runs: list[tuple[int, int]] = []
    edited = []
    for at, message in enumerate(asked):
        form = now.get(message.index)
        if form is None:
            first = runs.pop()[0] if runs and runs[-1][1] == at else at
            runs.append((first, at + 1))
        elif form.texts != message.texts:
            edited.append((at, form.texts))
    return Form(len(asked), tuple(runs), tuple(edited))

"""Aliases: a question that a judge found to be answered by a stored answer gets an entry of its own with that answer.

An alias lives and dies with what it was made from: it has its source's age, expiry, documents and tags, and two
keywords of its own by which it is found when the source or the source's user is deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from services.cache.keys import Question
from services.cache.store import Condition, Entry, entry_id

_OF_ENTRY, _OF_USER = "alias_of=", "alias_user="
"""Callers' tags begin with a number (store.tag), so none of theirs looks like these."""


def alias_of(source: Entry, question: Question, exact_key: str, text: str, scope: str, now: float) -> Entry:
    """The entry of a question that ``source`` answers. ``text`` is what is embedded for it; ``now`` Unix seconds."""
    marks = {mark for mark in source.tags if mark.startswith((_OF_ENTRY, _OF_USER))}
    if not any(mark.startswith(_OF_ENTRY) for mark in marks):  # An alias of an alias is one of the first.
        marks.add(_OF_ENTRY + source.entry_id)
    if source.user_id:
        marks.add(_OF_USER + source.user_id)
    return replace(
        source,
        entry_id=entry_id(exact_key),
        exact_key=exact_key,
        scope=scope,
        user_id=question.user_id,
        question=text,
        turn=question.last_turn,
        tags=tuple(sorted({*source.tags, *marks})),
        hits=0,
        used=now,
        right_count=0,
        wrong_count=0,
    )


def aliases_of_entries(entry_ids: Iterable[str]) -> Condition:
    """Finds the aliases that were made from any of some entries."""
    return Condition("tags", tuple(_OF_ENTRY + identifier for identifier in entry_ids))


def aliases_of_user(user_id: str) -> Condition:
    """Finds the aliases whose answer was made for a user."""
    return Condition("tags", (_OF_USER + user_id,))


def source_of(tags: Sequence[str]) -> str:
    """The entry that an alias was made from; empty for an entry that is none."""
    return next((mark.removeprefix(_OF_ENTRY) for mark in tags if mark.startswith(_OF_ENTRY)), "")

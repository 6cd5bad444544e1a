"""How messages hang together: turns, tool exchanges, what must stay, who may follow whom. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from services.compressor.prompt import ASSISTANT, SYSTEM, TOOL, USER, Message, last_user

Groups = Sequence[frozenset[int]]
"""For each message the positions that stay or go with it, its own included."""


def protected_positions(messages: Sequence[Message], groups: Groups) -> set[int]:
    """Positions that always stay."""
    last = last_user(messages)
    tail = len(messages) - 1 if last is None else last
    kept = {at for at, message in enumerate(messages) if message.role == SYSTEM or message.pinned or at >= tail}
    return closed(kept, groups)


def turn_numbers(messages: Sequence[Message]) -> list[int]:
    """For each message the number of its turn: a user message with what follows up to the next."""
    numbers, turn, after_user = [], 0, False
    for message in messages:
        if message.role == USER and after_user:
            turn += 1
            after_user = False
        # Several user messages in a row are one turn.
        after_user = after_user or message.role in (ASSISTANT, TOOL)
        numbers.append(turn)
    return numbers


def exchanges(messages: Sequence[Message]) -> Groups:
    """For each message the positions that must stay with it: a call with all its results."""
    owner: dict[str, int] = {}
    members: dict[int, set[int]] = {}
    for at, message in enumerate(messages):
        if message.calls:
            members[at] = {at}
            owner.update((call.id, at) for call in message.calls)
        elif message.role == TOOL and message.answers in owner:
            members[owner[message.answers]].add(at)
    result = [frozenset({at}) for at in range(len(messages))]
    for group in members.values():
        shared = frozenset(group)
        for at in shared:
            result[at] = shared
    return result


def closed(positions: set[int], groups: Groups) -> set[int]:
    """The positions with all that must stay with them."""
    return positions.union(*{id(groups[at]): groups[at] for at in positions}.values())


def may_follow(left: str, right: str) -> bool:
    """What strict chat templates allow; an empty ``left`` is the beginning."""
    if right == USER:
        return left in ("", ASSISTANT)
    if right == ASSISTANT:
        return left in (USER, TOOL)
    return True

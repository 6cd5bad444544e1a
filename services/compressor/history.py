"""The ``history`` strategy: which messages stay within a token budget. Pure and deterministic.

``keep_history`` keeps the newest turns. ``select_history`` keeps what the question is likely to need:

- always: system and pinned messages, the last user message and all after it; for a call or a result that stays, its
  whole exchange;
- then the newest turns before it (``recent_turn_count``), then messages by relevance for their tokens, while they fit;
- roles: where a gap would make two user or two assistant messages neighbours, have a user follow a tool's result, or
  an assistant begin, one message of the gap stays, cut down to ``[…]`` unless there is room for it whole;
- optionally, long old messages come in a shortened form (``history_shorten.py``) while there is no room for them whole.

Messages keep their order and roles. A history within its budget comes back as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mesh.errors import Code, TenthError
from services.compressor.errors import Reason
from services.compressor.exchanges import Groups, closed, exchanges, may_follow, protected_positions, turn_numbers
from services.compressor.history_relevance import Relevance, Vectors, Weights, relevance
from services.compressor.history_shorten import shortened
from services.compressor.prompt import ASSISTANT, SYSTEM, USER, Message, last_user

STUB = "[…]"
"""What stands for a message that only its role needs."""
_SEARCH_STEPS = 14
_FILLERS_SEEN = 64
"""So far back from the end of a gap a filling without pictures is looked for."""

Cost = Callable[[Message], int]


@dataclass(frozen=True, slots=True)
class HistorySettings:
    """How ``select_history`` fills its budget."""

    weights: Weights
    cost_exponent: float = 0.5
    """0 takes the most relevant messages whatever they cost, 1 the most relevant for their tokens."""
    recent_turn_count: int = 1
    """Turns before the last user message that come before all others, while they fit."""
    keep_roles_apart: bool = True
    """Whether gaps are stubbed where neighbours would not be allowed by strict chat templates."""
    shorten: bool = False
    """Whether long old messages may stay by their most relevant sentences."""
    shorten_over_tokens: int = 200
    """Messages of more tokens are long; they are cut to about so many."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What stays of a history."""

    messages: tuple[Message, ...]
    positions: tuple[int, ...]
    """Their places in the history as it was given."""
    shortened: tuple[int, ...]
    """Positions whose text was shortened."""
    stubbed: tuple[int, ...]
    """Positions of which only the role stands."""
    dropped: tuple[int, ...]
    token_count: int
    original_token_count: int
    protected_token_count: int
    """Of what had to stay."""
    method: str
    """By what measure the rest was chosen; empty when everything stayed."""

    @property
    def reason(self) -> str:
        """What was done, for a person."""
        parts = [f"{len(self.dropped)} of {len(self.dropped) + len(self.positions)} messages dropped by {self.method}"]
        if self.shortened:
            parts.append(f"{len(self.shortened)} shortened")
        if self.stubbed:
            parts.append(f"{len(self.stubbed)} left as {STUB}")
        return ", ".join(parts)


def keep_history(messages: Sequence[Message], budget_tokens: int, cost: Cost) -> list[int]:
    """Positions of the messages to keep, in order, within a token budget: the newest.

    System and pinned messages and the last user message with all that follows are always kept, even over budget;
    so is, for a kept tool call or result, its whole exchange. Then whole turns are added, newest first, until one
    does not fit. A tool result is never parted from its call.
    """
    groups = exchanges(messages)
    turn_of = turn_numbers(messages)
    costs = [cost(message) for message in messages]
    kept = protected_positions(messages, groups)
    spent = sum(costs[at] for at in kept)
    turns: dict[int, set[int]] = {}
    for at, turn in enumerate(turn_of):
        turns.setdefault(turn, set()).add(at)
    for turn in sorted(turns, reverse=True):
        more = closed(turns[turn], groups) - kept
        price = sum(costs[at] for at in more)
        if spent + price > budget_tokens:
            break
        kept |= more
        spent += price
    return sorted(kept)


def select_history(
    messages: Sequence[Message],
    budget_tokens: int,
    cost: Cost,
    settings: HistorySettings,
    vectors: Vectors | None = None,
    found: Relevance | None = None,
) -> Selection:
    """The messages to send within a token budget; ``vectors`` has one row per message, ``found`` scores made before.

    Raises BUDGET_TOO_SMALL, with ``over_token_count`` in its metadata, when what must stay is alone over it.
    """
    costs = [cost(message) for message in messages]
    total = sum(costs)
    groups = exchanges(messages)
    protected = protected_positions(messages, groups)
    least = sum(costs[at] for at in protected)
    if total <= budget_tokens:
        every = tuple(range(len(messages)))
        return Selection(tuple(messages), every, (), (), (), total, total, least, "")
    filler = _Filler(messages, costs, groups, cost) if settings.keep_roles_apart else None
    bare = _Choice(set(protected), {}, least)
    bare.repair(filler)
    if bare.spent > budget_tokens:
        over = bare.spent - budget_tokens
        raise TenthError(
            Code.INVALID_ARGUMENT,
            Reason.BUDGET_TOO_SMALL,
            f"what must stay has {bare.spent} tokens, {over} over the budget of {budget_tokens}",
            "request.messages",
            metadata={
                "over_token_count": str(over),
                "protected_token_count": str(bare.spent),
                "budget_token_count": str(budget_tokens),
            },
        )
    asked, earlier = questions(messages)
    if found is None:
        found = relevance(messages, asked, earlier, settings.weights, vectors)
    units = _units(messages, costs, groups, protected)
    if settings.shorten:
        units = [_with_short(unit, messages, asked, settings.shorten_over_tokens, cost) for unit in units]
    units = _ranked(units, messages, found.scores.tolist(), settings)
    choice = _fill(bare, protected, least, units, filler, budget_tokens)
    _give_back(choice, units, costs, budget_tokens)
    positions = sorted(choice.kept)
    return Selection(
        tuple(choice.forms[at].message if at in choice.forms else messages[at] for at in positions),
        tuple(positions),
        tuple(at for at in positions if at in choice.forms and not choice.forms[at].stub),
        tuple(at for at in positions if at in choice.forms and choice.forms[at].stub),
        tuple(at for at in range(len(messages)) if at not in choice.kept),
        choice.spent,
        total,
        bare.spent,
        found.method,
    )


@dataclass(frozen=True, slots=True)
class _Form:
    """A message in fewer words."""

    message: Message
    tokens: int
    stub: bool = False


@dataclass(frozen=True, slots=True)
class _Unit:
    """Messages that stay or go together; ``short`` is the shortened form of a single long one."""

    positions: tuple[int, ...]
    tokens: int
    short: _Form | None = None


@dataclass(slots=True)
class _Choice:
    """A choice under way; ``forms`` has the positions that are not kept whole."""

    kept: set[int]
    forms: dict[int, _Form]
    spent: int

    def repair(self, filler: _Filler | None) -> None:
        """Fill the gaps that need it."""
        if filler is not None:
            for at in filler.missing(sorted(self.kept)):
                self.kept.add(at)
                self.spent += filler.price(at)
                form = filler.form(at)
                if form is not None:
                    self.forms[at] = form


class _Filler:
    """Finds the gaps whose ends may not be neighbours, and what fills them."""

    def __init__(self, messages: Sequence[Message], costs: Sequence[int], groups: Groups, cost: Cost) -> None:
        self._messages = messages
        self._costs = costs
        self._groups = groups
        self._cost = cost
        self._forms: dict[int, _Form | None] = {}

    def form(self, at: int) -> _Form | None:
        """The message with nothing but its role and its pictures; None when it is no longer than that itself."""
        if at not in self._forms:
            message = self._messages[at]
            stub = replace(message, texts=(STUB, *("" for _ in message.texts[1:])))
            tokens = self._cost(stub)
            self._forms[at] = _Form(stub, tokens, stub=True) if tokens < self._costs[at] else None
        return self._forms[at]

    def price(self, at: int) -> int:
        """Tokens that filling a gap with this message costs."""
        form = self.form(at)
        return self._costs[at] if form is None else form.tokens

    def missing(self, kept: Sequence[int]) -> list[int]:
        """One position of each gap that needs filling; a gap that holds nothing fitting stays as it is."""
        result = []
        before = -1
        for at in kept:
            # System messages stand anywhere, and part nobody.
            if self._messages[at].role == SYSTEM:
                continue
            if at > before + 1 and not may_follow(self._role(before), self._role(at)):
                filling = self._best(before, at)
                if filling is not None:
                    result.append(filling)
            before = at
        return result

    def _role(self, at: int) -> str:
        return self._messages[at].role if at >= 0 else ""

    def _best(self, before: int, after: int) -> int | None:
        left, right = self._role(before), self._role(after)
        best: int | None = None
        for at in range(after - 1, max(before, after - _FILLERS_SEEN), -1):
            message = self._messages[at]
            alone = len(self._groups[at]) == 1 and not message.calls and message.role in (USER, ASSISTANT)
            if not alone or not may_follow(left, message.role) or not may_follow(message.role, right):
                continue
            if best is None or self.price(at) < self.price(best):
                best = at
            if not message.image_details:
                break
        return best


def _fill(
    bare: _Choice, protected: set[int], least: int, units: Sequence[_Unit], filler: _Filler | None, budget_tokens: int
) -> _Choice:
    """The units that fit, best first, with the stubs that they make necessary.

    Stubs are known only when a choice is made, so the room to leave for them is searched for.
    """

    def tried(limit: int) -> _Choice:
        choice = _Choice(set(protected), {}, least)
        for unit in units:
            price = unit.short.tokens if unit.short else unit.tokens
            if choice.spent + price > limit:
                continue
            choice.spent += price
            choice.kept.update(unit.positions)
            if unit.short:
                choice.forms[unit.positions[0]] = unit.short
        choice.repair(filler)
        return choice

    best, low, high, limit = bare, least, budget_tokens, budget_tokens
    for _ in range(_SEARCH_STEPS):
        choice = tried(limit)
        if choice.spent <= budget_tokens:
            low, best = limit, choice
        else:
            high = limit
        if high - low <= 1 or low == budget_tokens:
            break
        # Lower by what it was over, and a little more, for fewer messages have more gaps; after that, halving.
        over = max(0, choice.spent - budget_tokens)
        limit = limit - over - over // 4 if best is bare else (low + high) // 2
        if not low < limit < high:
            limit = (low + high) // 2
    return best


def _give_back(choice: _Choice, units: Sequence[_Unit], costs: Sequence[int], budget_tokens: int) -> None:
    """Spend what is left on the whole text of messages that are shortened or stubbed, the best first."""
    for unit in units:
        at = unit.positions[0]
        form = choice.forms.get(at)
        if form is not None and choice.spent + costs[at] - form.tokens <= budget_tokens:
            choice.spent += costs[at] - form.tokens
            del choice.forms[at]


def _units(messages: Sequence[Message], costs: Sequence[int], groups: Groups, protected: set[int]) -> list[_Unit]:
    """What is not protected."""
    units = []
    for at in range(len(messages)):
        if at not in protected and min(groups[at], default=at) == at:
            positions = tuple(sorted(groups[at]))
            units.append(_Unit(positions, sum(costs[position] for position in positions)))
    return units


def _ranked(
    units: Sequence[_Unit], messages: Sequence[Message], scores: Sequence[float], settings: HistorySettings
) -> list[_Unit]:
    """The units in the order in which they are to be taken."""
    turn_of = turn_numbers(messages)
    last = last_user(messages)
    current = turn_of[last if last is not None else len(messages) - 1]

    def rank(unit: _Unit) -> tuple[int, float, int]:
        tokens = unit.short.tokens if unit.short else unit.tokens
        score = max(scores[position] for position in unit.positions)
        score -= settings.cost_exponent * math.log(max(1, tokens))
        # The newest turns come before all others, newest first.
        age = current - turn_of[unit.positions[-1]]
        return min(age, settings.recent_turn_count + 1), -score, -unit.positions[0]

    return sorted(units, key=rank)


def _with_short(unit: _Unit, messages: Sequence[Message], asked: str, limit_tokens: int, cost: Cost) -> _Unit:
    message = messages[unit.positions[0]]
    if len(unit.positions) > 1 or unit.tokens <= limit_tokens or message.role not in (USER, ASSISTANT):
        return unit
    short = shortened(message, asked, limit_tokens / unit.tokens)
    tokens = cost(short) if short is not None else unit.tokens
    return replace(unit, short=_Form(short, tokens)) if short is not None and tokens < unit.tokens else unit


def questions(messages: Sequence[Message]) -> tuple[str, str]:
    """The text of the last user message, and of the one before it."""
    asked = ["\n".join(message.texts) for message in messages if message.role == USER][-2:]
    return (asked[-1] if asked else ""), (asked[0] if len(asked) > 1 else "")

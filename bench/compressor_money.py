"""Dollars that the compressor saves beside a provider's own prompt cache, for every probability that the cache holds.

Conversations are played through the compressor's real policy against a simulated provider: it reads the longest start
that it was sent within its time, in its steps and from its least length on, and charges for writing. Each request comes
soon enough for the cache with the probability ``h``, else an hour later. Everyone plays the same requests at the same
times, each against a provider of its own: nothing cut (``off``), all cut that can be (``always``), the compressor as it
is (``ours``), and with hindsight the best of every set of strategies, chosen for each conversation. Every kind of
application is a world of its own, so that what one saves cannot hide what another loses.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.progress import blocks
from bench.result import Result
from services.compressor.choosing import FittedChunks, fitted_chunks
from services.compressor.documents import Documents
from services.compressor.modes import ORDER, USUAL, Plan
from services.compressor.money import CacheTerms, InputPrice
from services.compressor.policy import compress
from services.compressor.prefixes import PrefixTracker
from services.compressor.prompt import ASSISTANT, SYSTEM, USER, Message, Prompt, last_user
from services.compressor.weighing import Facts, Scales
from services.compressor.weights import load

PROBABILITIES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95)
SOON_SECONDS, LATE_SECONDS = 40.0, 3600.0
_BLOCK_TOKENS = 64
_MEMORY_BYTES = 256 << 20
_CHUNKS = 8


@dataclass(frozen=True, slots=True)
class Style:
    """How a provider caches and charges. ``points``: only at marked places, else in steps anywhere."""

    name: str
    price: InputPrice
    minimum_tokens: int
    step_tokens: int
    points: bool = False
    ttl_seconds: float = 300.0

    @property
    def terms(self) -> CacheTerms:
        """The same as the compressor knows it."""
        return CacheTerms(self.minimum_tokens, self.minimum_tokens, self.step_tokens, self.ttl_seconds, self.points)


STYLES = (
    Style("openai_half", InputPrice(2_500_000_000, 1_250_000_000, 2_500_000_000), 1024, 128),
    Style("openai_tenth", InputPrice(1_250_000_000, 125_000_000, 1_250_000_000), 1024, 128),
    Style("anthropic", InputPrice(1_000_000_000, 100_000_000, 1_250_000_000), 4096, 1, points=True),
    Style("anthropic_low", InputPrice(5_000_000_000, 500_000_000, 6_250_000_000), 1024, 1, points=True),
    Style("gemini", InputPrice(300_000_000, 30_000_000, 300_000_000), 2048, 1),
)
"""List prices of gpt-4o; of a model read at a tenth; of claude-haiku-4-5 and -opus-4-7; of gemini-2.5-flash."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt as a provider is sent it: digests of its growing start, with the tokens up to there."""

    total: int
    blocks: tuple[tuple[bytes, int], ...]
    points: tuple[tuple[bytes, int], ...]
    """Ends of messages, the last user message apart when chunks are before it."""
    marks: frozenset[int]
    """Which of the points are marked for the cache."""


class Provider:
    """A simulated provider's prompt cache and bill."""

    def __init__(self, style: Style) -> None:
        self._style = style
        self._kept: dict[bytes, float] = {}

    def bill(self, sent: Rendered, now: float) -> tuple[float, int]:
        """Nano-USD of the input, and the tokens read from the cache; what is sent is kept from now on."""
        style = self._style
        places = sent.points if style.points else sent.blocks
        read = 0
        for digest, tokens in reversed(places):
            if now - self._kept.get(digest, -1e300) <= style.ttl_seconds:
                read = tokens // style.step_tokens * style.step_tokens
                break
        if read < style.minimum_tokens:
            read = 0
        written = 0
        for at, (digest, tokens) in enumerate(places):
            if style.points and at not in sent.marks and tokens > read:
                continue
            # A place that was read is kept for longer; a longer start only if it is long enough.
            if tokens <= read or tokens >= style.minimum_tokens or not style.points:
                self._kept[digest] = now
            if style.points and tokens >= style.minimum_tokens:
                written = max(written, tokens - read)
        plain = sent.total - read - written
        price = style.price
        return (read * price.cached + written * price.written + plain * price.input) / 1e6, read


@dataclass(frozen=True, slots=True)
class Turn:
    """One request."""

    app: str
    conversation: int
    prompt: Prompt


@dataclass(slots=True)
class Spent:
    """Nano-USD by conversation."""

    by_conversation: dict[tuple[str, int], float] = field(default_factory=dict)

    def add(self, turn: Turn, amount: float) -> None:
        """Add what a request cost."""
        key = (turn.app, turn.conversation)
        self.by_conversation[key] = self.by_conversation.get(key, 0.0) + amount

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.by_conversation.values())


class Renderer:
    """Prompts as digests; the tokens of each text are made once."""

    def __init__(self, encode: Callable[[str], Sequence[int]], block_tokens: int = _BLOCK_TOKENS) -> None:
        self._encode = encode
        self._block_tokens = block_tokens
        self._known: dict[str, Sequence[int]] = {}

    def tokens(self, text: str) -> Sequence[int]:
        """The tokens of a text."""
        found = self._known.get(text)
        if found is None:
            found = self._known[text] = self._encode(text)
        return found

    def __call__(self, prompt: Prompt) -> Rendered:
        """The prompt's digests."""
        last = last_user(prompt.messages)
        parts: list[str] = []
        points, system = [], -1
        for at, message in enumerate(prompt.messages):
            lead = [f"[{number}] {text}\n" for number, text in enumerate(prompt.chunks, 1)] if at == last else []
            parts += [f"<{message.role}>", *lead, *message.texts]
            points.append(len(parts))
            if message.role == SYSTEM:
                system = at
        # With chunks the last user message is not marked: later requests do not have it so.
        marks = {system, last - 1 if prompt.chunks and last else len(points) - 1}
        ids: list[int] = []
        ends = []
        for part in parts:
            ids.extend(self.tokens(part))
            ends.append(len(ids))
        cuts = range(self._block_tokens, len(ids) + 1, self._block_tokens)
        point_tokens = [ends[at - 1] for at in points]
        digests = _digests(ids, sorted({*cuts, *point_tokens}))
        return Rendered(
            len(ids),
            tuple((digests[cut], cut) for cut in cuts),
            tuple((digests[cut], cut) for cut in point_tokens),
            frozenset(mark for mark in marks if mark >= 0),
        )


def _digests(ids: Sequence[int], cuts: Sequence[int]) -> dict[int, bytes]:
    running, at, found = hashlib.blake2b(digest_size=12), 0, {}
    for cut in cuts:
        running.update((",".join(map(str, ids[at:cut])) + ",").encode())
        found[cut] = running.digest()
        at = cut
    return found


class TokenCounter:
    """Counts as the renderer does."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._memory = Documents(self.text, _MEMORY_BYTES)
        self._fitted = load()

    def choice(self, prompt: Prompt) -> FittedChunks:
        """The chooser of a prompt's chunks, by words: no embedder takes part."""
        return fitted_chunks(prompt.messages, prompt.chunks, self._memory, self._fitted)

    def text(self, text: str) -> int:
        """Tokens of a bare text."""
        return len(self._renderer.tokens(text))

    def message(self, message: Message) -> int:
        """Tokens of one message."""
        return sum(len(self._renderer.tokens(text)) for text in (f"<{message.role}>", *message.texts))

    def chunk(self, text: str) -> int:
        """Tokens of one chunk; its number takes as many in every prompt here."""
        return len(self._renderer.tokens(f"[1] {text}\n"))

    def prompt(self, prompt: Prompt) -> int:
        """Tokens of a prompt."""
        return sum(map(self.message, prompt.messages)) + sum(map(self.chunk, prompt.chunks))


def measure(
    result: Result, data: Path, encode: Callable[[str], Sequence[int]], modes: Mapping[str, Plan], mode: str
) -> None:
    """Add ``net_dollars/...``: ``ours`` is the compressor in ``mode``.

    Of the other modes only the worst case is added, by name, on a quarter of the traffic and three probabilities.
    """
    traffic_of = {quick: traffic(data / "compressor", quick) for quick in {True, result.quick}}
    renderer = Renderer(encode)
    counter = TokenCounter(renderer)
    few = (0.0, 0.5, 0.95)
    probabilities = few if result.quick else PROBABILITIES
    result.assumptions["net_dollars"] = {
        "mode": mode,
        "styles": [style.name for style in STYLES],
        "probabilities": list(probabilities),
        "requests": len(traffic_of[result.quick]),
        "requests_of_other_modes": len(traffic_of[True]),
        "hindsight": "the best of 16 sets of strategies, by conversation",
    }
    for name, plan in modes.items():
        own = name == mode
        turns = traffic_of[result.quick or not own]
        figures: list[Figure] = []
        for app in blocks(list(dict.fromkeys(turn.app for turn in turns)), 1, f"net dollars, {name}"):
            of_app = [turn for turn in turns if turn.app == app[0]]
            figures += play_all(of_app, renderer, counter, plan, probabilities if own else few, hindsight=own)
        for system, spent in (("ours", _ours), ("always", _always)):
            if own:
                add(result, system, figures, spent)
            else:
                add_worst(result, f"{system}_{name}", figures, spent)
        if own:
            add_shares(result, figures)


@dataclass(frozen=True, slots=True)
class Figure:
    """What one application, style and probability came to, nano-USD."""

    app: str
    style: str
    probability: float
    requests: int
    off: float
    ours: float
    always: float
    best: float


def _ours(figure: Figure) -> float:
    return figure.ours


def _always(figure: Figure) -> float:
    return figure.always


def add_worst(result: Result, system: str, figures: Sequence[Figure], spent: Callable[[Figure], float]) -> None:
    """The worst case's saving, and it as a share of what the case cost with nothing cut."""
    count = sum(figure.requests for figure in figures)
    worst = min(figures, key=lambda figure: figure.off - spent(figure))
    result.add(f"net_dollars/{system}/min_nano_usd", worst.off - spent(worst), "nano_usd", count)
    least = min((figure.off - spent(figure)) / figure.off for figure in figures)
    result.add(f"net_dollars/{system}/min_saved", least, "ratio", count)


def add(result: Result, system: str, figures: Sequence[Figure], spent: Callable[[Figure], float]) -> None:
    """The worst case's saving, and the share of hindsight's saving that was had, over all and in the worst case."""
    add_worst(result, system, figures, spent)
    count = sum(figure.requests for figure in figures)
    best = sum(figure.off - figure.best for figure in figures)
    saved = sum(figure.off - spent(figure) for figure in figures)
    result.add(f"net_dollars/{system}/captured", saved / best if best else 1.0, "ratio", count)
    cells = [(figure.off - spent(figure)) / (figure.off - figure.best) for figure in figures if _matters(figure)]
    result.add(f"net_dollars/{system}/captured_worst_cell", min(cells, default=1.0), "ratio", len(cells))


def add_shares(result: Result, figures: Sequence[Figure]) -> None:
    """What was saved of the input's price, by application, and by style and probability."""
    for app in dict.fromkeys(figure.app for figure in figures):
        them = [figure for figure in figures if figure.app == app]
        _add_share(result, f"net_dollars_{app}", them)
        worst = min(figure.off - figure.ours for figure in them)
        result.add(f"net_dollars_{app}/ours/min_nano_usd", worst, "nano_usd", len(them))
        worst = min(figure.off - figure.always for figure in them)
        result.add(f"net_dollars_{app}/always/min_nano_usd", worst, "nano_usd", len(them))
    for style, probability in dict.fromkeys((figure.style, figure.probability) for figure in figures):
        them = [figure for figure in figures if (figure.style, figure.probability) == (style, probability)]
        _add_share(result, f"net_dollars_{style}_h{round(100 * probability):02d}", them)


def _add_share(result: Result, name: str, figures: Sequence[Figure]) -> None:
    off, count = sum(figure.off for figure in figures), sum(figure.requests for figure in figures)
    for system, spent in (
        ("ours", sum(figure.ours for figure in figures)),
        ("always", sum(figure.always for figure in figures)),
        ("hindsight", sum(figure.best for figure in figures)),
    ):
        result.add(f"{name}/{system}/saved", (off - spent) / off, "ratio", count)


def _matters(figure: Figure) -> bool:
    """True where hindsight saves at least a thousandth: below it a share of it says nothing."""
    return figure.off - figure.best >= figure.off / 1000


def play_all(
    turns: Sequence[Turn],
    renderer: Renderer,
    counter: TokenCounter,
    plan: Plan,
    probabilities: Sequence[float],
    *,
    hindsight: bool = True,
) -> list[Figure]:
    """Every style at every probability. Without ``hindsight`` the best is known among nothing, all and ours only."""
    order = [each for each in ORDER if each in USUAL]
    subsets = [frozenset(each) for size in range(len(order) + 1) for each in itertools.combinations(order, size)]
    if not hindsight:
        subsets = [frozenset(), USUAL]
    cut = {
        subset: [renderer(_cut(turn.prompt, replace(plan, strategies=subset), counter)) for turn in turns]
        for subset in subsets
    }
    figures = []
    for style, probability in itertools.product(STYLES, probabilities):
        times = arrivals(turns, probability)
        worlds = {subset: _play(turns, times, cut[subset], style) for subset in subsets}
        ours = play_ours(turns, times, renderer, counter, plan, style)
        off = worlds[frozenset()]
        best = sum(min(world.by_conversation[key] for world in worlds.values()) for key in off.by_conversation)
        figures.append(
            Figure(
                turns[0].app,
                style.name,
                probability,
                len(turns),
                off.total,
                ours.total,
                worlds[USUAL].total,
                min(best, ours.total),
            )
        )
    return figures


def play_ours(
    turns: Sequence[Turn],
    times: Sequence[float],
    renderer: Renderer,
    counter: TokenCounter,
    plan: Plan,
    style: Style,
    facts: Facts | None = None,
) -> Spent:
    """What the compressor spends; ``facts`` are what it believes of the provider, the truth by default."""
    clock = [0.0]
    tracker = PrefixTracker(lambda: clock[0], 200_000)
    believed = facts or Facts(style.price, style.terms)
    provider, spent = Provider(style), Spent()
    for at, (turn, now) in enumerate(zip(turns, times, strict=True)):
        clock[0] = now
        scales = Scales(believed, tracker, "bench", turn.prompt, counter, plan.mode.value)
        done = _cut(turn.prompt, plan, counter, scales)
        scales.finish(done, str(at))
        amount, read = provider.bill(renderer(done), now)
        spent.add(turn, amount)
        if believed.terms is not None:
            tracker.record("bench", str(at), read, believed.terms)
    return spent


def _play(turns: Sequence[Turn], times: Sequence[float], sent: Sequence[Rendered], style: Style) -> Spent:
    provider, spent = Provider(style), Spent()
    for turn, now, prompt in zip(turns, times, sent, strict=True):
        spent.add(turn, provider.bill(prompt, now)[0])
    return spent


def _cut(prompt: Prompt, plan: Plan, counter: TokenCounter, scales: Scales | None = None) -> Prompt:
    chunks = counter.choice(prompt) if plan.ranks(prompt.chunks) else None
    return compress(prompt, plan, counter, chunks, 0, None, scales).prompt


def arrivals(turns: Sequence[Turn], probability: float, seed: int = 7) -> list[float]:
    """When each request comes, seconds: soon after the one before with this probability, else late."""
    random_of = random.Random(seed)  # noqa: S311  (a simulation)
    now, times = 0.0, []
    for _ in turns:
        now += SOON_SECONDS if random_of.random() < probability else LATE_SECONDS
        times.append(now)
    return times


def traffic(folder: Path, quick: bool) -> list[Turn]:
    """The requests of five applications, one after another: chats, and questions on documents found or given."""
    share = 4 if quick else 1
    chats = [row["messages"] for row in _rows(folder / "sharegpt_multiturn_en.jsonl.gz")]
    found = [row for row in _rows(folder / "mtrag_un_multiturn.jsonl.gz") if row["contexts"]]
    pool = [chunk["text"] for row in found for chunk in row["contexts"]]
    random_of = random.Random(7)  # noqa: S311  (a sample)
    turns: list[Turn] = []
    for number, chat in enumerate(chats[: 24 // share]):
        turns += _talk("short", number, chat)
    for number, chat in enumerate(chats[24 : 24 + 16 // share]):
        turns += _talk("untidy", number, chat)
    for number in range(8 // share):
        # Long ones: several talks of one person, one after another.
        whole = [message for chat in chats[60 + 5 * number : 65 + 5 * number] for message in chat]
        turns += _talk("history", number, whole)
    for number, row in enumerate(found[: 32 // share]):
        own = [chunk["text"] for chunk in row["contexts"]]
        turns += _talk("near", number, row["messages"], lambda own=own: _some(own, pool, random_of))  # type: ignore[misc]
    for number, row in enumerate(found[40 : 40 + 8 // share]):
        given = _some([chunk["text"] for chunk in row["contexts"]], pool, random_of, 12)
        turns += _talk("long", number, row["messages"], lambda given=given: given)  # type: ignore[misc]
    for number in range(8 // share):
        # The worst for who chooses chunks by the question: one document, many questions, each a prompt of its own.
        given = tuple(dict.fromkeys(random_of.sample(pool, 20)))
        asked = [said["content"] for row in found[60 + number * 4 : 64 + number * 4] for said in row["messages"][::2]]
        system = Message(0, SYSTEM, (system_prompt("document"),))
        turns += [Turn("document", number, Prompt((system, Message(1, USER, (each,))), given)) for each in asked[:12]]
    return turns


def _some(own: Sequence[str], pool: Sequence[str], random_of: random.Random, count: int = _CHUNKS) -> tuple[str, ...]:
    others = random_of.sample(pool, count)
    return tuple(dict.fromkeys([*others[: count // 2], *own[:count], *others[count // 2 :]]))[:count]


def _talk(
    app: str, number: int, talk: Sequence[Mapping[str, Any]], chunks: Callable[[], tuple[str, ...]] | None = None
) -> Iterator[Turn]:
    messages = [Message(0, SYSTEM, (system_prompt(app),))]
    for said in talk:
        role = USER if said["role"] == "user" else ASSISTANT
        messages.append(Message(len(messages), role, (said["content"],)))
        if role == USER:
            yield Turn(app, number, Prompt(tuple(messages), chunks() if chunks is not None else ()))


def system_prompt(app: str) -> str:
    """Standing instructions as people write them: short, untidy, just long enough for a cache, and long."""
    rules = [
        f"Rule {number}: when a customer asks about {topic}, first find the order, then say what applies to it, and "
        f"offer to pass the matter on to the {topic} desk if the customer is not content with the answer."
        for number, topic in enumerate(
            (
                "refunds", "deliveries", "invoices", "warranties", "exchanges", "gift cards", "subscriptions",
                "damaged goods", "missing parts", "addresses", "discounts", "returns", "repairs", "taxes", "accounts",
                "passwords", "complaints", "stock", "opening hours", "spare parts", "trade-ins", "instalments",
                "cancellations", "pre-orders", "shipping abroad", "customs", "recalls", "loyalty points",
            ),
            start=1,
        )
    ]  # fmt: skip
    repeated = "Always answer in the language of the customer, and never promise anything that the rules do not say."
    if app == "untidy":
        return "\n\n\n\n".join([repeated, *rules, repeated, *rules[:8], repeated]) + "   \n\n"
    if app == "near":
        return "\n\n\n".join([repeated, *rules[:21], repeated, *rules[:2]])
    if app == "long":
        return "\n".join([repeated, *(f"{round_}. {rule}" for round_ in range(1, 5) for rule in rules)])
    return "You answer questions of our customers. Be brief and polite. If you do not know, say so."


def _rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]

"""What the batch bench asks: questions, shared instructions, requests. Pure, all from a seed."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterable, Iterator, Sequence

from tenth.batch.v1 import batch_pb2
from tenth.type.v1 import chat_pb2

from formats.openai import text_message

_THINGS_TEXT = (
    "order invoice parcel refund voucher warehouse carrier contract account password address receipt ticket complaint "
    "subscription shipment deposit warranty catalogue discount newsletter card payment tax label pallet driver "
    "forklift "
    "inspection certificate permit lantern harbour orchard violin glacier kettle compass telescope meadow bakery ferry "
    "mosaic tunnel anchor beehive quarry lighthouse spindle marble canyon"
)
_QUALITIES_TEXT = (
    "late broken missing unpaid double foreign urgent sealed damaged cheap heavy wooden frozen private seasonal "
    "expired "
    "blue narrow hollow bright ancient silent coastal bitter rapid"
)
_DEEDS_TEXT = (
    "check return replace explain cancel confirm postpone weigh translate sort repaint count describe borrow measure "
    "label compare repair deliver archive inspect clean sketch schedule"
)
_THINGS, _QUALITIES, _DEEDS = _THINGS_TEXT.split(), _QUALITIES_TEXT.split(), _DEEDS_TEXT.split()


def questions(count: int, seed: int) -> list[str]:
    """Different questions of some fifteen words."""
    chance = random.Random(f"questions {seed}")  # noqa: S311  (texts of a bench, no secret)
    return [f"Question {number + 1}: {_sentence(chance)}" for number in range(count)]


def instructions(count: int, words: int, seed: int, edition: str = "") -> list[str]:
    """Different instructions of at least so many words each. ``edition`` stands first: texts of another edition have no
    common beginning with these, so that no engine can have read it."""
    made = []
    for number in range(count):
        chance = random.Random(f"instruction {seed} {number}")  # noqa: S311  (as above)
        lines = [
            f"{edition}Handbook {number + 1} of the desk for {chance.choice(_THINGS)} and {chance.choice(_THINGS)}."
        ]
        size = len(lines[0].split())
        while size < words:
            lines.append(f"Rule {len(lines)}: {_sentence(chance)} {_sentence(chance)}")
            size += len(lines[-1].split())
        made.append("\n".join(lines))
    return made


def interleaved(
    texts: Sequence[str], asked: Sequence[str], model: str, most_tokens: int
) -> list[chat_pb2.CompletionRequest]:
    """Each question under the next instruction, round and round."""
    return [
        request(question, model, most_tokens, system=texts[place % len(texts)]) for place, question in enumerate(asked)
    ]


def request(
    question: str, model: str, most_tokens: int, *, system: str = "", cached: bool = False
) -> chat_pb2.CompletionRequest:
    """A greedy request of a named model. ``cached`` False: neither cache nor compressor may touch it."""
    made = chat_pb2.CompletionRequest(request_id=str(uuid.uuid4()))
    if system:
        made.messages.append(text_message(chat_pb2.ROLE_SYSTEM, system))
    made.messages.append(text_message(chat_pb2.ROLE_USER, question))
    made.sampling.temperature = 0
    made.sampling.max_output_tokens = most_tokens
    made.policy.model = model
    made.policy.compression_mode = chat_pb2.COMPRESSION_MODE_OFF
    if not cached:
        made.policy.cache_mode = chat_pb2.CACHE_MODE_OFF
    return made


def as_items(requests: Iterable[chat_pb2.CompletionRequest]) -> Iterator[batch_pb2.BatchItem]:
    """Requests as a batch's items, named by their place."""
    for place, one in enumerate(requests):
        item = batch_pb2.BatchItem(custom_id=f"i{place}", request=one)
        item.request.request_id = ""  # The batch gives ids of its own.
        yield item


def _sentence(chance: random.Random) -> str:
    first, second = chance.sample(_THINGS, 2)
    one, two, three = chance.sample(_QUALITIES, 3)
    deed, other = chance.sample(_DEEDS, 2)
    return f"When the {one} {first} is {two}, please {deed} the {three} {second} and {other} it."

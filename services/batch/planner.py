"""Makes a round's plan: which lane each prepared item takes, who waits for whom, which chunk it runs in.

Works with keys, not with requests: those go through a temporary file, so that a batch of any size fits into memory.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from tenth.batch.v1 import stored_pb2
from tenth.inference.v1 import inference_pb2
from tenth.orchestrator.v1 import orchestrator_pb2

from mesh.auth import set_identity
from services.batch import batches
from services.batch.asking import context_digest, texts
from services.batch.calls import Layers, Stop, identity_of, patiently
from services.batch.errors import Reason
from services.batch.grouping import leaders, to_int8
from services.batch.halves import Halves
from services.batch.ordering import ChunkLimits, Entry, chunks, in_input_order, items_of_chunk, ordered, prefix_key
from services.batch.policy import (
    PROVIDER_LANES,
    LaneChoice,
    ModelFacts,
    choose_lane,
    may_share,
    may_wait_for_near_same,
    provider_lane,
)
from services.batch.preparing import object_name
from services.batch.records import RunStore, Spill, failed, reads_cache, temperature, users_of
from services.batch.reports import Counts, Group, MakePlan, Planned
from services.batch.settings import WorkerSettings

PIECE_ITEMS = 500
PIECE_BYTES = 4 * 1024 * 1024
"""Most of one plan object: it is held in memory whole."""
_ANOTHER_MODEL = "another model:"


@dataclass(slots=True)
class _Context:
    """Questions that may be compared: their numbers, and their vectors a byte a dimension, one after the other."""

    numbers: array[int] = field(default_factory=lambda: array("L"))
    vectors: bytearray = field(default_factory=bytearray)


@dataclass(slots=True)
class _Draft:
    """A plan in the making."""

    spill: Spill
    entries: list[Entry] = field(default_factory=list)
    indexes: array[int] = field(default_factory=lambda: array("Q"))
    expected: array[int] = field(default_factory=lambda: array("q"))
    """Their prices as expected, nano-USD."""
    shareable: array[int] = field(default_factory=lambda: array("Q"))
    contexts: dict[bytes, _Context] = field(default_factory=lambda: defaultdict(_Context))
    nowhere: list[int] = field(default_factory=list)
    """Places in the file of items that no allowed lane takes: that may be a whole batch."""
    words: Counter[str] = field(default_factory=Counter)


class Planner:
    """Makes plans."""

    def __init__(self, store: RunStore, layers: Layers, settings: WorkerSettings) -> None:
        self._store = store
        self._layers = layers
        self._halves = Halves(layers, settings)
        self._settings = settings

    async def plan(self, asked: MakePlan, delivery: int, stop: Stop, beat: Callable[[int], None]) -> Planned:
        """Write the chunks of a round as objects. ``delivery``: part of their names, so that two workers that make the
        same plan do not write into each other's.

        Raises TenthError while inference, the orchestrator or the store stay away.
        """
        stem = f"{asked.round}-{delivery}"
        set_identity(identity_of(await self._store.batch(asked.ref)))
        with Spill() as spill:
            draft = _Draft(spill)
            models: dict[tuple[str, bool, bool], ModelFacts] = {}
            limits: dict[str, inference_pb2.GetProviderBatchLimitsResponse] = {}
            for number in range(asked.object_count):
                for record in await self._store.records(
                    batches.prepared_name(asked.ref, object_name(asked.round, number))
                ):
                    prepared = record.outcome.prepared
                    key = (prepared.generation.model, prepared.self_hosted, prepared.has_batch_price)
                    if key not in models:
                        models[key] = await self._facts(prepared, limits, stop)
                    self._take(draft, asked, record, models[key])
                beat(number)
            # Seconds of work for a large batch: heartbeats and other activities go on meanwhile.
            late = await asyncio.to_thread(self._near_same, draft) if asked.near_same else set()
            arrange = ordered if self._settings.prefix_order else in_input_order
            entries = await asyncio.to_thread(arrange, [entry for entry in draft.entries if entry.number not in late])
            draft.entries.clear()
            groups = await self._write(asked, stem, draft, entries, limits, beat)
            await self._note(asked, f"{stem}-near", [draft.indexes[number] for number in late])
            await self._note(asked, f"{stem}-shareable", draft.shareable)
            counts = await self._refuse(asked, stem, draft, stop, beat)
        words = [f"{number} items: {why}" for why, number in draft.words.most_common(20)]
        if late:
            words.append(f"{len(late)} items wait for one that means nearly the same")
        again = sum(draft.expected[number] for number in late)
        return Planned(stem, groups, counts, len(late), words, again)

    async def _facts(
        self,
        prepared: orchestrator_pb2.PreparedCompletion,
        limits: dict[str, inference_pb2.GetProviderBatchLimitsResponse],
        stop: Stop,
    ) -> ModelFacts:
        model = prepared.generation.model
        lane = ""
        if not prepared.self_hosted and prepared.has_batch_price:
            if model not in limits:
                asked = inference_pb2.GetProviderBatchLimitsRequest(model=model)
                seconds = self._settings.call_seconds
                call = self._layers.providers.GetProviderBatchLimits
                limits[model] = await patiently(
                    lambda: call(asked, timeout=seconds), self._settings.patience_seconds, stop
                )
            lane = provider_lane(limits[model].interface) if limits[model].supported else ""
        return ModelFacts(model, prepared.self_hosted, prepared.has_batch_price, lane)

    def _take(self, draft: _Draft, asked: MakePlan, record: stored_pb2.StoredPrepared, facts: ModelFacts) -> None:
        prepared, request = record.outcome.prepared, record.item.request
        left, least = asked.seconds_for_cheap_lanes, self._settings.provider_least_seconds
        choice: LaneChoice = choose_lane(facts, asked.lanes, left, least)
        draft.words[choice.why] += 1
        if not choice.lane:
            draft.nowhere.append(draft.spill.append(record.SerializeToString()))
            draft.indexes.append(record.index)  # Numbers are places in the file.
            draft.expected.append(prepared.expected_nano_usd)
            return
        share = may_share(prepared.cacheable, temperature(request))
        if share:
            draft.shareable.append(record.index)
        near = asked.near_same and may_wait_for_near_same(choice.lane, asked.lanes)
        near = near and prepared.cacheable and reads_cache(request) and len(prepared.embedding.values) > 0
        number = len(draft.indexes)
        if near:
            context = draft.contexts[context_digest(request, prepared.embedding.embedder)]
            if len(context.numbers) < self._settings.near_same_items:
                context.numbers.append(number)
                context.vectors += to_int8(prepared.embedding.values).tobytes()
        # A chunk needs no embedding any more.
        prepared.ClearField("embedding")
        content = record.SerializeToString()
        draft.spill.append(content)
        draft.indexes.append(record.index)
        draft.expected.append(prepared.expected_nano_usd)
        generation = prepared.generation
        draft.entries.append(
            Entry(
                number,
                choice.lane,
                _ANOTHER_MODEL * choice.another_model + facts.model,
                prefix_key(texts(generation)),
                generation.estimated_input_token_count,
                len(content),
            )
        )

    def _near_same(self, draft: _Draft) -> set[int]:
        """Numbers of the entries that wait for another one."""
        late: set[int] = set()
        for context in draft.contexts.values():
            if len(context.numbers) < 2:
                continue
            vectors = np.frombuffer(context.vectors, dtype=np.int8).reshape(len(context.numbers), -1)
            found = leaders(vectors, self._settings.near_same_threshold)
            late.update(number for place, number in enumerate(context.numbers) if found[place] != place)
        draft.contexts.clear()
        return late

    async def _write(
        self,
        asked: MakePlan,
        stem: str,
        draft: _Draft,
        entries: Sequence[Entry],
        limits: dict[str, inference_pb2.GetProviderBatchLimitsResponse],
        beat: Callable[[int], None],
    ) -> list[Group]:
        small = ChunkLimits(items_of_chunk(self._settings.chunk_items, len(entries)), PIECE_BYTES)
        large = ChunkLimits(PIECE_ITEMS, PIECE_BYTES)
        sizes = {(entry.lane, entry.model): large for entry in entries if entry.lane in PROVIDER_LANES}
        groups: list[Group] = []
        weights: list[int] = []
        for number, chunk in enumerate(chunks(entries, sizes, small)):
            contents = [draft.spill.read(place) for place in chunk.numbers]
            records = [stored_pb2.StoredPrepared.FromString(content) for content in contents]
            await self._store.put(batches.plan_name(asked.ref, f"{stem}-{number:06d}"), records)
            weights.append(sum(map(len, contents)))
            another, model = chunk.model.startswith(_ANOTHER_MODEL), chunk.model.removeprefix(_ANOTHER_MODEL)
            if not groups or (groups[-1].lane, groups[-1].model, groups[-1].another_model) != (
                chunk.lane,
                model,
                another,
            ):
                groups.append(Group(chunk.lane, model, another, number, []))
            groups[-1].sizes.append(len(records))
            beat(number)
        for group in groups:
            if group.lane in PROVIDER_LANES:
                group.batches.extend(self._batches(group, weights, limits[group.model]))
        return groups

    def _batches(
        self, group: Group, weights: Sequence[int], limits: inference_pb2.GetProviderBatchLimitsResponse
    ) -> list[list[int]]:
        """Cut a model's plan objects into batches that its provider takes. A record is larger than its line there."""
        most_items = min(self._settings.provider_items, limits.max_item_count or self._settings.provider_items)
        most_bytes = limits.max_byte_count or 100 * 1024 * 1024
        made: list[list[int]] = []
        items = size = 0
        for place, count in enumerate(group.sizes):
            number = group.first + place
            if made and items + count <= most_items and size + weights[number] <= most_bytes:
                made[-1][1] += 1
                items, size = items + count, size + weights[number]
            else:
                made.append([number, 1])
                items, size = count, weights[number]
        return made

    async def _note(self, asked: MakePlan, name: str, indexes: Iterable[int]) -> None:
        record = stored_pb2.StoredRunItems(indexes=sorted(indexes))
        await self._store.put(batches.plan_name(asked.ref, name), [record])

    async def _refuse(
        self, asked: MakePlan, stem: str, draft: _Draft, stop: Stop, beat: Callable[[int], None]
    ) -> Counts:
        """End the items that no allowed lane takes, some at a time."""
        error = orchestrator_pb2.HalfError(
            reason=Reason.LANE_NOT_ALLOWED, message="the model chosen for it runs in no lane that the batch allows"
        )
        for start in range(0, len(draft.nowhere), PIECE_ITEMS):
            contents = map(draft.spill.read, draft.nowhere[start : start + PIECE_ITEMS])
            records = [stored_pb2.StoredPrepared.FromString(content) for content in contents]
            ends = [
                orchestrator_pb2.CompletionToFinish(
                    request=record.item.request, state=record.outcome.prepared.state, failed=error
                )
                for record in records
            ]
            outcomes = await self._halves.finish(ends, stop)
            results = [
                failed(record.item, error, outcome.finished) for record, outcome in zip(records, outcomes, strict=True)
            ]
            users = users_of(record.item for record in records)
            await self._store.write_results(asked.ref, f"nowhere-{stem}-{start:08d}", results, users)
            beat(start)
        return (await self._store.tally(asked.ref, [f"nowhere-{stem}-"])).counts if draft.nowhere else Counts()

"""Which runs make up the end-to-end benchmark: every arm is a tenant of its own, so that caches are separate. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.endtoend_play import Arm
from bench.endtoend_workload import Arrival, Mix

SWITCHES = ("cache", "routing", "compression", "batch")
"""Layers that the ledger can turn off for a tenant. Quantization is no choice of a request: it is the model's."""
TARGETS = (0.80, 0.90, 0.95, 0.97, 0.98, 0.99)
"""Quality targets of the frontier."""
ABLATED = "support_heavy"
FRONTIERS = ("even", "adversarial")


@dataclass(frozen=True, slots=True)
class RunPlan:
    """One run: a stream asked by one tenant with some layers off."""

    name: str
    """MIX/SYSTEM."""
    arm: Arm
    off: tuple[str, ...]
    stream: Sequence[Arrival]
    paced: bool = False
    """As the trace's gaps say, for the latencies; the others as fast as they are answered."""


def plan(
    mixes: Mapping[str, Mix],
    streams: Mapping[str, Sequence[Arrival]],
    ablation: int,
    frontier: int,
    timed: Mapping[str, Sequence[Arrival]],
) -> list[RunPlan]:
    """All runs, in order; ``ablation`` and ``frontier`` bound the requests of theirs, 0: none.

    ``timed`` are the streams that are timed, of questions that no other run asks: what the mesh remembers of a text,
    such as its vector, it has to make for them.
    """
    runs = []
    for name, stream in streams.items():
        target = mixes[name].quality_target
        runs.append(RunPlan(f"{name}/ours", _arm(name, "ours", target), (), stream))
        runs.append(RunPlan(f"{name}/baseline", _arm(name, "baseline", target, batch=False), SWITCHES, stream))
        if asked := [arrival for arrival in timed.get(name, ()) if arrival.ask.workload != "bulk"]:
            runs.append(RunPlan(f"{name}/latency", _arm(name, "latency", target), (), with_repeats(asked), paced=True))
    if ABLATED in streams and ablation:
        part, target = streams[ABLATED][:ablation], mixes[ABLATED].quality_target
        runs += [RunPlan(f"{ABLATED}/{name}", _arm(ABLATED, name, target, batch="batch" not in off), off, part)
                 for name, off in ablations().items()]  # fmt: skip
        arm = Arm("careful", target, unrecorded_to_strong=True)
        runs.append(RunPlan(f"{ABLATED}/recorded_routing_only", arm, (), part))
    for name in FRONTIERS:
        hard = [arrival for arrival in streams.get(name, ()) if arrival.ask.correct][:frontier]
        for wanted in TARGETS if hard else ():
            runs.append(RunPlan(f"{name}/{frontier_name(wanted)}", _arm(name, frontier_name(wanted), wanted), (), hard))
    return runs


def with_repeats(stream: Sequence[Arrival]) -> list[Arrival]:
    """Every fourth request again at the end, word for word, so that each mix has exact hits to be timed."""
    if not stream:
        return []
    gap = stream[-1].seconds / max(1, len(stream) - 1)
    again = stream[::4]
    return [*stream, *(
        replace(each, index=-1 - at, seconds=stream[-1].seconds + (at + 1) * gap) for at, each in enumerate(again)
    )]  # fmt: skip


def ablations() -> dict[str, tuple[str, ...]]:
    """The layers that are off, by the run's name: all on, all off, each alone, each missing."""
    found: dict[str, tuple[str, ...]] = {"full": (), "none": SWITCHES}
    for layer in SWITCHES:
        found[f"only_{layer}"] = tuple(each for each in SWITCHES if each != layer)
        found[f"without_{layer}"] = (layer,)
    return found


def frontier_name(target: float) -> str:
    """Of a run at a quality target."""
    return f"frontier_{100 * target:.0f}"


def _arm(mix: str, system: str, target: float, *, batch: bool = True) -> Arm:
    return Arm(f"{mix}-{system}".replace("_", "-"), target, batch)

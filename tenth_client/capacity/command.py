"""``tenth plan capacity``: reads the arguments, asks the price book where told to, and shows the plan."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from tenth_client.cache_words import LANGUAGES, language
from tenth_client.capacity import known, plan, shapes
from tenth_client.capacity.hardware import GIB, gpu_of
from tenth_client.capacity.schemes import KV_BITS, SCHEMES, scheme_of
from tenth_client.capacity.words import text
from tenth_client.commands import with_rpc
from tenth_client.rpc import Rpc

BOOK = "book"
"""``--hour-price`` with this word asks the price book."""
_NODE = 8
"""GPUs that are tried without ``--count``: those of one machine."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the command found out."""

    model: str
    gpu: str
    scheme: str
    wanted: plan.Wanted
    fits: tuple[plan.Fit, ...]
    best: plan.Fit | None
    count: int
    tokens_per_second: float
    measured: bool
    utilization: float
    hour_usd: float | None
    hour_source: str
    cost: plan.Cost | None


def capacity_arguments(sub: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    sub.add_argument("--model", required=True, help="hub id of a known model, or a folder with a config.json")
    sub.add_argument("--gpu", required=True, help="a100-80gb, h100-80gb, l4, ...; the price book's gpu:KIND too")
    sub.add_argument(
        "--scheme", default="", help=f"{', '.join(SCHEMES)} (default: as published; for a folder, as its weights are)"
    )
    sub.add_argument("--context", type=int, required=True, metavar="TOKENS", help="prompt and answer of one sequence")
    sub.add_argument("--count", type=int, default=0, help="GPUs at hand (default: as few as it takes, up to 8)")
    sub.add_argument("--kv-dtype", choices=tuple(KV_BITS), default="bf16", help="of keys and values (%(default)s)")
    sub.add_argument("--hour-price", default="", metavar="USD", help='of one GPU; "book": from the price book')
    sub.add_argument("--tokens-per-second", type=float, default=0.0, metavar="N", help="measured output of one replica")
    sub.add_argument("--utilization", type=float, default=0.6, help="share of paid hours in use (%(default)s)")
    sub.add_argument("--memory-share", type=float, default=plan.MEMORY_SHARE, help="the engine's (%(default)s)")
    sub.add_argument("--working-gib", type=float, default=plan.WORKING_GIB, help="activations, CUDA (%(default)s)")
    sub.add_argument("--max-sequences", type=int, default=plan.MAX_SEQUENCES, help="the engine's (%(default)s)")
    sub.add_argument("--json", action="store_true", help="the figures as JSON")
    sub.add_argument("--lang", choices=LANGUAGES, default=None, help="language (default: by LC_ALL or LANG)")


async def capacity(arguments: argparse.Namespace, console: Console) -> int:
    """Plan and show. Raises ValueError naming the flag that is wrong. Only ``--hour-price book`` asks a service."""
    if arguments.hour_price == BOOK:
        return await with_rpc(_with_book)(arguments, console)
    price = (
        _positive(arguments.hour_price, "--hour-price", f'USD above 0, or "{BOOK}"') if arguments.hour_price else None
    )
    return show(report(arguments, price, ""), arguments, console)


async def _with_book(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    name = f"gpu:{gpu_of(arguments.gpu)[0]}"
    request = ledger_pb2.ListPricesRequest(model=name)
    found = await rpc.call("ledger", ledger_pb2_grpc.LedgerReadServiceStub, "ListPrices", request)
    price = next((each for each in found.prices if each.model == name and each.gpu_hour_nano_usd), None)
    if price is None:
        raise ValueError(f"--hour-price {BOOK}: the price book has no gpu_hour of {name}; give USD")
    return show(report(arguments, price.gpu_hour_nano_usd / 1e9, name), arguments, console)


def report(arguments: argparse.Namespace, hour_usd: float | None, hour_source: str) -> Report:
    """The plan that the arguments ask for. Raises ValueError naming the flag."""
    model, shape, on_disk = _model(arguments.model, arguments.scheme)
    gpu_name, gpu = gpu_of(arguments.gpu)
    scheme_name, scheme = scheme_of(arguments.scheme or known.PUBLISHED.get(model, "bf16"))
    for flag, value in (("--context", arguments.context), ("--max-sequences", arguments.max_sequences)):
        if value < 1:
            raise ValueError(f"{flag} {value}: at least 1 is needed")
    if arguments.count < 0:
        raise ValueError(f"--count {arguments.count}: at least 1 is needed")
    for flag, share in (("--utilization", arguments.utilization), ("--memory-share", arguments.memory_share)):
        if not 0 < share <= 1:
            raise ValueError(f"{flag} {share:g}: above 0 and at most 1 is needed")
    if not 0 <= arguments.working_gib < gpu.memory_gib:
        raise ValueError(f"--working-gib {arguments.working_gib:g}: 0 to the GPU's {gpu.memory_gib:g} is needed")
    given = arguments.tokens_per_second
    if given and not 0 < given < math.inf:
        raise ValueError(f"--tokens-per-second {given:g}: a measured number above 0 is needed")
    wanted = plan.Wanted(
        shape,
        gpu,
        scheme,
        arguments.context,
        arguments.kv_dtype,
        arguments.memory_share,
        arguments.working_gib,
        arguments.max_sequences,
        on_disk,
    )
    most = arguments.count or _NODE
    fits = tuple(plan.fit(wanted, degree) for degree in plan.parallel_degrees(shape) if degree <= most)
    best = plan.smallest(wanted, most)
    tokens_per_second = given or (plan.roofline(wanted, best) if best else 0.0)
    cost = None
    if best is not None and hour_usd is not None:
        cost = plan.cost(best, hour_usd, tokens_per_second, arguments.utilization, measured=bool(given))
    scheme_said = "as on disk" if on_disk else scheme_name
    return Report(
        model,
        gpu_name,
        scheme_said,
        wanted,
        fits,
        best,
        arguments.count,
        tokens_per_second,
        bool(given),
        arguments.utilization,
        hour_usd,
        hour_source,
        cost,
    )


def show(found: Report, arguments: argparse.Namespace, console: Console) -> int:
    """Print the plan; 1 when it does not fit."""
    if arguments.json:
        console.print_json(json.dumps(as_json(found)))
    else:
        _print(found, language(arguments.lang), console)
    return 0 if found.best else 1


def as_json(found: Report) -> dict[str, Any]:
    """The figures under names with their units."""
    wanted, best = found.wanted, found.best
    replicas = found.count // best.gpus if best and found.count else 1
    return {
        "model": found.model,
        "gpu": found.gpu,
        "scheme": found.scheme,
        "parameters": wanted.shape.parameters,
        "weight_bytes": wanted.weights,
        "kv_dtype": wanted.kv_dtype,
        "kv_bytes_per_token": wanted.kv_bytes(1),
        "kv_bytes_per_sequence": wanted.sequence_bytes,
        "context_tokens": wanted.context_tokens,
        "fits": best is not None,
        "tensor_parallel": best.gpus if best else None,
        "replicas": replicas if best else 0,
        "degrees": [
            {
                "gpus": each.gpus,
                "kv_bytes_per_gpu": max(0, each.kv_bytes),
                "kv_tokens": each.kv_tokens,
                "sequences": each.sequences,
                "fits": each.fits,
            }
            for each in found.fits
        ],
        "tokens_per_second": found.tokens_per_second if best else None,
        "tokens_per_second_is": ("measured" if found.measured else "upper bound") if best else None,
        "utilization": found.utilization,
        "gpu_hour_usd": found.hour_usd,
        "usd_per_million_output_tokens": found.cost.usd_per_million if found.cost else None,
        "usd_is": ("measured" if found.measured else "lower bound") if found.cost else None,
    }


def _print(found: Report, lang: str, console: Console) -> None:
    wanted, best = found.wanted, found.best

    def say(name: str, **values: object) -> None:
        console.print(text(name, lang, **values), markup=False, soft_wrap=True)

    say(
        "model",
        model=found.model,
        parameters=_short(wanted.shape.parameters),
        scheme=found.scheme,
        gpu=found.gpu,
        memory=wanted.gpu.memory_gib,
        bandwidth=wanted.gpu.gigabytes_per_second,
    )
    disk = text("disk", lang) if wanted.weight_bytes else ""
    weights = text("weights_said", lang, gb=wanted.weights / 1e9, gib=wanted.weights / GIB, disk=disk)
    facts = Table(show_edge=False, show_header=False, pad_edge=False, box=None)
    facts.add_row(text("weights", lang), weights)
    facts.add_row(text("kv", lang), text("kv_said", lang, bytes=wanted.kv_bytes(1), dtype=wanted.kv_dtype))
    sequence = text("sequence_said", lang, gib=wanted.sequence_bytes / GIB)
    facts.add_row(text("sequence", lang, context=wanted.context_tokens), sequence)
    console.print(facts)
    console.print()
    table = Table(show_edge=False, pad_edge=False)
    for name in ("gpus", "free", "tokens", "sequences", "verdict"):
        table.add_column(text(name, lang), justify="left" if name == "verdict" else "right")
    for each in found.fits:
        verdict = "yes" if each.fits else "no_weights" if each.kv_bytes <= 0 else "no_sequence"
        free = f"{max(0, each.kv_bytes) / GIB:.1f} GiB"
        table.add_row(str(each.gpus), free, f"{each.kv_tokens:,}", f"{each.sequences:,}", text(verdict, lang))
    console.print(table)
    console.print()
    if best is None:
        say("none", most=found.count or _NODE)
    else:
        say("smallest", gpus=best.gpus)
        if found.count:
            replicas = found.count // best.gpus
            left = found.count - replicas * best.gpus
            say("replicas", count=found.count, replicas=replicas, sequences=replicas * best.sequences, idle=left)
        together = min(best.sequences, wanted.max_sequences)
        name = "measured" if found.measured else "roofline"
        say(name, gpus=best.gpus, tps=found.tokens_per_second, sequences=together)
        _print_cost(found, lang, console)
    _notes(found, lang, console)
    say("assumes", share=wanted.memory_share, working=wanted.working_gib)


def _print_cost(found: Report, lang: str, console: Console) -> None:
    if found.cost is None:
        console.print(text("no_price", lang, gpu=found.gpu), markup=False, soft_wrap=True)
        return
    line = text(
        "cost",
        lang,
        bound="" if found.measured else text("at_least", lang),
        usd=found.cost.usd_per_million,
        share=found.utilization,
        hour=found.hour_usd,
        source=f" ({found.hour_source})" if found.hour_source else "",
    )
    console.print(line, markup=False, soft_wrap=True)


def _notes(found: Report, lang: str, console: Console) -> None:
    wanted = found.wanted
    longest, scheme, has = wanted.shape.longest_context, wanted.scheme, wanted.gpu.capability
    if longest and wanted.context_tokens > longest:
        console.print(text("longer", lang, longest=longest), markup=False, soft_wrap=True)
    if scheme.least_capability > has:
        least = scheme.least_capability / 10
        line = text("capability", lang, scheme=found.scheme, least=least, gpu=found.gpu, has=has / 10)
        console.print(line, markup=False, soft_wrap=True)
    if has >= scheme.below_capability:
        line = text("too_new", lang, scheme=found.scheme, gpu=found.gpu)
        console.print(line, markup=False, soft_wrap=True)
    if has < 80:
        console.print(text("t4", lang, gpu=found.gpu), markup=False, soft_wrap=True)


def _model(name: str, scheme: str) -> tuple[str, shapes.Shape, int]:
    """A model's name and shape, and the bytes of its weights where a folder has them and no scheme is asked for."""
    path = Path(name)
    file = path / "config.json" if path.is_dir() else path
    if path.is_dir() or path.suffix == ".json":
        try:
            config = json.loads(file.read_text("utf-8"))
        except OSError as error:
            raise ValueError(f"--model {name}: {error.strerror or error}: {file}") from None
        except ValueError:
            raise ValueError(f"--model {name}: {file} is not JSON") from None
        if not isinstance(config, dict):
            raise ValueError(f"--model {name}: {file} is no JSON object")
        shape = shapes.shape_of(config, f"--model {name}")
        on_disk = 0 if scheme else sum(each.stat().st_size for each in file.parent.glob("*.safetensors"))
        return file.parent.resolve().name, shape, on_disk
    found = known.find(name)
    if found is None:
        names = ", ".join(known.SHAPES)
        raise ValueError(f"--model {name}: neither a folder with a config.json nor a known model: {names}")
    return (*found, 0)


def _positive(value: str, flag: str, wanted: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{flag} {value}: {wanted} is needed")
    return number


def _short(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"

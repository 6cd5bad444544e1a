"""The shipped heads and embedder over a real socket: Korean questions and English ones are treated alike."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from tenth.inference.v1 import inference_pb2_grpc
from tenth.router.v1 import router_pb2, router_pb2_grpc
from tenth.type.v1 import chat_pb2

from mesh.catalog import WatchedFile
from mesh.testing import dial, running
from services.cache.embedding import Embedder, load_encoder
from services.router.catalog import Catalog, CatalogReader
from services.router.decide import Knowledge
from services.router.heads import Heads, Matrix
from services.router.quality import QualityPrices
from services.router.settings import RouterSettings
from tests.integration.router.router_parts import THRESHOLDS, router_servicer

MODELS = Path(os.environ.get("TENTH_MODELS_DIR", ".models"))
PAIRS: dict[str, list[dict[str, str]]] = yaml.safe_load(
    (Path(__file__).parent / "korean_pairs.yaml").read_text("utf-8")
)
CATALOG = Path("deploy/catalog.yaml")
TEXT = CATALOG.read_text("utf-8")
SIMPLE = chat_pb2.TIER_SIMPLE


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Of all sentences of the pairs, and the version of what made them."""

    of: dict[str, Matrix]
    version: str


@pytest.fixture(scope="module")
def heads() -> Heads:
    path = RouterSettings().heads_file
    assert path is not None
    return Heads.load(path)


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    encoder = load_encoder(MODELS, "multilingual-e5-small")
    texts = [pair[language] for pairs in PAIRS.values() for pair in pairs for language in ("en", "ko")]
    version = Embedder(encoder, "multilingual-e5-small").version
    return Vectors(dict(zip(texts, encoder.encode(texts), strict=True)), version)


@asynccontextmanager
async def router(
    heads: Heads, folder: Path, file: WatchedFile[Catalog] | None = None
) -> AsyncIterator[router_pb2_grpc.RouterServiceAsyncStub]:
    async with AsyncExitStack() as stack:
        nobody = await stack.enter_async_context(dial("127.0.0.1:1"))
        file = file or WatchedFile(CATALOG, CatalogReader(lambda: datetime.now(UTC)))
        servicer, _ = router_servicer(
            folder / "outcomes.sqlite",
            file,
            inference_pb2_grpc.InferenceServiceStub(nobody),
            knowledge=Knowledge(THRESHOLDS, heads, QualityPrices(heads.sample)),
        )
        target = await stack.enter_async_context(
            running(
                router_pb2_grpc.add_RouterServiceServicer_to_server, servicer, "tenth.router.v1.RouterService", folder
            )
        )
        yield router_pb2_grpc.RouterServiceStub(await stack.enter_async_context(dial(target)))


def ask(text: str, vectors: Vectors, strategy: int, target: float | None = None) -> router_pb2.SelectModelRequest:
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])
    request = router_pb2.SelectModelRequest(
        request=chat_pb2.CompletionRequest(messages=[message]),
        strategy=strategy,  # type: ignore[arg-type]  # One of the enum's values.
        dry_run=True,
    )
    if target is not None:
        request.request.policy.quality_target = target
    request.embedding.values.extend(vectors.of[text].tolist())
    request.embedding.embedder = vectors.version
    return request


# At 0.9 a dollar buys about as much as the strongest class adds on half of the reasoning questions: what differs there
# is medium or complex, never simple.
@pytest.mark.parametrize(
    ("strategy", "target", "least_agreement"),
    [
        (router_pb2.STRATEGY_FEATURES, None, 0.85),
        (router_pb2.STRATEGY_TRAINED, 0.8, 0.85),
        (router_pb2.STRATEGY_TRAINED, 0.9, 0.75),
        (router_pb2.STRATEGY_TRAINED, 0.95, 0.75),
    ],
)
async def test_korean_reasoning_is_not_simpler_than_english(
    heads: Heads, vectors: Vectors, tmp_path: Path, strategy: int, target: float | None, least_agreement: float
) -> None:
    tiers: dict[tuple[str, str], list[int]] = {}
    async with router(heads, tmp_path) as stub:
        for kind, pairs in PAIRS.items():
            for language in ("en", "ko"):
                answers = [await stub.SelectModel(ask(pair[language], vectors, strategy, target)) for pair in pairs]
                tiers[kind, language] = [answer.tier for answer in answers]
    assert tiers["reasoning", "ko"].count(SIMPLE) <= tiers["reasoning", "en"].count(SIMPLE)
    compared = [
        (kind, pair["en"], english, korean)
        for kind, pairs in PAIRS.items()
        for pair, english, korean in zip(pairs, tiers[kind, "en"], tiers[kind, "ko"], strict=True)
    ]
    differing = [each for each in compared if each[2] != each[3]]
    assert len(compared) >= 40
    assert 1 - len(differing) / len(compared) >= least_agreement, differing
    assert tiers["easy", "ko"].count(SIMPLE) >= 15


async def test_the_heads_decide_and_say_so(heads: Heads, vectors: Vectors, tmp_path: Path) -> None:
    question = PAIRS["reasoning"][3]["en"]
    async with router(heads, tmp_path) as stub:
        answer = await stub.SelectModel(ask(question, vectors, router_pb2.STRATEGY_TRAINED, 0.95))
    assert answer.strategy == router_pb2.STRATEGY_TRAINED
    assert answer.heads_version == heads.version
    assert answer.quality_price > 0
    assert "trained, quality target 0.95" in answer.reason


async def test_heads_of_another_embedder_leave_it_to_the_features(
    heads: Heads, vectors: Vectors, tmp_path: Path
) -> None:
    other = dataclasses.replace(heads, embedder_version="multilingual-e5-small@1-fp32")
    async with router(other, tmp_path) as stub:
        answer = await stub.SelectModel(ask(PAIRS["easy"][0]["ko"], vectors, router_pb2.STRATEGY_TRAINED))
    assert answer.strategy == router_pb2.STRATEGY_FEATURES
    assert f"the embedding is of {vectors.version}, the heads of multilingual-e5-small@1-fp32" in answer.reason


async def test_a_catalogue_that_changes_changes_the_trained_decision(
    heads: Heads, vectors: Vectors, tmp_path: Path
) -> None:
    """Prices of quality are of a catalogue: what was cheap and is dear now is asked for less."""
    path = tmp_path / "catalog.yaml"
    path.write_text(TEXT, "utf-8")
    file = WatchedFile(path, CatalogReader(lambda: datetime.now(UTC)))
    requests = [ask(pair["en"], vectors, router_pb2.STRATEGY_TRAINED, 0.9) for pair in PAIRS["reasoning"]]
    async with router(heads, tmp_path, file=file) as stub:
        before = [await stub.SelectModel(request) for request in requests]
        assert 'input: "5"\n    output: "25"' in TEXT
        path.write_text(TEXT.replace('input: "5"\n    output: "25"', 'input: "500"\n    output: "2500"'), "utf-8")
        await file.refresh()
        after = [await stub.SelectModel(request) for request in requests]
        path.write_text("models: [", "utf-8")
        await file.refresh()
        broken = [await stub.SelectModel(request) for request in requests]
    assert {answer.catalog_version for answer in before}.isdisjoint(answer.catalog_version for answer in after)
    assert before[3].quality_price != after[3].quality_price
    assert before[3].strategy == after[3].strategy == router_pb2.STRATEGY_TRAINED
    assert [answer.model for answer in broken] == [answer.model for answer in after], "a bad file changes nothing"

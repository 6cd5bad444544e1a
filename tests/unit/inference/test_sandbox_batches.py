"""How the sandbox's batches run: in no order, the same again by seed, and as a plan says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from sandbox.batch_runs import BatchClock, BatchControl, BatchItem, BatchPlan, BatchRun
from sandbox.openai_batches import read_items


async def responder(body: dict[str, Any], custom_id: str) -> tuple[int, dict[str, Any]]:
    return 200, {"said": custom_id}


async def run(plan: BatchPlan, count: int = 50, names: str = "i") -> tuple[BatchRun, BatchControl]:
    control = BatchControl(plan, BatchClock(), Counter())
    made = BatchRun([BatchItem(f"{names}{n}", {}) for n in range(count)], control, responder, {"failed": True})
    await made.task
    return made, control


def shape(made: BatchRun) -> list[tuple[str, str, int]]:
    return [(each.custom_id.lstrip("ij"), each.kind, each.status) for each in made.outcomes]


async def test_the_same_seed_gives_the_same_batch() -> None:
    plan = BatchPlan(seed=3, failed_share=0.3, expire_after=30)
    first, control = await run(plan)
    assert shape(first) == shape((await run(plan, names="j"))[0])
    assert shape(first) != shape((await run(BatchPlan(seed=4, failed_share=0.3, expire_after=30)))[0])
    assert [each.custom_id for each in first.outcomes] != [f"i{n}" for n in range(50)]
    assert (first.count("answered"), first.count("expired")) == (30, 20)
    assert 3 < first.count("answered", good=False) < 20
    assert sum(control.runs.values()) == 30
    assert (first.state, first.expired, first.cancelled) == ("ended", True, False)


async def test_a_window_that_passes_expires_what_has_not_run() -> None:
    made, control = await run(BatchPlan(window_seconds=60, item_seconds=10, speed=1000), 40)
    assert made.expired
    assert 0 < made.count("answered") < 40
    assert made.count("expired") == 40 - sum(control.runs.values())


async def test_result_files_as_the_plan_says() -> None:
    made, _ = await run(BatchPlan(duplicate_share=0.5, garbage_lines=1, stranger_lines=1), 20)
    lines = made.lines(lambda each: {"custom_id": each.custom_id}, lambda _: True).splitlines()
    assert lines[0] == b"<html>"
    assert 25 < len(lines) < 38
    assert b"nobody0" in lines[-1]
    whole = (await run(BatchPlan(), 20))[0].lines(lambda each: {"custom_id": each.custom_id}, lambda _: True)
    cut = (await run(BatchPlan(truncate_bytes=9), 20))[0].lines(lambda each: {"custom_id": each.custom_id}, bool)
    assert cut == whole[:-9]


@pytest.mark.parametrize("text", ["[]", '{"sed": 1}', '{"seed": "1"}', '{"fail_validation": 1}', '{"seed": true}', "{"])
def test_a_plan_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        BatchPlan.from_json(text)


def test_a_plan_from_json() -> None:
    assert BatchPlan.from_json('{"seed": 7, "failed_share": 0.5}') == BatchPlan(seed=7, failed_share=0.5)
    assert BatchPlan.from_json("") == BatchPlan()
    control = BatchControl(BatchPlan(drop_creates=2), BatchClock(), Counter())
    assert [control.take("drop_creates") for _ in range(3)] == [True, True, False]


GOOD = '{"custom_id": "%s", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "%s"}}'


@pytest.mark.parametrize(
    ("content", "codes"),
    [
        ("", ["empty_file"]),
        (GOOD % ("a", "m"), []),
        ("x\n" + GOOD % ("a", "m"), ["invalid_json_line"]),
        (GOOD % ("a", "m") + "\n" + GOOD % ("a", "m"), ["duplicate_custom_id"]),
        (GOOD % ("a", "m") + "\n" + GOOD % ("b", "n"), ["mismatched_model"]),
        ((GOOD % ("a", "m")).replace("chat/", ""), ["mismatched_url"]),
    ],
)
def test_input_files_are_validated(content: str, codes: list[str]) -> None:
    assert [each["code"] for each in read_items(content.encode())[1]] == codes

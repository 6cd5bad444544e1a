"""The shadow check in ``tenth report``: a table on the terminal, a section of the page, and no failed request."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import grpc
import pytest
from tenth.ledger.v1 import ledger_pb2

from tests.integration.client.ledger_stand_in import BASELINE, EVIL, check, receipts, stand_in
from tests.integration.client.test_client_calls import failing, info
from tests.integration.client.test_client_report import desk_of, read


def checked() -> list[Any]:
    """Forty requests and six checks."""
    verdicts = ("same", "same", "worse", "better", "undecided")
    made = [check(number, verdict) for number, verdict in enumerate(verdicts)]
    return [*receipts(40), *made, check(5, "same", mode="aggressive", model=EVIL)]


async def test_shadow_checks_have_a_table_of_their_own(tmp_path: Path) -> None:
    async with desk_of(tmp_path, stand_in(checked())) as desk:
        said = await desk.run("report", "--by", "model", "--csv", str(desk.path("sums.csv")))
        assert said.startswith(f"baseline: {BASELINE}\n40 requests (")
        lines = said[said.index("shadow check:") :].splitlines()
        cells = [re.split(r"\s*[│┃|]\s*", line.strip()) for line in lines]
        assert ["safe", "mini", "4", "2", "1", "1", "1", "25.0% (4.6% to 69.9%)", "$0.035000"] in cells
        assert ["aggressive", EVIL, "1", "1", "0", "0", "0", "0.0% (0.0% to 79.3%)", "$0.007000"] in cells
        assert ["all", "", "5", "3", "1", "1", "1", "20.0% (3.6% to 62.4%)", "$0.042000"] in cells
        rows = read(desk.path("sums.csv"))
        assert sum(int(row["request_count"]) for row in rows) == 40
        assert sum(int(row["shadow_check_count"]) for row in rows) == 6
        assert sum(int(row["actual_nano_usd"]) for row in rows) == desk.actual


async def test_a_report_without_checks_asks_for_none(tmp_path: Path) -> None:
    async with desk_of(tmp_path, stand_in(receipts(40))) as desk:
        assert "shadow" not in await desk.run("report")
        assert not [each for each in desk.ledger.requests if each.filter.tag_key]


async def test_checks_whose_receipts_are_deleted_are_said_to_be(tmp_path: Path) -> None:
    ledger = stand_in(checked())
    sums = ledger.GetSpendReport
    gone = failing(grpc.StatusCode.FAILED_PRECONDITION, info("RECEIPTS_PAST_RETENTION"))

    async def forgetful(request: Any, context: Any) -> ledger_pb2.GetSpendReportResponse:
        if request.filter.tag_key:
            await gone(context)
        return await sums(request, context)

    ledger.GetSpendReport = forgetful  # type: ignore[method-assign]
    async with desk_of(tmp_path, ledger) as desk:
        said = await desk.run("report", "--html", str(desk.path("page.html")))
        assert "are deleted; ask --since" in said
        assert "and with them what the judge said" in desk.path("page.html").read_text("utf-8")


@pytest.mark.parametrize(("language", "title", "worse"), [("en", "Shadow check", "Worse"), ("ko", "섀도 점검", "나쁨")])
async def test_the_page_shows_the_checks(tmp_path: Path, language: str, title: str, worse: str) -> None:
    async with desk_of(tmp_path, stand_in(checked())) as desk:
        await desk.run("report", "--html", str(desk.path("page.html")), "--lang", language)
        text = desk.path("page.html").read_text("utf-8")
        section = text[text.index(title) : text.index("</table>", text.index(title))]
        assert worse in section
        assert "25.0% (4.6%" in section
        assert EVIL not in text
        # They are no failed requests.
        assert not re.search(r">s\d<", text)

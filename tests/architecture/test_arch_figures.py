"""The figures of the documents are those that the scripts print from the committed results; none is typed by hand."""

from __future__ import annotations

import re
from pathlib import Path

from bench import headline
from bench.tables import rendered

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
NOT_YET = ("Not measured yet.\n", "아직 재지 않았습니다.\n")


def test_the_tables_of_the_benchmarks_page_are_fresh() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    new, problems = rendered(text, RESULTS)
    assert new == text, "run `python -m bench.tables`"
    # What has no result yet says so, and nothing else is without one.
    absent = [problem.partition(":")[0] for problem in problems]
    blocks = dict(re.findall(r"<!-- bench:(\w+) -->\n(.*?)<!-- /bench:", text, re.DOTALL))
    assert {name: blocks.get(name) for name in absent} == dict.fromkeys(absent, NOT_YET[0])


def test_the_readmes_headline_is_fresh() -> None:
    pages = [ROOT / page.name for page in headline.PAGES]
    result = RESULTS / "endtoend.json"
    if result.is_file():
        assert headline.main(["--check", "--result", str(result), *map(str, pages)]) == 0
        return
    bodies = [
        re.findall(r"<!-- bench:headline:begin.*-->\n(.*?)<!--", page.read_text("utf-8"), re.DOTALL) for page in pages
    ]
    assert bodies == [[text] for text in NOT_YET]

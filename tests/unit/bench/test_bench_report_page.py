"""The proof's page: whole, alone, escaped, in both languages; and what `make bench` runs."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench import proof, report
from bench.endtoend_play import Outcome
from bench.endtoend_sums import Run
from bench.endtoend_tables import assumed, sheets
from bench.endtoend_warming import add_warming, warming
from bench.headline import RESULT
from bench.report_page import page
from bench.report_words import KOREAN, SECTIONS
from bench.result import Result
from tests.unit.bench.endtoend_result import small_result

_VOID = {"meta", "link", "input", "br"}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def text() -> str:
    return page({"endtoend": small_result().as_json()})


def test_the_page_is_well_formed_and_loads_nothing(text: str) -> None:
    reader = _Reader()
    reader.feed(text)
    assert reader.open == []
    assert not {tag for tag, _ in reader.seen} & {"script", "img", "iframe", "object", "image", "use"}
    links = [value for _, attributes in reader.seen for name, value in attributes.items() if name in ("src", "href")]
    assert links == ["data:,"]
    assert "default-src 'none'" in text
    assert not re.search(r"url\((?!#)|@import", text)


def test_every_section_is_there_with_its_drawings(text: str) -> None:
    assert re.findall(r'<section id="(\w+)">', text) == list(SECTIONS)
    # Two waterfalls, the ablation, the frontier, the warming.
    assert text.count("<svg") == 5
    assert "var(--ink)" in text[text.index("<svg") :]


def test_figures_and_assumptions_stand_on_it_escaped(text: str) -> None:
    for said in ("8.1%", "0.081 [0.073, 0.089]", "&lt;b&gt;strong&lt;/b&gt;", "no own hardware &amp; no idle cost"):
        assert said in text
    assert "litellm: not &lt;installed&gt;" in text
    assert "<b>strong</b>" not in text


def test_each_language_is_shown_alone(text: str) -> None:
    assert text.count('<span lang="en">') == text.count('<span lang="ko">') > 40
    assert "#en:checked~main [lang=ko]" in text


def test_every_title_has_its_korean() -> None:
    result = small_result().as_json()
    same = {"p50", "p95", "LiteLLM p50", "support", "bulk", "rag", "chat", "reasoning"}
    titles = {title for sheet in [*sheets(result), *assumed(result)] for title in sheet.titles}
    assert {title for title in titles - same - set(KOREAN) if not title.startswith("if the strong model")} == set()


def test_a_reduced_run_says_so(text: str) -> None:
    said = "This is a reduced run"
    assert said not in text
    assert said in page({"endtoend": small_result(quick=True).as_json()})


def test_the_demo_makes_a_page_that_claims_no_quality(tmp_path: Path) -> None:
    demo = {
        "requests": 200, "failed": 1, "baseline_models": ["big"], "baseline_nano_usd": 1000,
        "baseline_prompt_cached_nano_usd": 800, "actual_nano_usd": 126, "overhead_nano_usd": 6, "seconds": 67.2,
        "savings_nano_usd": {"cache": 300, "routing": 500, "compression": 80, "prompt_cache": 0, "batch": 0,
                             "quantization": 0},
    }  # fmt: skip
    metrics = report.from_demo(demo)["metrics"]
    assert metrics["demo/ours/cost_ratio"]["value"] == 0.126
    assert metrics["demo/ours/cost_ratio_prompt_cached"]["value"] == 126 / 800
    (tmp_path / "demo.json").write_text(json.dumps(demo), "utf-8")
    out = tmp_path / "to" / "page.html"
    arguments = ["--results", str(tmp_path / "none"), "--demo", str(tmp_path / "demo.json"), "--out", str(out)]
    assert report.main(arguments) == 0
    written = out.read_text("utf-8")
    assert "12.6%" in written
    assert "not known" in written
    assert "This is a reduced run" in written


def test_without_a_result_there_is_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--results", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 1
    assert "endtoend.json: not there" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_warming_goes_through_the_result() -> None:
    outcomes = [Outcome(index=at, baseline=100, actual=100 - at, hit="exact" if at >= 50 else "") for at in range(100)]
    result = Result("endtoend", quick=False)
    add_warming(result, {"even": Run([], outcomes, {})})
    points = warming(result.metrics)["even/ours"]
    assert [end for end, _, _ in points] == list(range(20, 101, 5))
    assert [saved for _, saved, _ in points[:: len(points) - 1]] == pytest.approx([0.095, 0.895])
    assert [hits for _, _, hits in points[:: len(points) - 1]] == [0.0, 1.0]
    assert len(warming(small_result().metrics)) == 2


@pytest.mark.parametrize(
    ("there", "full", "quoted", "modules"),
    [
        (True, False, False, ["bench.endtoend", "bench.report"]),
        (True, False, True, ["bench.endtoend", "bench.report", "bench.tables", "bench.headline"]),
        (
            True,
            True,
            False,
            ["bench.endtoend", "bench.endtoend_seeds", "bench.report", "bench.tables", "bench.headline"],
        ),
        (False, False, False, ["tenth_client.demo", "bench.report"]),
    ],
)
def test_the_steps_of_make_bench(there: bool, full: bool, quoted: bool, modules: list[str]) -> None:
    found = proof.steps(Path("d"), data_there=there, full=full, quoted=quoted)
    assert [step[0] for step in found] == modules
    assert ("--quick" in found[0]) == (there and not full)
    assert (str(RESULT) in found[0]) == full


def test_the_full_form_needs_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert proof.main(["--data", str(tmp_path / "absent"), "--full"]) == 1
    assert "no evaluation data" in capsys.readouterr().err

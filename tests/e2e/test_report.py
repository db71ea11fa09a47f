"""The report as a browser shows it: its figures, its layout on phone and desktop, and that it asks for nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from peerless.report.document import page
from peerless.report.reading import read_run
from tests.browser import Chromium, Page
from tests.fakes.kept_runs import made_run

RECORDED = Path(__file__).resolve().parents[1] / "golden" / "run"
KINDS = ("recorded", "made", "side by side", "evil", "bare")
#: Whatever lies beyond the screen's right end, but for what scrolls in a box of its own.
BEYOND = """
[...document.querySelectorAll("body *")].filter(e => !e.closest(".table table, pre, svg *")
  && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 200))
"""
#: Texts of a chart that are cut off by its edge.
CUT = """
[...document.querySelectorAll("svg")].filter(e => e.checkVisibility()).flatMap(svg => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter(e => {
    const b = e.getBoundingClientRect();
    return b.left < box.left - 1 || b.right > box.right + 1 || b.bottom > box.bottom + 1 || b.top < box.top - 1;
  }).map(e => e.textContent);
})
"""
#: Figures by name, as a person reads them, one per run.
FIGURES = """
Object.fromEntries([...document.querySelectorAll("tr[data-figure]")].map(row =>
  [row.dataset.figure, [...row.querySelectorAll("td")].map(cell => cell.innerText)]))
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    with Chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file per kind of report."""
    folder = tmp_path_factory.mktemp("reports")
    bare = made_run(folder / "bare")  # nothing but half of its events
    for name in ("summary.json", "config.toml"):
        (bare / name).unlink()
    several = [made_run(folder / "sync"), made_run(folder / "a-rather-long-name-of-an-asynchronous-run", mode="async")]
    runs = {
        "recorded": [RECORDED],
        "made": [made_run(folder / "made")],
        "side by side": [*several, RECORDED],
        "evil": [made_run(folder / "evil", evil=True)],
        "bare": [bare],
    }
    for kind, folders in runs.items():
        (folder / f"{kind}.html").write_text(page([read_run(each) for each in folders]), encoding="utf-8")
    return {kind: folder / f"{kind}.html" for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("wide", "dark"), [(320, False), (375, True), (768, False), (1280, True)])
def test_nothing_overflows_complains_or_is_fetched(
    chromium: Chromium, reports: dict[str, Path], kind: str, wide: int, dark: bool
) -> None:
    shown = Page(chromium, reports[kind], wide=wide, dark=dark)
    assert shown.evaluate("document.documentElement.scrollWidth") <= wide
    assert shown.evaluate(BEYOND) == []
    assert shown.evaluate(CUT) == []
    assert shown.evaluate("document.querySelectorAll('svg').length") > 3
    assert shown.complaints() == []
    assert shown.requests() == [reports[kind].as_uri().replace(" ", "%20")]


@pytest.mark.parametrize("kind", ["recorded", "made"])
def test_the_figures_are_those_of_the_summary(
    chromium: Chromium, reports: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    summary = json.loads(
        ((RECORDED if kind == "recorded" else made_run(tmp_path / "made")) / "summary.json").read_text()
    )
    shown = Page(chromium, reports[kind], wide=1100)
    found = shown.evaluate(FIGURES)
    assert found["test_accuracy"] == [f"{summary['test_accuracy']:.2%}"]
    assert found["rounds"] == [str(summary["rounds"])]
    assert found["seconds_training"] == [f"{summary['seconds_training']:.1f} s"]
    assert found["seconds_total"] == [f"{summary['seconds_total']:.1f} s"]
    assert found["compression_ratio"] == [f"{summary['compression_ratio']:.2f}x"]
    assert found["lambda_invocations"] == [f"{summary['lambda_invocations']:,}"]
    assert found["bytes_sent"] == [f"{sum(summary['bytes_sent'].values()) / 1e6:.2f} MB"]
    assert found["peak_memory_bytes"] == [f"{summary['peak_memory_bytes'] / 1e9:.2f} GB"]
    assert float(found["test_loss"][0]) == pytest.approx(summary["test_loss"], rel=1e-3)
    assert float(found["validation_loss"][0]) == pytest.approx(summary["validation_loss"], rel=1e-3)
    for stage, row in summary["stages"].items():
        seconds, cpu, python, resident, came, went = map(float, found[f"stages.{stage}"])
        assert (seconds, cpu) == (pytest.approx(row["seconds"], abs=0.006), pytest.approx(row["cpu_percent"], abs=0.6))
        told = (row["peak_bytes"], row["peak_rss_bytes"], row["bytes_in"], row["bytes_out"])
        assert [python, resident, came, went] == pytest.approx([value / 1e6 for value in told], abs=0.06)
    for part, spent in summary.get("cost", {}).get("parts", {}).items():
        assert float(found[f"cost.{part}"][0]) == pytest.approx(spent, rel=1e-3)


def test_light_and_dark_have_their_own_colours(chromium: Chromium, reports: dict[str, Path]) -> None:
    looks = [
        Page(chromium, reports["made"], wide=800, dark=dark).evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
            " getComputedStyle(document.querySelector('svg text')).fill,"
            " getComputedStyle(document.querySelector('svg circle')).fill]"
        )
        for dark in (False, True)
    ]
    assert all(light != dark for light, dark in zip(*looks, strict=True))


def test_nothing_that_a_run_says_becomes_part_of_the_page(chromium: Chromium, reports: dict[str, Path]) -> None:
    shown = Page(chromium, reports["evil"], wide=800)
    assert shown.evaluate("window.evil === undefined")
    assert shown.evaluate("document.querySelectorAll('script, img').length") == 0
    text = shown.evaluate("document.body.textContent")
    assert "<script>window.evil=1</script>" in text
    assert "{{ 7*7 }}" in text


def test_it_prints_in_light_colours_with_the_configuration_and_without_links(
    chromium: Chromium, reports: dict[str, Path]
) -> None:
    shown = Page(chromium, reports["made"], wide=800, dark=True, media="print")
    look = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('nav')).display]"
    assert shown.evaluate(look) == ["rgb(255, 255, 255)", "none"]
    assert shown.evaluate(CUT) == []
    assert shown.evaluate("document.querySelector('pre').checkVisibility({contentVisibilityAuto: true})")
    assert shown.printed().startswith(b"%PDF-")


def test_what_is_missing_and_damaged_is_told(chromium: Chromium, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(RECORDED, folder)
    lines = (folder / "events.jsonl").read_text().splitlines()
    lines[3] = lines[3][:40]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "summary.json").write_text("{")
    (tmp_path / "report.html").write_text(page([read_run(folder)]), encoding="utf-8")
    shown = Page(chromium, tmp_path / "report.html", wide=375)
    told = shown.evaluate("document.querySelector('#problems').innerText")
    assert "events.jsonl, line 4: left out" in told
    assert "summary.json is damaged" in told
    assert shown.evaluate("document.querySelectorAll('#learning svg').length") >= 2
    assert shown.evaluate("document.documentElement.scrollWidth") <= 375

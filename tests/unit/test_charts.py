"""Charts as SVG (peerless/report/charts.py, axes.py)."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from peerless.report import charts
from peerless.report.axes import Axis, number, scale, shortened, width
from peerless.report.charts import Bars, Lane, Line, Stretch

SVG = "{http://www.w3.org/2000/svg}"
ROUNDS, LOSS = Axis(label="rounds", whole=True), Axis(label="loss")


def parsed(svg: str) -> ElementTree.Element:
    """Well formed, and with nothing that is beyond its box to the left and right."""
    root = ElementTree.fromstring(svg)  # noqa: S314
    wide = float(root.attrib["viewBox"].split()[2])
    for text in root.iter(f"{SVG}text"):
        x, long = float(text.attrib["x"]), width(text.text or "")
        begin = x - long * {"end": 1.0, "middle": 0.5}.get(text.attrib.get("text-anchor", ""), 0.0)
        assert begin >= -0.5, (text.text, begin)
        assert begin + long <= wide + 0.5, (text.text, begin + long, wide)
    return root


def texts(root: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("values", "axis", "ticks"),
    [
        ([0.0, 10.0], LOSS, ["0", "5", "10"]),
        ([0.12, 0.93], Axis(label="", percent=True), ["0%", "50%", "100%"]),
        ([0, 3], ROUNDS, ["0", "1", "2", "3"]),
        ([2.31, 2.29], LOSS, ["2.290", "2.295", "2.300", "2.305", "2.310"]),
        ([0, 4_000_000], LOSS, ["0", "1,000k", "2,000k", "3,000k", "4,000k"]),
        ([0, 3e-6], LOSS, ["0", "1e-6", "2e-6", "3e-6"]),
        ([1, 1000], Axis(label="", log=True), ["1", "10", "100", "1,000"]),
        ([5.0], LOSS, ["4.5", "5.0", "5.5"]),
        ([0.0], LOSS, ["0.0", "0.5", "1.0"]),
        ([1.0, math.nan, math.inf, 2.0], Axis(label="", zero=True), ["0.0", "0.5", "1.0", "1.5", "2.0"]),
    ],
)
def test_ticks_are_at_round_numbers_and_cover_the_values(values: list[float], axis: Axis, ticks: list[str]) -> None:
    found = scale(values, axis, ticks=4)
    shown = [text for _, text in found.ticks]
    places = [found.place(value) for value in values if math.isfinite(value)]
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
    assert shown == ticks


def test_a_tight_axis_ends_with_the_values() -> None:
    found = scale([0.3, 9.7], LOSS, ticks=5, tight=True)
    assert (found.low, found.high) == (0.3, 9.7)
    assert [text for _, text in found.ticks] == ["2", "4", "6", "8"]


@pytest.mark.parametrize(
    ("value", "percent", "text"),
    [
        (0.8915, True, "89.15%"),
        (1.0, True, "100%"),
        (12.3456, False, "12.35"),
        (0.000123456, False, "0.0001235"),
        (0.0000123456, False, "1.23e-05"),
        (1234567.8, False, "1,234,568"),
        (0.0, False, "0"),
        (math.nan, False, "nan"),
    ],
)
def test_figures_read_well(value: float, percent: bool, text: str) -> None:
    assert number(value, percent=percent) == text


def test_a_line_ends_where_there_is_no_number_and_goes_on_after_it() -> None:
    one = Line(name="a", points=[(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.5), (4, 1.0)])
    root = parsed(charts.lines("loss", "by round", [one], x=ROUNDS, y=LOSS))
    drawn = [path for path in root.iter(f"{SVG}path") if path.attrib.get("stroke", "").startswith("var(--c")]
    assert [path.attrib["d"].count("L") for path in drawn] == [1, 1]
    assert len(list(root.iter(f"{SVG}circle"))) == 4


def test_lines_differ_in_more_than_colour() -> None:
    many = [Line(name=f"run {index}", points=[(0, index), (1, index + 1)]) for index in range(4)]
    root = parsed(charts.lines("loss", "by round", many, x=ROUNDS, y=LOSS))
    drawn = [path for path in root.iter(f"{SVG}path") if path.attrib.get("fill") == "none"]
    assert len({path.attrib.get("stroke-dasharray") for path in drawn}) == 4
    assert len({path.attrib["stroke"] for path in drawn}) == 4
    assert {f"run {index}" for index in range(4)} <= set(texts(root))


def test_a_long_line_is_thinned_and_keeps_its_extremes() -> None:
    points = [(float(x), math.sin(x / 50)) for x in range(20_000)] + [(20_000.0, 9.0)]
    root = parsed(charts.lines("t", "d", [Line(name="a", points=points)], x=ROUNDS, y=LOSS))
    (drawn,) = (path for path in root.iter(f"{SVG}path") if path.attrib.get("fill") == "none")
    heights = [float(place.split()[1]) for place in re.split("[ML]", drawn.attrib["d"])[1:]]
    assert len(heights) <= 410
    assert min(heights) < min(heights[:-5]) - 50  # the one that stands out is the last


def test_bars_have_their_values_and_a_dash_where_there_is_none() -> None:
    series = [Bars(name="a", values=[1.0, None]), Bars(name="b", values=[4.0, 2.0])]
    root = parsed(charts.bars("t", "d", ["one", "two"], series, axis=Axis(label="seconds")))
    titled = {(box.findtext(f"{SVG}title") or ""): float(box.attrib["width"]) for box in root.iter(f"{SVG}rect")}
    assert set(titled) == {"one: a 1", "one: b 4", "two: b 2"}
    assert titled["one: b 4"] == pytest.approx(4 * titled["one: a 1"], abs=0.5)
    assert "–" in texts(root)


def test_stacked_bars_follow_each_other_and_show_their_sum() -> None:
    series = [Bars(name="a", values=[1.0]), Bars(name="b", values=[3.0])]
    root = parsed(charts.bars("t", "d", ["one"], series, axis=Axis(label="USD"), stacked=True))
    first, second = root.iter(f"{SVG}rect")
    end = float(first.attrib["x"]) + float(first.attrib["width"])
    assert float(second.attrib["x"]) == pytest.approx(end, abs=0.2)
    assert "4" in texts(root)


def test_a_timeline_places_stretches_by_their_moments() -> None:
    lanes = [
        Lane(name="peer 0", stretches=[Stretch(began=0, ended=5, kind="compute", title="five")]),
        Lane(name="peer 1", stretches=[Stretch(began=5, ended=10, kind="receive")]),
    ]
    kinds = {"compute": "c0", "receive": "wait"}
    root = parsed(
        charts.timeline("t", "d", lanes, kinds=kinds, x=Axis(label="seconds"), marks=[(5, "1"), (5.1, "2"), (10, "3")])
    )
    first, second = root.iter(f"{SVG}rect")
    assert float(first.attrib["width"]) == pytest.approx(float(second.attrib["width"]), abs=0.2)
    assert float(second.attrib["x"]) == pytest.approx(float(first.attrib["x"]) + float(first.attrib["width"]), abs=0.2)
    assert first.findtext(f"{SVG}title") == "five"
    assert "2" not in [text for text in texts(root) if text in ("1", "2", "3")][1:2]  # it would run over the first


def test_points_have_labels_ranges_and_lines() -> None:
    one = Line(name="plan", points=[(1, 1), (9, 2)], labels=["cheapest", ""], ranges=[(0.5, 1.5), (1, 3)], joined=True)
    root = parsed(charts.scatter("t", "d", [one], x=Axis(label="USD"), y=Axis(label="seconds")))
    assert "cheapest" in texts(root)
    assert len([path for path in root.iter(f"{SVG}path") if path.attrib.get("opacity") == "0.55"]) == 2


def test_names_inject_nothing() -> None:
    evil = "</title><script>alert(1)</script>\"&'"
    one = Line(name=evil, points=[(0, 1), (1, 2)], labels=[evil, ""])
    for svg in (
        charts.lines(evil, evil, [one, one], x=Axis(label=evil), y=Axis(label=evil)),
        charts.scatter(evil, evil, [one], x=ROUNDS, y=LOSS),
        charts.bars(evil, evil, [evil], [Bars(name=evil, values=[1.0]), Bars(name="b", values=[2.0])], axis=LOSS),
        charts.timeline(
            evil,
            evil,
            [Lane(name=evil, stretches=[Stretch(began=0, ended=1, kind=evil, title=evil)])],
            kinds={evil: "c0"},
            x=LOSS,
            marks=[(0.5, evil)],
        ),
    ):
        assert not list(ElementTree.fromstring(svg).iter(f"{SVG}script"))  # noqa: S314
        assert "<script" not in svg


@pytest.mark.parametrize("wide", [280, 420, 900])
def test_long_names_stay_within_the_picture(wide: int) -> None:
    long = [Line(name="a run with a very long name " * 3 + str(index), points=[(0, 1), (1, 2)]) for index in range(3)]
    parsed(charts.lines("t", "d", long, x=Axis(label="rounds " * 30), y=Axis(label="loss " * 30), size=(wide, 260)))
    values = [Bars(name=each.name, values=[123456.0]) for each in long]
    parsed(charts.bars("t", "d", ["group " * 40], values, axis=LOSS, wide=wide))


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(ValueError, match="finite number"):
        charts.lines("t", "d", [Line(name="a", points=[(0, math.nan)])], x=ROUNDS, y=LOSS)
    with pytest.raises(ValueError, match="finite number"):
        charts.bars("t", "d", ["a"], [Bars(name="a", values=[None])], axis=LOSS)
    with pytest.raises(ValueError, match="finite number"):
        charts.timeline("t", "d", [], kinds={}, x=LOSS)


def test_a_picture_of_its_own_has_its_colours() -> None:
    root = parsed(charts.standalone(charts.bars("t", "d", ["a"], [Bars(name="a", values=[1.0])], axis=LOSS)))
    assert "--c0" in (root.findtext(f"{SVG}style") or "")


def test_every_colour_stands_out_from_the_paper() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    themes = [dict(re.findall(r"--(\w+):(#\w{6})", part)) for part in charts.STYLE.split(":root")[1:]]
    assert len(themes) == 3
    for theme in themes:
        paper = luminance(theme["paper"])
        for name, least in [("ink", 7.0), ("soft", 4.5)] + [(f"c{index}", 3.0) for index in range(charts.COLOURS)]:
            other = luminance(theme[name])
            assert (max(paper, other) + 0.05) / (min(paper, other) + 0.05) >= least, (name, theme)


def test_a_text_is_cut_to_its_room() -> None:
    assert shortened("short", 100) == "short"
    assert shortened("a long name indeed", 60).endswith("…")
    assert width(shortened("名前" * 20, 60)) <= 60

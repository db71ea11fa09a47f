"""Definitions as text and as pictures: what must be in them, and that nothing lies outside of its box."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from peerless.cli import main
from statemachines import Mode, choose_mode, definition
from statemachines.picture import mermaid
from statemachines.svg import CAUGHT_LABEL, svg

SVG = "{http://www.w3.org/2000/svg}"
LONG = f"arn:aws:lambda:us-east-1:123456789012:function:{'f' * 64}:live"
REDUCER = "arn:aws:lambda:us-east-1:123456789012:function:adds-up"


def made(mode: Mode, batches: int = 5, tolerated: float = 0, arn: str = LONG, reducer: str = "") -> dict[str, Any]:
    return definition(
        mode, function_arn=arn, batches=batches, concurrency=7, timeout_seconds=60, tolerated=tolerated,
        reducer_arn=reducer,
    )  # fmt: skip


@pytest.mark.parametrize("mode", Mode)
def test_a_chart_shows_how_gradients_are_added_up(mode: Mode) -> None:
    chart = mermaid(made(mode, reducer=REDUCER), 5)
    assert "Reduce?<br/>ends here without $.reduce in its input" in chart
    for level in (1, 2, 3):
        distributed = mode is Mode.DISTRIBUTED_MAP and level == 1
        kind = "distributed" if distributed else "inline"
        assert f"Reduce {level}<br/>{kind} map over groups of gradients" in chart
    assert chart.count("invokes adds-up") == 3
    assert chart.count("its output has retries, not_reduced") == 3
    assert "Reduce" not in mermaid(made(mode), 5)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("tolerated", [0, 3, 0.25])
@pytest.mark.parametrize("batches", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("reducer", ["", REDUCER])
def test_every_text_is_inside_a_box_and_every_box_inside_the_picture(
    mode: Mode, tolerated: float, batches: int, reducer: str
) -> None:
    root = ElementTree.fromstring(svg(made(mode, batches, tolerated, reducer=reducer), batches))  # noqa: S314 - our own text
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    boxes = [
        tuple(float(rect.attrib[name]) for name in ("x", "y", "width", "height")) for rect in root.iter(f"{SVG}rect")
    ]
    assert boxes
    for x, y, wide, high in boxes:
        assert min(x, y) >= 0
        assert x + wide <= width
        assert y + high <= height
    for text in root.iter(f"{SVG}text"):
        x, y, length = (float(text.attrib[name]) for name in ("x", "y", "textLength"))
        around = [(0.0, 0.0, width, height)] if text.text == CAUGHT_LABEL else []  # between two of the outermost boxes
        inside = [
            b
            for b in [*boxes, *around]
            if b[0] <= x and x + length <= b[0] + b[2] and b[1] <= y - 9 and y + 3 <= b[1] + b[3]
        ]
        assert inside, text.text


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("reducer", ["", REDUCER])
def test_boxes_overlap_only_where_one_holds_the_other(mode: Mode, reducer: str) -> None:
    root = ElementTree.fromstring(svg(made(mode, 9, 2, reducer=reducer), 9))  # noqa: S314 - our own text
    boxes = [
        tuple(float(rect.attrib[name]) for name in ("x", "y", "width", "height")) for rect in root.iter(f"{SVG}rect")
    ]
    for i, (x, y, w, h) in enumerate(boxes):
        for ox, oy, ow, oh in boxes[i + 1 :]:
            apart = x + w <= ox or ox + ow <= x or y + h <= oy or oy + oh <= y
            within = x <= ox and y <= oy and ox + ow <= x + w and oy + oh <= y + h
            assert apart or within


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("tolerated", [0, 3])
def test_a_flow_chart_names_every_box_once(mode: Mode, tolerated: int) -> None:
    lines = [line.strip() for line in mermaid(made(mode, 5, tolerated), 5).splitlines()]
    assert lines[0] == "flowchart TD"
    opened = [line for line in lines if line.startswith("subgraph ")]
    assert len(opened) == lines.count("end") == 1
    defined = [match[1] for line in lines if (match := re.match(r"(?:subgraph )?(s\d+)\[", line))]
    assert len(defined) == len(set(defined))
    arrows = [match.groups() for line in lines if (match := re.match(r"(\w+)\S* (?:-->|-\..*\.->) (\w+)", line))]
    assert {name for pair in arrows for name in pair} <= {*defined, "start", "finish"}
    assert sum("fails for good" in line for line in lines) == {
        Mode.INLINE_MAP: 1, Mode.DISTRIBUTED_MAP: 0, Mode.PARALLEL: 3
    }[mode] * bool(tolerated)  # fmt: skip
    assert ("… 2 more …" in "".join(lines)) == (mode is Mode.PARALLEL)


def test_a_picture_says_what_matters() -> None:
    text = mermaid(made(Mode.DISTRIBUTED_MAP, 4_000, 0.05), 4_000)
    for told in ("distributed map over 4,000 batches", "7 at once", "ends early beyond 5% failures", "items from S3"):
        assert told in text
    assert "ends early beyond 1 failure" in mermaid(made(Mode.DISTRIBUTED_MAP, 4, 1))
    assert "tries 10 times more after Lambda.TooManyRequestsException" in text


def test_what_has_a_meaning_in_a_chart_is_escaped() -> None:
    odd = {"StartAt": 'a"<&>', "States": {'a"<&>': {"Type": "Succeed", "End": True}}}
    assert 's1["a&quot;&lt;&amp;&gt;<br/>succeed"]' in mermaid(odd)
    ElementTree.fromstring(svg(odd))  # noqa: S314 - our own text


class TestCommand:
    def run(self, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["peerless", "statemachine", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    @pytest.mark.parametrize(("mode", "batches"), [("auto", 12), ("auto", 901), ("parallel", 3), ("inline_map", 1)])
    def test_render_prints_what_a_run_would_use(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: str, batches: int
    ) -> None:
        options = ["--concurrency", "7", "--timeout-seconds", "60", "--tolerated-failures", "2", "--function", LONG]
        for further, reducer in (([], ""), (["--reducer", REDUCER], REDUCER)):
            given = ["--batches", str(batches), "--mode", mode, *options, *further]
            assert self.run(monkeypatch, "render", *given) == 0
            printed = capsys.readouterr()
            assert json.loads(printed.out) == made(choose_mode(mode, batches, 2, 7), batches, 2, reducer=reducer)
            assert printed.err == ""

    def test_draw_prints_a_chart_or_writes_a_picture(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert self.run(monkeypatch, "draw", "--batches", "3", "--mode", "parallel") == 0
        assert capsys.readouterr().out.startswith("flowchart TD\n")
        path = tmp_path / "machine.svg"
        assert self.run(monkeypatch, "draw", "--batches", "3", "--svg", str(path)) == 0
        assert capsys.readouterr().out == ""
        assert ElementTree.parse(path).getroot().tag == f"{SVG}svg"  # noqa: S314 - our own text

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["render", "--batches", "0"], "a round needs at least one batch, not 0"),
            (["draw", "--batches", "10001"], "at most 10,000 batches a round, not 10,001"),
            (["render", "--batches", "3", "--mode", "express"], "'express' is none of auto, inline_map"),
            (["render", "--batches", "3", "--tolerated-failures", "1.5"], "must be a whole number of batches"),
            (["render", "--batches", "601", "--mode", "parallel", "--tolerated-failures", "1"], "at most 600 batches"),
            (["render", "--batches", "3", "--timeout-seconds", "901"], "compute.timeout_seconds = 901"),
            (["render", "--batches", "3", "--function", ""], "--function is empty"),
            (["draw", "--batches", "3", "--svg", "absent/x.svg"], "--svg absent/x.svg: the picture cannot be written"),
        ],
    )
    def test_mistakes_are_told_in_a_sentence(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
        arguments: list[str],
        told: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert self.run(monkeypatch, *arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith("peerless: ")
        assert told in line

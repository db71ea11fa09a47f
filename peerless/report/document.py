"""The report as one HTML file: tables, inline SVG and CSS, and nothing from anywhere else.

Its content security policy allows styles alone, so that not even an error text that carries markup could run or load
anything; and Jinja escapes all text anyway. Only the charts are passed as they are, because they escape themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from peerless.report import curves, overview, sections
from peerless.report.blocks import NONE, percent, seconds, usd
from peerless.report.charts import STYLE
from peerless.report.reading import KeptRun

_FOLDER = files("peerless.report") / "page"


def page(runs: Sequence[KeptRun]) -> str:
    """The report of one run, or of several side by side."""
    parts = [
        overview.section(runs),
        curves.section(runs),
        sections.stages(runs),
        sections.times(runs),
        sections.traffic(runs),
        sections.cost(runs),
        sections.troubles(runs),
        overview.configuration(runs),
    ]
    environment = Environment(
        loader=FunctionLoader(lambda name: (_FOLDER / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["picture"] = _picture
    one = runs[0] if len(runs) == 1 else None
    return environment.get_template("report.html").render(
        title=one.name if one else f"{len(runs)} runs side by side",
        told=_told(one) if one else ", ".join(run.name for run in runs),
        highlights=_highlights(one) if one else [],
        style=Markup(f"{STYLE}\n{(_FOLDER / 'report.css').read_text(encoding='utf-8')}"),  # noqa: S704
        problems=[problem for run in runs for problem in run.problems],
        sections=[part for part in parts if part.blocks],
    )


def _picture(svg: str) -> Markup:
    """A chart, which escapes what it is given itself."""
    return Markup(svg)  # noqa: S704


def _told(run: KeptRun) -> str:
    """One line under the title."""
    data, model = run.config.get("data"), run.config.get("model")
    source = data.get("source") if isinstance(data, dict) else None
    mode = run.summary.get("mode") or run.story.mode
    words = [
        f"{model} on {source}" if model and source else "",
        {"sync": "synchronous", "async": "asynchronous"}.get(str(mode), ""),
    ]
    return ", ".join(word for word in words if word)


def _highlights(run: KeptRun) -> list[tuple[str, str]]:
    """The figures that one looks for first, of those that there are."""
    summary = run.summary
    cost = summary.get("cost") if isinstance(summary.get("cost"), dict) else {}
    rounds, ratio = summary.get("rounds"), summary.get("compression_ratio")
    found = [
        ("test accuracy", percent(summary.get("test_accuracy"))),
        ("rounds", NONE if rounds is None else f"{rounds:,}"),
        ("training", seconds(summary.get("seconds_training"))),
        ("compression", NONE if ratio is None else f"{ratio:.2f}x"),
        ("cost", usd(cost.get("total") if cost else summary.get("estimated_usd"))),
    ]
    return [(label, value) for label, value in found if value != NONE]

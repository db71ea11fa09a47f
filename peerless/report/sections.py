"""The parts of a report between its summary and the configuration: stages, time, bytes, cost, faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from peerless.report import charts
from peerless.report.axes import Axis
from peerless.report.blocks import (
    NONE,
    Block,
    Picture,
    Row,
    Section,
    Table,
    Words,
    megabytes,
    percent,
    plain,
    rows,
    seconds,
    usd,
)
from peerless.report.charts import Bars, Lane, Line, Stretch
from peerless.report.faults import faults
from peerless.report.reading import KeptRun
from peerless.report.story import STAGES, Story
from peerless.report.waits import waits

#: Colours of the stages; waiting for others is none.
TONES = {"compute": "c0", "send": "c1", "receive": "wait", "update": "c2", "convergence": "c3"}
#: The same for lines, in the stages' order.
_LINES = (0, 1, 7, 2, 3)
#: A timeline shows as many rounds as one can tell apart.
_ROUNDS_SHOWN, _ROUNDS_ON_PHONE = 12, 4
_FAULTS_SHOWN = 100
#: Parts of the cost in a picture; the others are added up.
_PARTS_SHOWN = 7
_SECONDS = Axis(label="seconds")
_WIDE, _NARROW = 900, 380


def stages(runs: Sequence[KeptRun]) -> Section:
    """As in the paper's Table I: means over the peers, of peaks the largest."""
    blocks: list[Block] = []
    told = [run for run in runs if run.summary.get("stages")]
    for run in told:
        found = run.summary["stages"]
        lines = []
        for stage in [name for name in STAGES if name in found]:
            row = found[stage]
            cells = [stage, f"{row['seconds']:.2f}", f"{row['cpu_percent']:.0f}"]
            cells += [f"{row[name] / 1e6:.1f}" for name in ("peak_bytes", "peak_rss_bytes", "bytes_in", "bytes_out")]
            lines.append(Row(cells=tuple(cells), key=f"stages.{stage}"))
        head = ("stage", "seconds", "CPU %", "peak Python MB", "peak RSS MB", "MB in", "MB out")
        caption = "Mean over the peers, whole run" + (f": {run.name}" if len(runs) > 1 else "")
        blocks.append(Table(caption=caption, head=head, rows=tuple(lines)))
    if len(told) > 1:
        names = [stage for stage in STAGES if any(stage in run.summary["stages"] for run in told)]
        series = [
            Bars(
                name=stage,
                values=[run.summary["stages"].get(stage, {}).get("seconds") for run in told],
                tone=TONES[stage],
            )
            for stage in names
        ]
        caption = "Seconds of a peer by stage"
        picture = charts.bars(caption, _spoken(told), [run.name for run in told], series, axis=_SECONDS, stacked=True)
        blocks.insert(0, Picture(caption=caption, svg=picture))
    elif told:
        blocks += _by_peer(told[0].story)
    for run in runs:
        if run not in told:
            blocks.append(Words(text=f"{run.name}: no seconds per stage, as no peer left a report."))
    return Section(name="stages", title="Seconds per stage", blocks=tuple(blocks))


def times(runs: Sequence[KeptRun]) -> Section:
    """Rounds and barriers by peer, and who waited for whom."""
    blocks: list[Block] = []
    for run in runs:
        story, name = run.story, f": {run.name}" if len(runs) > 1 else ""
        if not story.spans:
            blocks.append(Words(text=f"{run.name}: no timeline, as no stage was completed."))
            continue
        numbers = sorted({round for _, round in story.spans})
        shown, few = numbers[-_ROUNDS_SHOWN:], numbers[-_ROUNDS_ON_PHONE:]
        blocks.append(
            Picture(
                caption=f"Who did what when, {_which(story, shown)}{name}",
                svg=_timeline(story, shown, _WIDE),
                narrow=_timeline(story, few, _NARROW),
                narrow_caption=f"Who did what when, {_which(story, few)}{name}",
            )
        )
        if story.mode == "async":
            blocks.append(Words(text="In asynchronous mode nobody waits for anybody: peers take what has come."))
            continue
        lines = [
            (
                f"peer {each.rank}",
                f"{each.seconds:.2f}",
                percent(each.share),
                NONE if each.for_whom is None else f"peer {each.for_whom}",
                f"{each.awaited} of {each.counted}",
            )
            for each in waits(story)
        ]
        head = ("peer", "seconds waited", "of its time", "longest for", "was the last")
        blocks.append(Table(caption=f"Who waited for whom{name}", head=head, rows=rows(*lines)))
    return Section(name="time", title="Rounds and barriers", blocks=tuple(blocks))


def traffic(runs: Sequence[KeptRun]) -> Section:
    """Compression, and bytes by peer."""
    blocks: list[Block] = []
    ratios = [run.summary.get("compression_ratio") for run in runs]
    if len(runs) > 1 and any(ratio is not None for ratio in ratios):
        caption = "Compression: how many times smaller gradients travel"
        named = [f"{run.name} ({run.summary.get('codec', 'no codec known')})" for run in runs]
        svg = charts.bars(caption, "", named, [Bars(name="ratio", values=ratios)], axis=Axis(label="times smaller"))
        blocks.append(Picture(caption=caption, svg=svg))
    for run in runs:
        sent, received = run.summary.get("bytes_sent") or {}, run.summary.get("bytes_received") or {}
        if not sent and not received:
            blocks.append(Words(text=f"{run.name}: no bytes were counted, as no peer left a report."))
            continue
        ranks = sorted({*sent, *received}, key=int)
        lines = [(f"peer {rank}", megabytes(sent.get(rank)), megabytes(received.get(rank))) for rank in ranks]
        ratio = run.summary.get("compression_ratio")
        how = f", {run.summary.get('codec')} at {ratio:.2f}x" if ratio else ""
        title = f"By peer{how}" + (f": {run.name}" if len(runs) > 1 else "")
        blocks.append(Table(caption=title, head=("peer", "sent", "received"), rows=rows(*lines)))
        if len(runs) == 1:
            series = [
                Bars(name="sent", values=[sent.get(rank, 0) / 1e6 for rank in ranks]),
                Bars(name="received", values=[received.get(rank, 0) / 1e6 for rank in ranks]),
            ]
            named = [f"peer {rank}" for rank in ranks]
            svg = charts.bars("Megabytes by peer", "", named, series, axis=Axis(label="MB"))
            blocks.append(Picture(caption="Megabytes by peer", svg=svg))
    return Section(name="traffic", title="Compression and bytes", blocks=tuple(blocks))


def cost(runs: Sequence[KeptRun]) -> Section:
    """What was paid for what, or would have been on AWS."""
    blocks: list[Block] = []
    bills = {run.name: run.summary["cost"] for run in runs if (run.summary.get("cost") or {}).get("parts")}
    if bills:
        total = Counter[str]()
        for bill in bills.values():
            total.update(bill["parts"])
        parts = [part for part, _ in total.most_common()]
        blocks.append(_parts(bills, parts))
        lines = [
            Row(cells=(part, *(plain(bill["parts"].get(part)) for bill in bills.values())), key=f"cost.{part}")
            for part in parts
        ]
        lines.append(Row(cells=("in all", *(plain(bill.get("total")) for bill in bills.values())), key="cost.total"))
        as_if = ", as if on AWS" if all(bill.get("as_if_on_aws") for bill in bills.values()) else ""
        head = ("part", *(bills if len(runs) > 1 else ["USD"]))
        blocks.append(Table(caption=f"US dollars{as_if}", head=head, rows=tuple(lines)))
        used = list(dict.fromkeys(name for bill in bills.values() for name, n in (bill.get("use") or {}).items() if n))
        counts = [
            (name.replace("_", " "), *(plain((bill.get("use") or {}).get(name)) for bill in bills.values()))
            for name in used
        ]
        if counts:
            head = ("", *(bills if len(runs) > 1 else ["count"]))
            blocks.append(Table(caption="What was used", head=head, rows=rows(*counts)))
    told = {run.name: run.story.bills() for run in runs if run.story.bills()}
    if ranks := sorted({rank for bill in told.values() for rank in bill}):
        each = [(f"peer {rank}", *(usd(bill.get(rank)) for bill in told.values())) for rank in ranks]
        head = ("peer", *(told if len(runs) > 1 else ["at most"]))
        blocks.append(Table(caption="By the peers' own count", head=head, rows=rows(*each)))
    blocks += dict.fromkeys(Words(text=text) for bill in bills.values() for text in _book(bill))
    for run in runs:
        if run.name not in bills:
            at_most = run.summary.get("estimated_usd")
            known = "" if at_most is None else f" By the peers' own count it was at most {usd(at_most)}."
            blocks.append(Words(text=f"{run.name}: no cost by part, as its summary has none.{known}"))
    return Section(name="cost", title="Cost", blocks=tuple(blocks))


def troubles(runs: Sequence[KeptRun]) -> Section:
    """Faults, and what was done about them."""
    blocks: list[Block] = []
    for run in runs:
        name, story, before = f": {run.name}" if len(runs) > 1 else "", run.story, len(blocks)
        found = faults(story)
        lines = [
            (seconds(story.seconds(each.t)), _when(each.first, each.last, each.times), each.what, each.done)
            for each in found[:_FAULTS_SHOWN]
        ]
        if lines:
            head = ("after", "round", "what", "what was done")
            blocks.append(
                Table(caption=f"What befell it, and what was done{name}", head=head, rows=rows(*lines), texts=True)
            )
        if len(found) > _FAULTS_SHOWN:
            blocks.append(Words(text=f"{len(found) - _FAULTS_SHOWN} more are in events.jsonl."))
        rejected = run.summary.get("rejected_by_sender") or story.rejected
        if rejected:
            counted = [
                ("an unknown sender" if sender == "unknown" else f"peer {sender}", reason, str(count))
                for sender, reasons in sorted(rejected.items())
                for reason, count in reasons.items()
            ]
            caption = f"Messages that were refused, by sender{name}"
            blocks.append(Table(caption=caption, head=("sender", "reason", "messages"), rows=rows(*counted)))
        if len(blocks) == before:
            whose = f"{run.name}: n" if len(runs) > 1 else "N"
            blocks.append(Words(text=f"{whose}othing went wrong: no peer was lost, and no message was refused."))
    return Section(name="faults", title="Faults", blocks=tuple(blocks))


def _by_peer(story: Story) -> list[Block]:
    """Of one run: the stages of each peer."""
    ranks = [rank for rank in story.ranks if any(who == rank for who, _ in story.spans)]
    if not ranks:
        return []
    totals = []
    for rank in ranks:
        total: dict[str, float] = {}
        for who, round in story.spans:
            if who == rank:
                for stage, lasted in story.stage_seconds(rank, round).items():
                    total[stage] = total.get(stage, 0.0) + lasted
        totals.append(total)
    series = [
        Bars(name=stage, values=[total.get(stage, 0.0) for total in totals], tone=TONES[stage]) for stage in STAGES
    ]
    caption = "Seconds by peer and stage"
    named = [f"peer {rank}" for rank in ranks]
    found: list[Block] = [
        Picture(caption=caption, svg=charts.bars(caption, "", named, series, axis=_SECONDS, stacked=True))
    ]
    if len(numbers := [row.number for row in story.series() if any(row.contributors.values())]) > 1:
        caption, lines, means = "Seconds by round and stage, mean over the peers", [], _means(story)
        for place, stage in enumerate(STAGES):
            points = [(float(round + 1), means.get(round, {}).get(stage, 0.0)) for round in numbers]
            lines.append(Line(name=stage, points=points, colour=_LINES[place]))
        svg = charts.lines(caption, "", lines, x=Axis(label="round", whole=True), y=Axis(label="seconds", zero=True))
        found.append(Picture(caption=caption, svg=svg))
    return found


def _means(story: Story) -> dict[int, dict[str, float]]:
    """Seconds by round and stage, the mean over the peers that had a part in the round."""
    peers = Counter(round for _, round in story.spans)
    means: dict[int, dict[str, float]] = {}
    for rank, round in story.spans:
        row = means.setdefault(round, {})
        for stage, lasted in story.stage_seconds(rank, round).items():
            row[stage] = row.get(stage, 0.0) + lasted / peers[round]
    return means


def _which(story: Story, numbers: Sequence[int]) -> str:
    """Rounds counted from one; the closing round, in which nobody contributes, is the end."""
    proper = [round for round in numbers if round not in story.rounds or any(story.rounds[round].contributors.values())]
    end = "the end" if len(proper) < len(numbers) else ""
    if not proper:
        return end
    first, last = proper[0] + 1, proper[-1] + 1
    return f"round{f' {first}' if first == last else f's {first} to {last}'}{' and the end' if end else ''}"


def _timeline(story: Story, numbers: Sequence[int], wide: int) -> str:
    """Of the given rounds; marks where the first peer applied the commit."""
    which = _which(story, numbers)
    wanted = set(numbers)
    lanes, begin = [], min(s.began for (_, r), spans in story.spans.items() if r in wanted for s in spans)
    for rank in story.ranks:
        stretches = [
            Stretch(
                began=story.seconds(span.began),
                ended=story.seconds(span.ended),
                kind=span.stage,
                title=f"peer {rank}, round {round + 1}: {span.stage} {span.seconds:.3f} s",
            )
            for (who, round), spans in story.spans.items()
            if who == rank and round in wanted
            for span in sorted(spans, key=lambda each: -each.seconds)  # what ran beside another lies on top of it
            if span.stage in TONES
        ]
        if stretches:
            lanes.append(Lane(name=f"peer {rank}", stretches=stretches))
    marks = [
        (story.seconds(story.rounds[round].t), str(round + 1) if any(story.rounds[round].contributors.values()) else "")
        for round in numbers
        if round in story.rounds and story.rounds[round].t >= begin
    ]
    desc = f"{len(lanes)} peers over {which}; the dashed lines are the rounds' commits"
    title = f"Stages by peer, {which}"
    axis = Axis(label="seconds since the start; dashed: commits")
    return charts.timeline(title, desc, lanes, kinds=TONES, x=axis, marks=marks, wide=wide)


def _parts(bills: Mapping[str, Mapping[str, Any]], parts: Sequence[str]) -> Picture:
    """A bar for each part of one bill; of several a bar each, with its largest parts."""
    caption, axis = "US dollars by part", Axis(label="USD")
    shown, others = parts[:_PARTS_SHOWN], parts[_PARTS_SHOWN:]
    if len(bills) == 1:
        (spent,) = (bill["parts"] for bill in bills.values())
        groups, values = list(shown), [spent[part] for part in shown]
        if others:
            groups.append(f"{len(others)} more")
            values.append(sum(spent[part] for part in others))
        return Picture(caption=caption, svg=charts.bars(caption, "", groups, [Bars(name="", values=values)], axis=axis))
    series = [Bars(name=part, values=[bill["parts"].get(part, 0.0) for bill in bills.values()]) for part in shown]
    if others:
        rest = [sum(bill["parts"].get(part, 0.0) for part in others) for bill in bills.values()]
        series.append(Bars(name=f"{len(others)} more", values=rest, tone="wait"))
    return Picture(caption=caption, svg=charts.bars(caption, "", list(bills), series, axis=axis, stacked=True))


def _book(bill: Mapping[str, Any]) -> list[str]:
    """Of what place and age the prices are, and what is to be known of the sum."""
    told = []
    if unpriced := bill.get("unpriced"):
        told.append(f"Without {', '.join(map(str, unpriced))}, whose price is unknown.")
    if estimated := bill.get("estimated"):
        told.append(f"Worked out from what workers told, not counted: {', '.join(map(str, estimated))}.")
    prices = bill.get("prices")
    if isinstance(prices, dict):
        told.append(
            f"Prices of {prices.get('region')}, looked up between {prices.get('oldest')} and {prices.get('newest')}."
        )
        if own := prices.get("overridden"):
            told.append(f"Prices of the user's own: {', '.join(map(str, own))}.")
        told += [str(warning) for warning in prices.get("warnings") or ()]
    return told


def _spoken(runs: Sequence[KeptRun]) -> str:
    """For those who don't see the picture."""
    return "; ".join(
        f"{run.name}: " + ", ".join(f"{stage} {row['seconds']:.1f}" for stage, row in run.summary["stages"].items())
        for run in runs
    )


def _when(first: int | None, last: int | None, times: int) -> str:
    if first is None:
        return NONE if times == 1 else f"{times} times"
    if times == 1 or first == last:
        return str(first + 1) + (f", {times} times" if times > 1 else "")
    return f"{first + 1} to {(last or first) + 1}, {times} times"

"""The first and the last part of a report: the figures of summary.json, and the configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from peerless.report.blocks import (
    NONE,
    Block,
    Listing,
    Row,
    Section,
    Table,
    Words,
    megabytes,
    percent,
    plain,
    plural,
    seconds,
    usd,
)
from peerless.report.reading import KeptRun

Summary = Mapping[str, Any]


def section(runs: Sequence[KeptRun]) -> Section:
    """The figures that a person asks for first, the runs side by side."""
    rows = []
    for key, label, tell in _FIGURES:
        cells = [tell(run) for run in runs]
        if any(cell != NONE for cell in cells):
            rows.append(Row(cells=(label, *cells), key=key))
    blocks: list[Block] = []
    if len(runs) == 1:  # in two columns
        half = (len(rows) + 1) // 2
        blocks += [Table(caption="", head=("", ""), rows=tuple(part)) for part in (rows[:half], rows[half:])]
    else:
        blocks.append(Table(caption="", head=("", *(run.name for run in runs)), rows=tuple(rows), texts=True))
    if any(not run.summary for run in runs):
        who = ", ".join(run.name for run in runs if not run.summary)
        blocks.append(Words(text=f"Without a summary, and so without its figures: {who}."))
    return Section(name="summary", title="Summary", blocks=tuple(blocks))


def configuration(runs: Sequence[KeptRun]) -> Section:
    """What the runs differ in, and all of it folded away."""
    blocks: list[Block] = []
    if len(runs) > 1:
        flat = [dict(_flat(run.config)) for run in runs]
        keys = list(dict.fromkeys(key for each in flat for key in each))
        rows = [
            Row(cells=(key, *(_value(each.get(key, NONE)) for each in flat)))
            for key in keys
            if len({_value(each.get(key, NONE)) for each in flat}) > 1
        ]
        if rows:
            head = ("", *(run.name for run in runs))
            blocks.append(Table(caption="What differs", head=head, rows=tuple(rows), texts=True))
        else:
            blocks.append(Words(text="The configurations are the same."))
    for run in runs:
        if run.config_text:
            blocks.append(Listing(caption=f"config.toml of {run.name}", text=run.config_text))
    return Section(name="configuration", title="Configuration", blocks=tuple(blocks))


def _of(key: str, write: Callable[[Any], str]) -> Callable[[KeptRun], str]:
    """A figure of the summary as text; a dash where it is not there."""

    def tell(run: KeptRun) -> str:
        value = run.summary.get(key)
        return NONE if value is None else write(value)

    return tell


def _ended(run: KeptRun) -> str:
    reason = run.summary.get("reason")
    return str(reason) if reason else "not yet, as far as its folder tells"


def _started(run: KeptRun) -> str:
    start = run.story.start
    return NONE if start is None else f"{datetime.fromtimestamp(start, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _peers(run: KeptRun) -> str:
    peers = run.summary.get("peers")
    if peers is None:
        return str(len(run.story.ranks)) if run.story.ranks else NONE
    told = [str(peers)]
    for key, words in (("joined", "joined later"), ("left", "left"), ("lost_ranks", "lost")):
        if run.summary.get(key):
            told.append(f"{len(run.summary[key])} {words}")
    return ", ".join(told)


def _restarts(run: KeptRun) -> str:
    counted = run.summary.get("restarts")
    return NONE if not counted else ", ".join(f"peer {rank}: {count}" for rank, count in counted.items())


def _weights(run: KeptRun) -> str:
    hashes = set((run.summary.get("weights_sha256") or {}).values())
    if not hashes:
        return NONE
    return f"{min(hashes)[:12]}…, the same on all" if len(hashes) == 1 else f"{len(hashes)} different ones"


def _cost(run: KeptRun) -> str:
    cost = run.summary.get("cost")
    if isinstance(cost, dict) and cost.get("total") is not None:
        return usd(cost["total"]) + (" as if on AWS" if cost.get("as_if_on_aws") else "")
    return usd(run.summary.get("estimated_usd"))


def _total(value: Mapping[str, int]) -> str:
    return megabytes(sum(value.values()))


#: Figures in the order of the table: the name in summary.json, what a person reads, and how it is written.
_FIGURES: tuple[tuple[str, str, Callable[[KeptRun], str]], ...] = (
    ("run_id", "run", _of("run_id", str)),
    ("started", "started", _started),
    ("reason", "ended by", _ended),
    ("error", "error", _of("error", str)),
    ("mode", "mode", _of("mode", str)),
    ("peers", "peers", _peers),
    ("restarts", "started again", _restarts),
    ("rounds", "rounds", _of("rounds", lambda value: f"{value:,}")),
    ("epochs", "whole epochs", _of("epochs", lambda value: f"{value:,}")),
    ("test_accuracy", "test accuracy", _of("test_accuracy", percent)),
    ("test_loss", "test loss", _of("test_loss", plain)),
    ("validation_loss", "best validation loss", _of("validation_loss", plain)),
    ("seconds_training", "training", _of("seconds_training", seconds)),
    ("seconds_total", "in all", _of("seconds_total", seconds)),
    ("gradient_service", "gradients by", _of("gradient_service", str)),
    ("lambda_invocations", "Lambda invocations", _of("lambda_invocations", lambda value: f"{value:,}")),
    ("state_machine_executions", "executions", _of("state_machine_executions", lambda value: f"{value:,}")),
    ("codec", "codec", _of("codec", str)),
    ("aggregation", "aggregation", _of("aggregation", str)),
    ("compression_ratio", "compression", _of("compression_ratio", lambda value: f"{value:.2f}x")),
    ("bytes_sent", "sent by all peers", _of("bytes_sent", _total)),
    ("bytes_received", "received by all peers", _of("bytes_received", _total)),
    ("cost", "cost", _cost),
    ("peak_memory_bytes", "memory of all processes", _of("peak_memory_bytes", lambda value: f"{value / 1e9:.2f} GB")),
    ("weights_sha256", "final weights", _weights),
    ("parts", "parts", _of("parts", lambda value: plural(value, "part") if value > 1 else NONE)),
    ("resume", "to go on", _of("resume", str)),
)


def _flat(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Keys as `--set` has them."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else (str(value) or '""')

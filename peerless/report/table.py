"""The result of a run as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

#: Parts of a bill that are named.
MOST_PARTS = 4
STAGES = ("compute", "send", "receive", "update", "convergence")


def result_table(summary: Mapping[str, Any], folder: str) -> RenderableType:
    """The figures of `summary.json` that a person asks for first, and seconds per stage as in the paper's Table I."""
    head = Table(title=f"run {summary['run_id']}", show_header=False, title_justify="left")
    head.add_column(style="bold")
    head.add_column()
    accuracy = summary["test_accuracy"]
    tested = "not measured" if accuracy is None else f"{accuracy:.2%}"
    if accuracy is None and summary["test_loss"] is not None:
        tested = f"none for these targets; the test loss is {summary['test_loss']:.4g}"
    hashes = set(summary["weights_sha256"].values())
    same = "the same on all peers" if len(hashes) == 1 else f"{len(hashes)} different ones"
    rows = {
        "ended by": f"{summary['reason']}, after {summary['rounds']} rounds ({summary['epochs']} whole epochs)",
        "peers": f"{summary['peers']} ({summary['mode']}), {summary['peers_lost']} lost" + _restarted(summary),
        "test accuracy": tested,
        "final weights": f"{next(iter(sorted(hashes)))[:16]}… ({same})" if hashes else "none",
        "gradients": f"{summary['gradient_service']}, {summary['lambda_invocations']} invocations, "
        f"{summary['state_machine_executions']} executions",
        "compression": f"{summary['compression_ratio']:.2f}x on the wire"
        if summary["compression_ratio"]
        else "nothing sent",
        "time": f"{summary['seconds_training']:.1f} s of training, {summary['seconds_total']:.1f} s in all",
        "kept in": folder,
    }
    if summary.get("batches_failed"):
        each = ", ".join(f"{count} of peer {rank}" for rank, count in summary["batches_failed"].items())
        rows["not in a mean"] = f"batches that failed for good: {each}"
    if summary.get("rejected_by_sender"):
        rows["rejected"] = "; ".join(_rejected(*entry) for entry in summary["rejected_by_sender"].items())
    for key, name in (("left_out", "left out"), ("clipped", "clipped")):
        if summary.get(key):
            each = ", ".join(f"peer {rank} in {count}" for rank, count in summary[key].items())
            rows[name] = f"by {summary['aggregation']}, of {summary['rounds']} rounds: {each}"
    if summary.get("resume"):
        rows["to go on"] = summary["resume"]
    if summary["peak_memory_bytes"] is not None:
        rows["memory"] = f"at most {summary['peak_memory_bytes'] / 1e9:.2f} GB over all processes"
    if summary.get("cost") is not None:
        rows |= _cost(summary["cost"])
    elif summary.get("estimated_usd") is not None:
        rows["cost"] = f"at most {summary['estimated_usd']:.4f} USD, by the peers' own count"
    for name, value in rows.items():
        head.add_row(name, value)
    return Group(head, _stages(summary["stages"])) if summary["stages"] else head


def _cost(cost: Mapping[str, Any]) -> dict[str, str]:
    """The bill: all in all, the largest parts, and what is to be known of them."""
    parts = sorted(cost["parts"].items(), key=lambda part: -part[1])
    told = ", ".join(f"{name} {usd:.4f}" for name, usd in parts[:MOST_PARTS])
    if more := parts[MOST_PARTS:]:
        told += f", {len(more)} more parts {sum(usd for _, usd in more):.4f}"
    where = f"{'as if on AWS, ' if cost['as_if_on_aws'] else ''}prices of {cost['prices']['region']}"
    rows = {"cost": f"{cost['total']:.4f} USD ({where}): {told}"}
    notes = [f"without {', '.join(cost['unpriced'])}, whose price is unknown"] if cost["unpriced"] else []
    if cost["estimated"]:
        notes.append(f"worked out from what workers told, not counted: {', '.join(cost['estimated'])}")
    notes += cost["prices"]["warnings"]
    return {**rows, "of the cost": "; ".join(notes)} if notes else rows


def _rejected(sender: str, reasons: Mapping[str, int]) -> str:
    whose = "an unknown sender" if sender == "unknown" else f"peer {sender}"
    return f"{sum(reasons.values())} of {whose} ({', '.join(f'{reason} {n}' for reason, n in reasons.items())})"


def _restarted(summary: Mapping[str, Any]) -> str:
    restarts = sum(summary.get("restarts", {}).values())
    times = "once" if restarts == 1 else f"{restarts} times"
    return f", started again {times}" if restarts else ""


def _stages(stages: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table(title="per stage, mean over the peers", title_justify="left")
    table.add_column("stage")
    for name in ("seconds", "CPU %", "peak Python MB", "peak RSS MB", "MB in", "MB out"):
        table.add_column(name, justify="right")
    for stage in STAGES:
        if stage in stages:
            row = stages[stage]
            cells = [f"{row['seconds']:.2f}", f"{row['cpu_percent']:.0f}"]
            cells += [f"{row[name] / 1e6:.1f}" for name in ("peak_bytes", "peak_rss_bytes", "bytes_in", "bytes_out")]
            table.add_row(Text(stage), *cells)
    return table


def preview_table(plan: Mapping[str, Any]) -> RenderableType:
    """What `peerless prepare` found out: the workload, and who holds which part of the data."""
    head = Table(title="the run", show_header=False, title_justify="left")
    head.add_column(style="bold")
    head.add_column()
    head.add_row("data", f"{plan['data']} ({plan['provenance']})")
    head.add_row("kept apart", f"{plan['validation_samples']:,} for validation, {plan['test_samples']:,} for the test")
    head.add_row("model", f"{plan['model']}, {plan['parameters']:,} parameters, {plan['classes']} classes")
    head.add_row(
        "a contribution", f"{plan['frame_bytes'] / 1e6:.3f} MB instead of {plan['weights_bytes'] / 1e6:.3f} MB"
    )
    head.add_row("rounds", f"{plan['rounds_per_epoch']} per epoch, at most {plan['rounds_limit']}")
    head.add_row("state machine", plan["state_machine"] or "none: gradients in the peers' own processes")
    peers = Table(title="partitions", title_justify="left")
    for name in ("peer", "samples", "batches"):
        peers.add_column(name, justify="right")
    peers.add_column("samples per label")
    for peer in plan["peers"]:
        labels = " ".join(str(count) for count in peer["labels"][:20]) + (" …" if len(peer["labels"]) > 20 else "")
        peers.add_row(str(peer["rank"]), f"{peer['samples']:,}", str(peer["batches"]), labels)
    return Group(head, peers)

"""The one form in which every benchmark reports: named figures with unit, direction, `must` and `aim`."""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One result. `value` is a ratio to something measured in the same run, or a count; seconds only explain."""

    name: str
    value: float
    unit: str
    better: Literal["higher", "lower", "neither"]
    must: float | None = None
    aim: float | None = None


def line(benchmark: str, figures: list[Figure]) -> str:
    """The JSON line of a benchmark."""
    results: list[dict[str, Any]] = [
        {key: _short(value) for key, value in asdict(figure).items() if value is not None} for figure in figures
    ]
    return json.dumps({"benchmark": benchmark, "machine": {"cpu": cpu_name(), "cores": cores()}, "results": results})


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (match := re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())):
        return match[1]
    return platform.processor() or platform.machine()

"""From what a run left to its bill: parts, their hours, and the requests of whoever launched it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from contract.store import StoreCounts
from infra.settings import Settings
from peerless import cost
from peerless.launch.billing import Billing, last_moments
from tests.fakes.store import MemoryStore
from tests.unit.test_bill import COUNTERS, NOW, configured, used
from tests.unit.test_runspec import spec

CREATED = 1_700_000_000.5


def written(folder: Path, *told: tuple[str, float]) -> Path:
    path = folder / "events.jsonl"
    path.write_text("".join(json.dumps({"run": run, "t": moment, "event": "stage"}) + "\n" for run, moment in told))
    return path


def test_a_run_lasts_to_the_last_event_of_each_part(tmp_path: Path) -> None:
    path = written(tmp_path, ("r", 5.0), ("r", 9.0), ("r", 7.0), ("r-r2", 30.0))
    assert last_moments(path) == {"r": 9.0, "r-r2": 30.0}
    assert last_moments(tmp_path / "none.jsonl") == {}


def test_the_hours_of_all_parts_and_the_launchers_requests_are_on_the_bill(tmp_path: Path) -> None:
    first = dataclasses.replace(spec((5, 5)), created=CREATED)
    later = first.places.of_run("later")
    second = dataclasses.replace(first, run="later", places=later, created=CREATED + 10_000)
    store = MemoryStore()
    for each in (first, second):
        store.put(each.places.spec(), each.to_json())
    events = written(tmp_path, (first.run, CREATED + 1_800), ("later", CREATED + 10_000 + 900), ("other", CREATED * 2))
    billing = Billing(
        tariff=cost.Tariff(prices=cost.book(), settings=Settings(peers=2, reduce=False), as_if_on_aws=True),
        config=configured(),
        store=store,
        requests=StoreCounts(gets=3, puts=2),
        places=[first.places, later],
        events=events,
        now=NOW,
    )
    bill = billing([used(0, run="later"), used(1, run=first.run)], {**COUNTERS, "invocations": 6})
    assert bill["use"]["run_hours"] == pytest.approx(0.75)
    assert bill["parts"]["peers"] == pytest.approx(2 * 0.0336 * 0.75)
    assert bill["use"]["s3_get_requests"] == 3 + 2 * (10 + 18)
    assert bill["use"]["lambda_invocations"] == 6 + 6
    assert bill["use"]["state_transitions"] == 6 + 12
    assert bill["estimated"] == ["lambda_gb_seconds"], "the counters are of the later part"
    assert json.loads(json.dumps(bill)) == bill


def test_a_part_that_got_no_specification_lasted_no_time(tmp_path: Path) -> None:
    places = spec((5, 5)).places
    billing = Billing(
        tariff=cost.Tariff(prices=cost.book(), settings=Settings(peers=2), as_if_on_aws=False),
        config=configured(),
        store=MemoryStore(),
        requests=StoreCounts(),
        places=[places],
        events=tmp_path / "events.jsonl",
        now=NOW,
    )
    bill = billing([], {})
    assert bill["total"] == 0.0
    assert bill["parts"] == {}

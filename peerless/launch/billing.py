"""A run's bill from what it left: reports of its peers, counters of the Lambda service, events and specification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.config import RunConfig
from contract.keys import Places
from contract.records import PeerReport
from contract.runspec import RunSpec
from contract.store import ObjectStore, StoreCounts
from peerless.cost import Bill, Tariff, hours_of, measure
from peerless.launch.follow import EventTail


@dataclass(frozen=True, kw_only=True)
class Billing:
    """What a bill is made from, once a run has ended."""

    tariff: Tariff
    config: RunConfig
    """Resolved: its state machine has a concrete form."""
    store: ObjectStore
    requests: StoreCounts
    """What the launcher itself asked of S3, which is on the bill too."""
    places: Sequence[Places]
    """Of all parts of the run, the last one being the one that has just ended."""
    events: Path
    now: float
    """Seconds since the epoch, when the age of prices is judged."""

    def __call__(self, reports: Sequence[PeerReport], counters: Mapping[str, Any]) -> dict[str, Any]:
        """The key `cost` of summary.json, from the reports of all parts and the counters of the last one.

        Raises what the store raises, and CorruptObject for a specification that is none.
        """
        begun = {}
        for places in self.places:
            found = self.store.find(places.spec())
            if found is not None:
                begun[places.run] = RunSpec.from_json(found[0]).created
        use = measure(
            self.config,
            reports,
            counters=counters,
            counted_run=self.places[-1].run,
            launcher=self.requests,
            hours=hours_of(begun, last_moments(self.events)),
            reducer=self.tariff.settings.reduce if self.tariff.settings else self.config.compute.reduce != "never",
        )
        return Bill.of(use, self.tariff, self.config, self.now).to_dict()


def last_moments(events: Path) -> dict[str, float]:
    """When each part of a run, by its name, was last heard of: seconds since the epoch."""
    last: dict[str, float] = {}
    for event in EventTail(events).new():
        last[event["run"]] = max(event["t"], last.get(event["run"], event["t"]))
    return last

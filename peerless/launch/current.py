"""Which run a deployment works on: `deployment/current.json`, written by the user's side and read by the instances."""

from __future__ import annotations

from contract.clock import Clock
from contract.errors import ConfigError
from contract.keys import current_place
from contract.records import Current
from contract.store import ObjectStore


class CurrentRun:
    """The record in one run bucket; `account` must own the bucket (None: any, locally)."""

    def __init__(self, store: ObjectStore, run_bucket: str, account: str | None) -> None:
        self._store, self._place = store, current_place(run_bucket, account)
        self._etag: str | None = None

    def read(self) -> Current | None:
        """The current or last run; None before the first one. Raises CorruptObject, ObjectMissing without a bucket."""
        found = self._store.find(self._place)
        self._etag = found[1] if found else None
        return Current.from_json(found[0]) if found else None

    def write(self, run: str, clock: Clock) -> None:
        """Make `run` the current one, in place of what `read` saw. Raises ConfigError where another was faster."""
        blob = Current(run=run, created=clock.now()).to_json()
        if self._etag is None:
            done = self._store.create(self._place, blob)
        else:
            done = self._store.replace(self._place, blob, self._etag)
        if done is None:
            raise ConfigError("another run has just been started on this deployment; `peerless attach` follows it")
        self._etag = done.etag

"""The auto scaling groups of the peers' instances: one per rank, of 0 or 1 instance."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from contract.errors import PeerlessError
from peerless.launch.account import Clients, told

#: The scheduled action that switches a group off, whatever its peer does.
LIMIT = "peerless-max-hours"
_AT_ONCE = 50


class Groups:
    """The groups with these names, in rank order. Everything raises what `told` raises."""

    def __init__(self, clients: Clients, names: Sequence[str]) -> None:
        self._clients = clients
        self.names = tuple(names)

    def limit(self, until: float) -> None:
        """Switch every group off at `until` (seconds since the epoch), even if nobody is there to do it."""
        with told("schedule the peers' end"):
            for name in self.names:
                self._clients("autoscaling").put_scheduled_update_group_action(
                    AutoScalingGroupName=name,
                    ScheduledActionName=LIMIT,
                    StartTime=datetime.fromtimestamp(until, UTC),
                    DesiredCapacity=0,
                )

    def start(self) -> None:
        """Ask for one instance in every group."""
        self._scale(1)

    def stop(self) -> None:
        """Ask for no instance in any group, and take the scheduled end off; all groups are tried."""
        first: PeerlessError | None = None
        for name in self.names:
            try:
                Groups(self._clients, [name])._scale(0)
            except PeerlessError as error:
                first = first or error
        if first:
            raise first
        for name in self.names:
            with contextlib.suppress(PeerlessError), told("take the scheduled end off"):
                self._clients("autoscaling").delete_scheduled_action(
                    AutoScalingGroupName=name, ScheduledActionName=LIMIT
                )

    def desired(self) -> int:
        """Instances asked for, over all groups."""
        return sum(int(group["DesiredCapacity"]) for group in self._describe())

    def in_service(self) -> list[int]:
        """Ranks whose instance is in service."""
        by_name = {group["AutoScalingGroupName"]: group for group in self._describe()}
        return [
            rank
            for rank, name in enumerate(self.names)
            if any(item["LifecycleState"] == "InService" for item in by_name.get(name, {}).get("Instances", ()))
        ]

    def failures(self) -> list[str]:
        """A sentence for every rank whose last attempt to get an instance failed."""
        found = []
        with told("look at the groups' activities"):
            for rank, name in enumerate(self.names):
                answer = self._clients("autoscaling").describe_scaling_activities(
                    AutoScalingGroupName=name, MaxRecords=1
                )
                for activity in answer["Activities"]:
                    if activity["StatusCode"] in ("Failed", "Cancelled"):
                        why = " ".join(str(activity.get("StatusMessage", "no reason given")).split())
                        found.append(f"peer {rank} gets no instance: {why}")
        return found

    def _scale(self, desired: int) -> None:
        with told(f"set the groups of the peers to {desired}"):
            for name in self.names:
                self._clients("autoscaling").set_desired_capacity(
                    AutoScalingGroupName=name, DesiredCapacity=desired, HonorCooldown=False
                )

    def _describe(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        with told("look at the groups of the peers"):
            for start in range(0, len(self.names), _AT_ONCE):
                names = list(self.names[start : start + _AT_ONCE])
                found += self._clients("autoscaling").describe_auto_scaling_groups(
                    AutoScalingGroupNames=names, MaxRecords=100
                )["AutoScalingGroups"]
        return found

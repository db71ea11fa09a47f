"""`python -m peer_agent.instance`: reads the environment (contract/env.py, InstanceEnv), builds the ports, and runs."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from contract.clock import SystemClock
from contract.env import InstanceEnv
from contract.errors import PeerlessError
from contract.store import S3Store
from peer_agent.instance.agent import FAILED, Instance
from peer_agent.instance.aws import AutoScalingGroup, NoGroup, SecretsManager
from peer_agent.instance.log import Log
from peer_agent.instance.ports import InstancePorts
from peer_agent.instance.processes import SystemProcesses


def main() -> int:
    """The exit status; see peer_agent/instance/__init__.py."""
    clock = SystemClock()
    try:
        env = InstanceEnv.read(os.environ)
    except PeerlessError as error:
        # Without its environment an instance knows neither its group nor its run: the stack's schedule ends it.
        Log(sys.stdout, clock, os.environ.get("PEERLESS_DEPLOYMENT", ""), -1).error(str(error))
        return FAILED
    region, endpoint_url = env.region, env.endpoint_url
    # Two tries each: the instance looks again by itself, and a signal should not wait for many.
    store = S3Store(region=region, endpoint_url=endpoint_url, clock=clock, attempts=2, read_timeout_seconds=20.0)
    ports = InstancePorts(
        store=store,
        secrets=SecretsManager(region=region, endpoint_url=endpoint_url),
        group=AutoScalingGroup(env.group, region=region, endpoint_url=endpoint_url) if env.group else NoGroup(),
        processes=SystemProcesses(),
        clock=clock,
        log=Log(sys.stdout, clock, env.deployment, env.rank),
    )
    with tempfile.TemporaryDirectory(prefix="peerless-") as folder:
        instance = Instance(env, ports, os.environ, Path(folder))

        def asked(number: int, frame: FrameType | None) -> None:
            instance.ask_to_end()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, asked)
        status = instance.run()
    store.close()
    return status


if __name__ == "__main__":
    sys.exit(main())

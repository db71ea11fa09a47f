"""Names of the stacks and of their outputs, by which the user's side finds what was deployed.

Lists (one entry per rank of a stack, in rank order) are joined with commas into one output, because a stack has at most
200 of them. Free of aws-cdk-lib, so that a command needs it only for deploying.
"""

from __future__ import annotations

# Stacks, after `Settings.prefix` and a hyphen. Workers and Peers stand once per group of peers, with its number.
NETWORK, STORAGE, BROKER, WORKERS, PEERS, WATCH = "Network", "Storage", "Broker", "Workers", "Peers", "Watch"
IMAGES = "Images"

# Outputs of Storage.
SETTINGS = "Settings"
"""The deployment's settings, JSON (`Settings.to_json`)."""
RUN_BUCKET = "RunBucket"
PEER_BUCKETS = "PeerBuckets"
"""Followed by the group's number, because all peers' buckets stand in the one stack: PeerBuckets0."""

# Outputs of Images.
CODE_DIGEST = "CodeDigest"
"""Digest of the user's own code in the images, as contract/code.py has it; missing where there is none."""

# Outputs of Workers<k>.
FUNCTIONS = "Functions"
"""Names of the gradient workers' functions; with a shared one, its name once per rank."""
INLINE_MACHINES = "InlineMachines"
"""ARNs of the state machines with an inline map: Express ones where the settings say so."""
DISTRIBUTED_MACHINES = "DistributedMachines"
"""ARNs of the state machines with a distributed map."""
MACHINE_ROLES = "MachineRoles"
"""ARNs of the roles that the state machines run under; `parallel` ones are created with them by the user's command."""
FUNCTION_ARNS = "FunctionArns"
"""ARNs (of the alias or version where there is one) that state machines invoke."""
REDUCERS = "Reducers"
"""Names of the functions that add gradients up; empty where the settings have none."""
REDUCER_ARNS = "ReducerArns"
"""ARNs of theirs that state machines invoke."""

# Outputs of Broker.
BROKER_ENDPOINT = "BrokerEndpoint"
"""`amqps://host:5671`."""

# Outputs of Peers<k>.
AUTO_SCALING_GROUPS = "Groups"
"""Names of the auto scaling groups."""
PEER_LOG_GROUP = "LogGroup"


def parallel_machine(prefix: str, rank: int, run: str) -> str:
    """Name of the state machine of form `parallel` that the user's command makes for a run (`*`: any run's).

    Peers may start machines of such a name with their own rank. Deployments' names have no capital letters, so one's
    names never fit another's pattern. At most 80 characters; a long run's name loses its beginning, not its unique end.
    """
    start = f"{prefix}-Parallel-{rank:04d}-"
    return start + run[-(80 - len(start)) :]

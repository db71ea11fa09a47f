"""What befell an invocation, in words that name the setting to change.

Lambda ends a process that takes more memory than its function has, or more time. Of the first it says no more than
`Runtime exited with error: signal: killed`; the local Lambda service says how much memory it was.
"""

from __future__ import annotations

import re

from contract.config import ComputeConfig
from contract.tasks import Failure

#: The largest memory of a Lambda function in MB, and its longest time limit in seconds.
MOST_MB, MOST_SECONDS = 10_240, 900
#: What a Lambda sandbox reports that was ended for its memory, by newer and by older words.
OUT_OF_MEMORY, EXITED, KILLED = "Runtime.OutOfMemory", "Runtime.ExitError", "signal: killed"
#: What Python and torch say inside a process whose request for memory was refused.
REFUSED = re.compile(r"MemoryError|can't allocate memory|Cannot allocate memory")
TOOK = re.compile(r"took ([\d,]+) MB")
TIMED_OUT = re.compile(r"Task timed out after ([\d.]+) seconds")


def cause(failure: Failure, compute: ComputeConfig) -> str:
    """One clause, with the error's name behind it; Lambda's own words where nothing better is known."""
    text = " ".join(failure.message.split())
    better = _memory(failure, compute) or _time(failure, compute) or text
    return f"{better} ({failure.name})" if better and failure.name else better or failure.name


def _memory(failure: Failure, compute: ComputeConfig) -> str:
    killed = failure.name == EXITED and KILLED in failure.message
    refused = REFUSED.search(failure.name) or REFUSED.search(failure.message)
    if not (failure.name == OUT_OF_MEMORY or killed or refused):
        return ""
    took = TOOK.search(failure.message)
    needed = f"took {took[1]} MB" if took else "needed more"
    how = "was killed, as Lambda does with one that runs out of memory" if killed else "ran out of memory"
    more = f"raise it (at most {MOST_MB:,}), or lower batch_size"
    return f"the worker {how}: it had compute.memory_mb = {compute.memory_mb} and {needed}; {more}"


def _time(failure: Failure, compute: ComputeConfig) -> str:
    if TIMED_OUT.search(failure.message) is None:
        return ""
    return (
        f"the worker was not done within compute.timeout_seconds = {compute.timeout_seconds}; raise it (at most "
        f"{MOST_SECONDS}), give workers more processor (compute.memory_mb), or lower batch_size"
    )

"""How many state transitions Step Functions bills for executions of these definitions. Pure.

Standard workflows are billed each time a state is entered, each time a task is tried again, and for each execution that
a distributed map starts; iterations of an inline map as such cost nothing
(https://aws.amazon.com/step-functions/pricing/, and "Transitions in Distributed Map state" of
https://docs.aws.amazon.com/step-functions/latest/dg/concepts-transitions.html, read in November 2026). Express
executions are billed by request and duration.
"""

from __future__ import annotations

from statemachines.gradients import Mode
from statemachines.reduce import LEVELS

#: States that an item's failure leads through before it stands in the output (statemachines/gradients.py).
_CAUGHT = {Mode.INLINE_MAP: 2, Mode.PARALLEL: 1, Mode.DISTRIBUTED_MAP: 0}


def transitions(
    mode: Mode,
    *,
    executions: int,
    invocations: int,
    children: int = 0,
    caught: int = 0,
    reducer: bool = False,
    reductions: int = 0,
) -> int:
    """Of so many executions together.

    `invocations` counts workers and reducers, retries included; `children` the executions that distributed maps
    started; `caught` the items whose failure was caught. `reducer` says that the machine has states that add gradients
    up, `reductions` in how many executions they were used. Executions that failed or gave adding up left some states
    out: then it is at most so many.
    """
    entered = executions + invocations + children + caught * _CAUGHT[Mode(mode)]
    if reducer:
        # The choice; then the end at once, or a map per level and the state that brings their ends together.
        entered += executions + (executions - reductions) + reductions * (LEVELS + 1)
    return entered

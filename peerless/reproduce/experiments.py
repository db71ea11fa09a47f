"""The paper's tables and figures that `peerless reproduce` knows, by name."""

from __future__ import annotations

from contract.errors import UserError
from peerless.reproduce.experiment import Experiment
from peerless.reproduce.table1 import TABLE1
from peerless.reproduce.table2 import TABLE2
from peerless.reproduce.table3 import TABLE3

EXPERIMENTS = {experiment.name: experiment for experiment in (TABLE1, TABLE2, TABLE3)}


def named(name: str) -> Experiment:
    """The experiment of that name. Raises UserError for another."""
    try:
        return EXPERIMENTS[name]
    except KeyError:
        raise UserError(f"{name!r} is none of {', '.join(EXPERIMENTS)}") from None

"""The paper's tables and figures that `peerless reproduce` knows, by name."""

from __future__ import annotations

from contract.errors import UserError
from peerless.reproduce.experiment import Experiment
from peerless.reproduce.figure3 import FIGURE3
from peerless.reproduce.figure4 import FIGURE4
from peerless.reproduce.figure5 import FIGURE5
from peerless.reproduce.figure6 import FIGURE6
from peerless.reproduce.table1 import TABLE1
from peerless.reproduce.table2 import TABLE2
from peerless.reproduce.table3 import TABLE3

EXPERIMENTS = {
    experiment.name: experiment for experiment in (TABLE1, TABLE2, TABLE3, FIGURE3, FIGURE4, FIGURE5, FIGURE6)
}


def named(name: str) -> Experiment:
    """The experiment of that name. Raises UserError for another."""
    try:
        return EXPERIMENTS[name]
    except KeyError:
        raise UserError(f"{name!r} is none of {', '.join(EXPERIMENTS)}") from None

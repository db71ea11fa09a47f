"""What a run's folder gets however the run is launched: what repeating it takes, and a summary whatever happens."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from contract.config import RunConfig
from contract.errors import PeerlessError
from peerless import data
from peerless.launch import result, shipping
from peerless.launch.follow import Told
from peerless.launch.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run left."""

    run: str
    folder: RunFolder
    summary: dict[str, Any]


def keep(config: RunConfig, folder: RunFolder, dataset: data.Dataset | None) -> str:
    """Put into the folder what repeating the run takes; gives the digest of the user's code."""
    code, digest = shipping.bundle(config.code, folder.code)
    kept = config.model_copy(update={"code": code})
    if dataset is not None:  # what was passed from Python
        folder.write(folder.dataset, data.to_npz(dataset))
        own = config.data.model_copy(update={"source": "npz", "path": str(folder.dataset.resolve())})
        kept = kept.model_copy(update={"data": own})
    folder.write(folder.config, kept.to_toml().encode())
    return digest


def tell_in_folder(
    folder: RunFolder, run: str, config: RunConfig, seconds: float, cause: BaseException, resume: str | None = None
) -> None:
    """Write the summary of a run that came to no result, so that every run's folder has one.

    `resume` is the command that goes on with it, if it has come so far.
    """
    interrupted = isinstance(cause, KeyboardInterrupt)
    told = Told.of(folder.events)
    summary = result.summarise(
        run=run,
        config=config,
        reports=(),
        model=None,
        counters={},
        told=told,
        resume=resume if told.rounds else None,
        peak_memory_bytes=None,
        seconds_total=seconds,
        error=None if interrupted else str(cause),
        interrupted=interrupted,
    )
    with contextlib.suppress(PeerlessError):  # the folder itself may be what failed
        folder.write_summary(summary)

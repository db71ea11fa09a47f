"""`peerless.train(...)` for scripts and notebooks, and the `Run` that it returns."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import contract.config
from contract.config import RunConfig
from contract.errors import CodeError, ConfigError
from peerless import data
from peerless.launch import shipping
from peerless.launch.local import train_local
from peerless.launch.run_folder import RunFolder
from peerless.report import progress
from peerless.report.progress import Observer

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset

#: Whether this thread is training already: then what calls is code of the user's that is being imported.
_training = ContextVar("training", default=False)


@dataclass(frozen=True)
class Run:
    """A finished run and what it left in its folder."""

    id: str
    folder: Path
    summary: dict[str, Any]
    """The content of summary.json."""

    @cached_property
    def config(self) -> RunConfig:
        """The complete configuration, as the run used it."""
        return contract.config.from_toml(RunFolder(self.folder).config)

    @property
    def model_path(self) -> Path:
        """The saved weights, safetensors."""
        return RunFolder(self.folder).model

    @property
    def summary_path(self) -> Path:
        """summary.json."""
        return RunFolder(self.folder).summary

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers of the saved model by name, ready for `load_state_dict`."""
        from safetensors.torch import load_file

        return load_file(self.model_path)

    def metrics(self) -> list[dict[str, Any]]:
        """Every event of every peer in the order of writing (docs/protocol.md lists them)."""
        with open(RunFolder(self.folder).events, encoding="utf-8") as file:
            return [json.loads(line) for line in file]


def train(
    config: RunConfig | Mapping[str, Any] | str | os.PathLike[str],
    *,
    model: str | Callable[..., Any] | None = None,
    dataset: Dataset[Any] | tuple[Dataset[Any], Dataset[Any]] | None = None,
    overrides: Sequence[str] = (),
    runs_dir: str | os.PathLike[str] = "runs",
    run_dir: str | os.PathLike[str] | None = None,
    deployed: bool = False,
    observer: Observer | None = None,
) -> Run:
    """Train on this machine and return the finished run.

    `config` is a TOML file, a mapping of configuration keys, or a RunConfig. `model` is a built-in name,
    `package.module:callable`, or the class or function itself; `dataset` a torch Dataset (or a pair: training, test).
    `overrides` are `key=value` texts as after `--set`. With `deployed` the run uses what `peerless deploy --local` made
    on the servers of `peerless local up`. Progress goes to standard error, or to `observer`
    (`peerless.report.progress.Silent()` for none). Raises UserError for a mistake, PeerlessError for a failure.
    """
    if os.environ.get("PEERLESS_CODE_DIR"):
        raise CodeError(
            "PEERLESS_CODE_DIR is set, as it is while a peer or worker imports your code: a script must guard "
            "peerless.train with if __name__ == '__main__', and where you have set the variable yourself, unset it"
        )
    if _training.get():
        raise CodeError(
            "peerless.train was called while another one imported your code; guard it with if __name__ == '__main__'"
        )
    with ExitStack() as stack:
        stack.callback(_training.reset, _training.set(True))
        chosen, base = _configuration(config, overrides)
        chosen = shipping.resolve_paths(chosen, base)
        if model is not None:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="peerless-"))
            chosen = _with_model(chosen, model, Path(scratch))
        outcome = train_local(
            chosen,
            stack.enter_context(progress.observer(Console(stderr=True))) if observer is None else observer,
            runs_dir=Path(runs_dir),
            run_dir=Path(run_dir) if run_dir is not None else None,
            dataset=None if dataset is None else _dataset(dataset),
            deployed=deployed,
        )
    return Run(id=outcome.run, folder=outcome.folder.path, summary=outcome.summary)


def resume(
    run: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    runs_dir: str | os.PathLike[str] = "runs",
    observer: Observer | None = None,
) -> Run:
    """Go on, on this machine, with a run that was interrupted, failed or killed, and return it finished.

    `run` is its name or folder. `overrides` may change epochs, membership, checkpoint and early_stopping. Raises
    UserError for what cannot be resumed, PeerlessError for a failure.
    """
    from peerless.launch.resume import resume_local

    with ExitStack() as stack:
        stack.callback(_training.reset, _training.set(True))
        outcome = resume_local(
            os.fspath(run),
            stack.enter_context(progress.observer(Console(stderr=True))) if observer is None else observer,
            overrides=overrides,
            runs_dir=Path(runs_dir),
        )
    return Run(id=outcome.run, folder=outcome.folder.path, summary=outcome.summary)


def train_on_aws(
    config: RunConfig | Mapping[str, Any] | str | os.PathLike[str],
    *,
    confirm: Callable[[str], bool],
    overrides: Sequence[str] = (),
    runs_dir: str | os.PathLike[str] = "runs",
    run_dir: str | os.PathLike[str] | None = None,
    observer: Observer | None = None,
) -> Run:
    """Train on what `peerless deploy` made in an AWS account, and return the finished run.

    `confirm` gets the question before money is spent. Raises UserError for a mistake, PeerlessError for a failure, and
    KeyboardInterrupt when the user lets go of a run that goes on.
    """
    from peerless.launch import aws

    chosen, base = _configuration(config, overrides)
    with ExitStack() as stack:
        outcome = aws.train_on_aws(
            shipping.resolve_paths(chosen, base),
            stack.enter_context(progress.observer(Console(stderr=True))) if observer is None else observer,
            confirm,
            runs_dir=Path(runs_dir),
            run_dir=Path(run_dir) if run_dir is not None else None,
        )
    return Run(id=outcome.run, folder=outcome.folder.path, summary=outcome.summary)


def _configuration(
    config: RunConfig | Mapping[str, Any] | str | os.PathLike[str], overrides: Sequence[str]
) -> tuple[RunConfig, Path]:
    """The configuration, and the folder that its relative paths are relative to."""
    if isinstance(config, str | os.PathLike):
        return contract.config.from_toml(Path(config), overrides), Path(config).resolve().parent
    values = config.model_dump() if isinstance(config, RunConfig) else dict(config)
    return contract.config.with_overrides(values, overrides, "configuration"), Path.cwd()


def _with_model(config: RunConfig, model: str | Callable[..., Any], scratch: Path) -> RunConfig:
    if isinstance(model, str):
        return contract.config.from_mapping({**config.model_dump(), "model": model}, "model")
    if not callable(model) or (hasattr(model, "state_dict") and not isinstance(model, type)):
        raise ConfigError(
            "model: pass the class or a function that builds the model, not a model; initial weights go into init_from"
        )
    name, source = shipping.import_name(model, scratch)
    include = config.code.include if source is None else (*config.code.include, str(source))
    values = {**config.model_dump(), "model": name, "code": {**config.code.model_dump(), "include": include}}
    return contract.config.from_mapping(values, "model")


def _dataset(given: Dataset[Any] | tuple[Dataset[Any], Dataset[Any]]) -> data.Dataset:
    training, test = given if isinstance(given, tuple) else (given, None)
    return data.from_torch_dataset(training, test, provenance="data set passed from Python")

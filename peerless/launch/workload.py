"""What a run trains, found out before anything is started: the data divided among the peers, and the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from contract import models, tensors, weights_file
from contract.algorithms import algorithm
from contract.batches import share_count
from contract.codec import codec
from contract.config import BUILT_IN_MODELS, RunConfig
from contract.errors import ConfigError, ModelError
from contract.modelspec import ModelSpec
from contract.objective import loss_function
from contract.tree import ever_reduces
from peerless import data
from statemachines import choose_mode


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is to be trained: the model with its initial weights, and the data divided among the peers."""

    prepared: data.Prepared
    spec: ModelSpec
    layout: tensors.Layout
    model: nn.Module

    @classmethod
    def of(cls, config: RunConfig, log: Callable[[str], None], dataset: data.Dataset | None = None) -> Workload:
        """Read the data (or take `dataset`) and build the model. Raises ConfigError, DataError, ModelError."""
        if config.loss == "nll" and config.model in BUILT_IN_MODELS:
            raise ConfigError(
                f"loss is nll, which takes log-probabilities, but the model {config.model} gives logits: "
                "use cross_entropy"
            )
        loss_function(config.loss)  # an own one is imported now, and not first by a worker
        prepared = data.prepare(config, data.load(config.data, log=log) if dataset is None else dataset)
        spec = prepared.model_spec(config)
        model = models.initial_weights(spec, config.seed)
        layout = tensors.Layout.of(model)
        if config.init_from:
            try:
                blob = Path(config.init_from).read_bytes()
            except OSError as error:
                raise ModelError(f"init_from: {config.init_from} cannot be read ({error.strerror})") from error
            try:
                tensors.load(model, layout, *weights_file.from_safetensors(layout, blob))
            except ModelError as error:
                raise ModelError(f"init_from: {config.init_from}: {error}") from error
        return cls(prepared=prepared, spec=spec, layout=layout, model=model)


def batches_per_round(config: RunConfig, batches: tuple[int, ...]) -> tuple[int, ...]:
    """The most branches of one round's map, by rank: its batches, or one where workers take steps with all of them."""
    if algorithm(config).local:
        return (1,) * len(batches)
    return tuple(min(count, config.batches_per_round or count) for count in batches)


def invocations_per_round(config: RunConfig, batches: tuple[int, ...]) -> tuple[int, ...]:
    """The most invocations of one round, by rank."""
    per_worker = config.compute.batches_per_worker
    most = per_worker if isinstance(per_worker, int) else 1
    return tuple(share_count(count, most) for count in batches_per_round(config, batches))


def resolve_mode(config: RunConfig, batches: tuple[int, ...]) -> RunConfig:
    """Replace `compute.state_machine = auto` by the form that fits, for peers to know. Raises ConfigError."""
    if config.compute.service == "local":
        return config
    compute = config.compute
    mode = choose_mode(
        compute.state_machine,
        max(batches_per_round(config, batches)),
        compute.tolerated_failures,
        compute.concurrency,
    )
    return config.model_copy(update={"compute": compute.model_copy(update={"state_machine": mode.value})})


def resolve(config: RunConfig, batches: tuple[int, ...], elements: int) -> RunConfig:
    """The same, and `compute.reduce = auto` becomes `never` where no round of these batches and a model of so many
    elements is worth reducing: then nothing is made for it."""
    resolved = resolve_mode(config, batches)
    compute, most = resolved.compute, max(invocations_per_round(config, batches))
    encoded, mean = (codec(name).encoded_bytes(elements) for name in (compute.gradient_codec, "none"))
    if ever_reduces(compute.reduce, most, encoded, mean):
        return resolved
    return resolved.model_copy(update={"compute": compute.model_copy(update={"reduce": "never"})})

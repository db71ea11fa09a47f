"""All peers of a run in this process, without servers: the real steps, codec, frames, averages and updates.

What a round does is what peers and workers do, in the same order and with the same seeds; what carries it is left out.
All peers hold the same weights, so there is one copy of them.

Shapes: n parameters; a batch is x (N, 1, 28, 28) float32 and y (N,) int64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.reporting import Figure
from contract import models, wire
from contract.algorithms import algorithm, local_steps
from contract.averaging import WeightedMean
from contract.codec import codec
from contract.config import RunConfig
from contract.gradients import BatchGradient, batch_gradient
from contract.keys import Places
from contract.local_steps import local_update
from contract.modelspec import ModelSpec
from contract.objective import evaluate
from contract.optimizers import idle
from contract.runspec import RunSpec, ValidationSet, rounds_per_epoch
from contract.seeds import public_seed
from contract.tasks import gradient_seed
from contract.tensors import Layout, flatten, load, pack_buffers, read_buffers, weights_hash
from peer_agent.convergence import Convergence
from peer_agent.update import Update
from peerless.data.fetch import cache_folder

Batch = tuple[Tensor, Tensor]
#: Images that are evaluated at once.
AT_ONCE = 1_000


class InProcess:
    """One run. `samples` and `batches` are the counts by rank, `batch` gives a rank's batch of an index."""

    def __init__(
        self,
        config: RunConfig,
        model: ModelSpec,
        samples: Sequence[int],
        batches: Sequence[int],
        batch: Callable[[int, int], Batch],
    ) -> None:
        self._config, self._batch = config, batch
        self._model = models.initial_weights(model, config.seed)
        self.layout = Layout.of(self._model)
        flat, buffers = flatten(self._model, self.layout), read_buffers(self._model, self.layout)
        kind = algorithm(config)
        self.update = Update(self.layout, flat, buffers, kind.peers_step(config), config.aggregation)
        names = tuple(f"peer-{rank}" for rank in range(config.peers))
        self.spec = RunSpec(
            run="benchmark",
            config=config,
            places=Places(run="benchmark", run_bucket="run", peer_buckets=names, region="local"),
            model=model,
            samples=tuple(samples),
            batches=tuple(batches),
            rounds_per_epoch=rounds_per_epoch(tuple(batches), config.batches_per_round),
            initial_weights=weights_hash(self.layout, flat, buffers),
            validation=ValidationSet(sha256="", samples=1),
            state_machines=("",) * config.peers,
        )
        optimizer = idle(config.optimizer.lr) if kind.local else self.update.optimizer
        self._convergence = Convergence(optimizer, config.scheduler, config.early_stopping, self.spec.rounds_limit)

    def round(self, round: int) -> int:
        """Play a round; the samples that it took."""
        frames = [self._contribution(rank, round) for rank in range(self._config.peers)]
        self._convergence.pace(round)
        self.update.step([frame.header for frame in frames], frames)
        return sum(frame.header.samples for frame in frames)

    def accuracy(self, batches: Sequence[Batch]) -> float:
        """Share of these samples that the weights have right."""
        load(self._model, self.layout, self.update.flat, self.update.buffers)
        found = evaluate(self._model, self._config.loss, batches).accuracy
        assert found is not None  # y are labels
        return found

    def _contribution(self, rank: int, round: int) -> wire.Frame:
        made, config = self._made(rank, round), self._config
        seed = public_seed(config.seed, "rounding", rank, round)
        header = wire.FrameHeader(
            kind=wire.Kind.UPDATE,
            run=self.spec.run,
            round=round,
            base_round=round,
            base_weights=self.update.weights_sha256,
            rank=rank,
            incarnation=1,
            samples=made.samples,
            loss=made.loss,
            codec=config.exchange.codec,
            seed=seed,
            elements=self.layout.elements,
        )
        layout, payload = self.layout, codec(config.exchange.codec).encode(made.gradient, seed)
        frame = wire.encode(header, payload, pack_buffers(layout, made.buffers))
        return wire.decode(frame, expected_elements=layout.elements, expected_buffers_bytes=layout.buffers_bytes)

    def _made(self, rank: int, round: int) -> BatchGradient:
        """What a peer's workers come to: an update, or the mean of the batches' gradients."""
        config, indices = self._config, self.spec.batches_for_round(rank, round)
        model, layout, flat, buffers = self._model, self.layout, self.update.flat, self.update.buffers
        data = [self._batch(rank, index) for index in indices]
        seeds = [gradient_seed(public_seed(config.seed, "batches", rank, round), index) for index in indices]
        steps = local_steps(config, self._convergence.rate(round))
        if steps is not None:
            return local_update(model, layout, config.loss, flat, buffers, data, steps, seed=seeds[0])
        samples = sum(len(y) for _, y in data)
        mean, raw, loss = WeightedMean(layout, samples), codec("none"), 0.0
        for (x, y), seed in zip(data, seeds, strict=True):
            made = batch_gradient(model, layout, config.loss, flat, buffers, x, y, seed=seed)
            mean.add(raw.encode(made.gradient, 0), raw, made.buffers, made.samples)
            loss += made.loss * made.samples / samples
        gradient, after = mean.result(buffers)
        return BatchGradient(gradient, after, samples, loss)


def in_batches(x: np.ndarray, y: np.ndarray, size: int = AT_ONCE) -> list[Batch]:
    """x (N, …) and y (N,) cut into batches of `size`, the last one shorter."""
    return [
        (torch.from_numpy(x[start : start + size]), torch.from_numpy(y[start : start + size]))
        for start in range(0, len(y), size)
    ]


def state_folder(name: str) -> Path:
    """Where a benchmark of hours keeps what it has done so far, so that it goes on where it was stopped."""
    folder = cache_folder().parent / "benchmarks" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fewer(name: str, rounds: float, than: float) -> Figure:
    """How many times fewer rounds one way takes than another."""
    return Figure(name=name, value=than / rounds, unit="x fewer rounds", better="higher", must=5.0, aim=10.0)

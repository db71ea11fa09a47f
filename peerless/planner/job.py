"""What is to be trained, as far as time and money depend on it: sizes and counts, no tensor."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from contract.algorithms import algorithm
from contract.codec import codec
from contract.config import RunConfig
from contract.runspec import rounds_per_epoch
from peerless.cost.book import HOME_REGION, Book, book
from peerless.data.partition import partition_sizes
from peerless.data.prepared import batch_count
from peerless.launch.workload import Workload


def prices_of(config: RunConfig) -> Book:
    """Those of the region that `[cost]` names, with the user's own over them. Raises ConfigError."""
    return book(config.cost.prices, config.cost.region or HOME_REGION)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A configuration's workload."""

    config: RunConfig
    elements: int
    """Parameters."""
    buffers_bytes: int
    samples: int
    """For training, of all peers together."""
    validation_samples: int
    sample_bytes: int
    """Of one sample with its target, as it lies in S3."""

    @classmethod
    def of(cls, config: RunConfig, work: Workload) -> Job:
        """Of a configuration and what was found out about it."""
        return cls(
            config=config,
            elements=work.layout.elements,
            buffers_bytes=work.layout.buffers_bytes,
            samples=sum(work.prepared.samples),
            validation_samples=len(work.prepared.validation),
            sample_bytes=work.prepared.sample_bytes,
        )

    @functools.cached_property
    def prices(self) -> Book:
        """As `prices_of` its configuration."""
        return prices_of(self.config)

    @property
    def weights_bytes(self) -> int:
        """Of the weights as they travel."""
        return 4 * self.elements + self.buffers_bytes

    @property
    def batch_bytes(self) -> int:
        """Of a whole batch in S3."""
        return self.config.batch_size * self.sample_bytes

    @property
    def takes_steps(self) -> bool:
        """Whether workers take steps of their own, one invocation per peer and round."""
        return algorithm(self.config).local

    def batches(self, peers: int) -> tuple[int, ...]:
        """Batches by rank, of so many peers. Raises DataError for more peers than samples."""
        return _batches(self.samples, peers, self.config.data.sizes, self.config.batch_size)

    def in_a_round(self, peers: int) -> tuple[int, ...]:
        """Batches of a round by rank."""
        return _at_most(self.batches(peers), self.config.batches_per_round)

    def steps(self, batches: int) -> int:
        """Forward and backward passes that a worker makes for so many batches of its round."""
        if not self.takes_steps:
            return batches
        return self.config.algorithm.local_steps or self.config.algorithm.local_epochs * batches

    def rounds_in_an_epoch(self, peers: int) -> int:
        """Rounds until the largest partition has been gone through."""
        return rounds_per_epoch(self.batches(peers), self.config.batches_per_round)

    def rounds(self, peers: int) -> int:
        """Rounds at most: the epoch limit's."""
        return self.config.epochs * self.rounds_in_an_epoch(peers)

    def validations(self, rounds: int, peers: int) -> float:
        """How often one peer goes through the validation set in so many rounds."""
        return rounds / (self.config.validate_every or self.rounds_in_an_epoch(peers))

    def contribution_bytes(self, name: str) -> int:
        """Of one peer's contribution, encoded by the codec `name`."""
        return codec(name).encoded_bytes(self.elements) + self.buffers_bytes

    @property
    def result_bytes(self) -> int:
        """Of what a worker sends its peer."""
        return codec(self.config.compute.gradient_codec).encoded_bytes(self.elements) + self.buffers_bytes


@functools.lru_cache(maxsize=64)
def _batches(samples: int, peers: int, sizes: tuple[float, ...], batch_size: int) -> tuple[int, ...]:
    return tuple(batch_count(size, batch_size) for size in partition_sizes(samples, peers, sizes))


@functools.lru_cache(maxsize=64)
def _at_most(batches: tuple[int, ...], limit: int) -> tuple[int, ...]:
    return tuple(min(count, limit or count) for count in batches)

"""How the contributions of a round become one gradient and one set of buffers: strategies by name.

Shapes: n values (`Layout.elements`; a model's parameters, or one shard of them), P contributions g_k (n,), of which f
(`byzantine`) may be anything. All are float32 and finite, because no codec decodes to anything else.

    mean           sum of (s_k / S) g_k, weighted by samples; bears none (contract/averaging.py)
    median         per coordinate the middle value, or the mean of the two middle ones (Yin et al. 2018)
    trimmed_mean   per coordinate the mean without the f largest and the f smallest values (Yin et al. 2018)
    krum           the contribution whose P - f - 2 nearest others are nearest (Blanchard et al. 2017)

Only the mean weighs by samples: a sample count is what a peer says of itself, and whoever may send anything could buy
weight with it. Where P is too small for f, any strategy but the mean takes the median, the one that bears most, and
says so (`Remarks.note`). docs/decisions/0020 has what each assumes, bears and costs.

Buffers have to bear as much as gradients: floats are treated value by value (Krum's too, by the median, because a
contribution can have a good gradient and bad buffers), and an integer or boolean changes where more than half of the
contributions changed it, by one.

A further strategy is a `Strategy`, in `aggregators` or imported by the name that the configuration gives; most need
just a `Rule` over contributions on disk (`by_rule`).
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from contract.averaging import Remarks, SampleCount, WeightedMean, advanced, clip_factor, is_float
from contract.codec import F32, GradientCodec
from contract.config import AggregationConfig
from contract.errors import ConfigError
from contract.stack import Stack, sorted_rows
from contract.tensors import Buffers, Layout, check_values, pack_buffers, unpack_buffers


class Aggregator(Protocol):
    """Takes the contributions of one round, one by one in rank order; memory does not grow with their number."""

    remarks: Remarks
    """After `result`."""

    def add(self, gradient_payload: bytes | memoryview, codec: GradientCodec, buffers: Buffers, samples: int) -> None:
        """Add a gradient (n,) as `codec` encoded it, its buffers and its sample count.

        Raises CorruptObject for a payload that doesn't decode or samples beyond those announced, WeightsMismatch for
        buffers of another layout, OSError where the disk is full. After an error the aggregator is of no use.
        """
        ...

    def result(self, base_buffers: Buffers) -> tuple[F32, Buffers]:
        """The gradient (n,) and the buffers for the next weights; `base_buffers` are those that all started from.

        To be called once. Raises CorruptObject when the contributions' samples are not those announced.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What an aggregator is made for."""

    layout: Layout
    samples: int
    """All contributions' samples together."""
    byzantine: int = 0
    clip_norm: float = 0.0
    """Each gradient is scaled down to at most this L2 norm; 0 leaves them as they are."""
    scratch: Path | None = None
    """A folder on disk for P models; None is the system's folder for temporary files."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One way to aggregate."""

    make: Callable[[Terms], AbstractContextManager[Aggregator]]
    """What it has on disk is gone when the context ends."""
    fewest: Callable[[int], int]
    """Contributions that it needs to bear `byzantine` of them."""
    whole: bool = False
    """Whether it needs whole gradients, so that shards will not do."""


def aggregation(
    config: AggregationConfig, layout: Layout, samples: int, scratch: Path | None = None, *, whole: bool = True
) -> AbstractContextManager[Aggregator]:
    """An aggregator for one round whose contributions stand for `samples` samples in all.

    For a shard give a layout of its values and buffers, and `whole` = False. Raises ConfigError for an unknown
    strategy, and for one that a shard will not do for; CorruptObject for a total that isn't positive.
    """
    if not whole and (config.clip_norm or strategy(config.name).whole):
        raise ConfigError(f"aggregation {config.name} with clip_norm = {config.clip_norm} needs whole gradients")
    terms = Terms(
        layout=layout, samples=samples, byzantine=config.byzantine, clip_norm=config.clip_norm, scratch=scratch
    )
    return strategy(config.name).make(terms)


def strategy(name: str) -> Strategy:
    """The strategy called `name`: one of `aggregators`, or what `package.module:attribute` imports.

    Raises ConfigError where there is none.
    """
    if name in aggregators:
        return aggregators[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"aggregation.name {name!r} is none of {', '.join(aggregators)}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"aggregation.name {name}: {error}") from error
    if not isinstance(found, Strategy):
        raise ConfigError(f"aggregation.name {name} is a {type(found).__name__} instead of a contract.robust.Strategy")
    return found


# Rules: what a robust strategy makes of P gradients on disk.


class Rule(Protocol):
    """A strategy's arithmetic. Fills `out` (n,) from at least `fewest(byzantine)` contributions, and returns the
    positions of those that it left out as a whole."""

    def __call__(self, stack: Stack, byzantine: int, out: F32) -> tuple[int, ...]: ...


def median(stack: Stack, byzantine: int, out: F32) -> tuple[int, ...]:
    """The coordinate-wise median; it bears as many as it can, whatever `byzantine` says."""
    return trimmed_mean(stack, middle(len(stack)), out)


def trimmed_mean(stack: Stack, byzantine: int, out: F32) -> tuple[int, ...]:
    """The coordinate-wise mean without the `byzantine` largest and smallest values of each; values are left out, no
    contribution as a whole."""
    for part, x in stack.blocks():
        out[part] = inner_mean(sorted_rows(x), byzantine)
    return ()


def krum(stack: Stack, byzantine: int, out: F32) -> tuple[int, ...]:
    """The contribution with the least Krum score; the first of those that have it. All others are left out."""
    choice = krum_choice(squared_distances(stack), byzantine)
    stack.read(choice, out)
    return tuple(position for position in range(len(stack)) if position != choice)


def middle(count: int) -> int:
    """How many of `count` values lie on each side of the middle one or two: so many that are anything cannot move their
    mean beyond the others."""
    return (count - 1) // 2


def inner_mean(rows: list[NDArray[Any]], drop: int) -> NDArray[np.float64]:
    """The mean (b,) of ascending rows (b,) without the first and the last `drop`; summed in ascending order.

    Equal values give just that value, infinity too. A zero is positive: which of two zeros is the smaller one is the
    processor's choice.
    """
    kept = rows[drop : len(rows) - drop]
    total = kept[0].astype(np.float64)
    if len(kept) > 1:
        with np.errstate(invalid="ignore", over="ignore"):  # in buffers, where most contributions say so
            for row in kept[1:]:
                total += row
            total /= len(kept)
        total = np.where(kept[0] == kept[-1], kept[0], total)
    total += 0.0
    return total


def squared_distances(stack: Stack) -> NDArray[np.float64]:
    """(P, P): |g_i - g_j|^2, from differences and not from products, so that equal contributions are equally far."""
    count = len(stack)
    distances = np.zeros((count, count))
    for _, x in stack.blocks():
        wide = x.astype(np.float64)
        apart = np.empty_like(wide)
        for i in range(count - 1):
            rest = np.subtract(wide[i + 1 :], wide[i], out=apart[i + 1 :])
            distances[i, i + 1 :] += np.einsum("pb,pb->p", rest, rest)
    return distances + distances.T


def krum_choice(distances: NDArray[np.float64], byzantine: int) -> int:
    """The index whose sum of squared distances (P, P) to its P - f - 2 nearest others is least; ties: the first."""
    count = len(distances)
    scores = [np.sort(np.delete(distances[i], i))[: count - byzantine - 2].sum() for i in range(count)]
    return int(np.argmin(scores))


# Aggregators.


class _ClippedMean:
    """The weighted mean of gradients scaled down to `clip_norm`.

    A gradient's norm is known once it has been decoded, into the one model that memory is for. So payloads wait on
    disk, encoded, and are accumulated when that memory is the mean's.
    """

    def __init__(self, terms: Terms, file: IO[bytes]) -> None:
        self.remarks = Remarks()
        self._count = SampleCount(terms.samples)
        self._terms, self._file = terms, file
        self._kept: list[tuple[int, GradientCodec, int, float]] = []
        self._work = np.empty(terms.layout.elements, np.float32)

    def add(self, gradient_payload: bytes | memoryview, codec: GradientCodec, buffers: Buffers, samples: int) -> None:
        self._count.take(samples)
        packed = pack_buffers(self._terms.layout, buffers)
        codec.decode(gradient_payload, self._work.size, out=self._work)
        scale = clip_factor(self._work, self._terms.clip_norm)
        self._kept.append((len(gradient_payload), codec, samples, scale))
        self._file.write(gradient_payload)
        self._file.write(packed)

    def result(self, base_buffers: Buffers) -> tuple[F32, Buffers]:
        layout = self._terms.layout
        del self._work
        mean = WeightedMean(layout, self._terms.samples)
        self._file.seek(0)
        for size, codec, samples, scale in self._kept:
            payload = self._file.read(size)
            mean.add(payload, codec, unpack_buffers(layout, self._file.read(layout.buffers_bytes)), samples, scale)
            del payload  # before the next one is read
        self.remarks = Remarks(clipped=tuple(at for at, (*_, scale) in enumerate(self._kept) if scale < 1))
        return mean.result(base_buffers)


@dataclass(frozen=True)
class _How:
    """What tells one strategy with a rule from another."""

    name: str
    rule: Rule
    fewest: Callable[[int], int]
    buffers_drop: Callable[[int, int], int]


class _OnDisk:
    """A rule over all contributions on disk. In memory is one model: what was decoded last, then the result."""

    def __init__(self, terms: Terms, stack: Stack, how: _How) -> None:
        self.remarks = Remarks()
        self._clipped: list[int] = []
        self._count = SampleCount(terms.samples)
        self._terms, self._stack, self._how = terms, stack, how
        self._work = np.empty(terms.layout.elements, np.float32)

    def add(self, gradient_payload: bytes | memoryview, codec: GradientCodec, buffers: Buffers, samples: int) -> None:
        self._count.take(samples)
        codec.decode(gradient_payload, self._work.size, out=self._work)
        scale = clip_factor(self._work, self._terms.clip_norm)
        if scale < 1:
            self._clipped.append(len(self._stack))
        self._stack.append(self._work, buffers, scale)

    def result(self, base_buffers: Buffers) -> tuple[F32, Buffers]:
        self._count.check_complete()
        check_values(self._terms.layout, None, base_buffers)
        count, byzantine, how = len(self._stack), self._terms.byzantine, self._how
        rule, drop, needed = how.rule, how.buffers_drop(count, byzantine), how.fewest(byzantine)
        note = ""
        if count < needed:
            rule, drop = median, middle(count)
            note = (
                f"{how.name} with byzantine = {byzantine} needs {needed} contributions; "
                f"the round has {count}, whose median bears {drop}"
            )
        left_out = rule(self._stack, byzantine, self._work)
        self.remarks = Remarks(left_out=left_out, clipped=tuple(self._clipped), note=note)
        return self._work, _buffers(self._stack, base_buffers, drop)


def _buffers(stack: Stack, base: Buffers, drop: int) -> Buffers:
    """Floats: the mean without the `drop` largest and smallest. The others: one further where most changed them."""
    after: Buffers = {}
    for entry in stack.layout.buffers:
        before, values = base[entry.name].reshape(-1), np.empty(entry.elements, entry.dtype)
        for part, x in stack.buffer_blocks(entry):
            if is_float(x):
                values[part] = inner_mean(list(np.sort(x, axis=0)), drop)  # NaN counts as the largest
            else:
                changed = 2 * np.count_nonzero(x != before[part], axis=0) > len(stack)
                values[part] = advanced(before[part], changed)
        after[entry.name] = values.reshape(entry.shape)
    return after


# The registry.


@contextmanager
def _mean(terms: Terms) -> Iterator[Aggregator]:
    if not terms.clip_norm:
        yield WeightedMean(terms.layout, terms.samples)
        return
    with tempfile.TemporaryFile(dir=terms.scratch) as file:
        yield _ClippedMean(terms, file)


def by_rule(
    name: str,
    rule: Rule,
    fewest: Callable[[int], int],
    *,
    whole: bool = False,
    buffers_drop: Callable[[int, int], int] = lambda count, _: middle(count),
) -> Strategy:
    """A strategy that is a rule. `buffers_drop` (P, f) says how many of the largest and of the smallest values of each
    floating-point buffer stay out of its mean; unless it is given, buffers have the median."""

    @contextmanager
    def make(terms: Terms) -> Iterator[Aggregator]:
        with Stack(terms.layout, terms.scratch) as stack:
            yield _OnDisk(terms, stack, _How(name, rule, fewest, buffers_drop))

    return Strategy(make=make, fewest=fewest, whole=whole)


#: All built-in strategies by the name that a configuration uses.
aggregators: dict[str, Strategy] = {
    "mean": Strategy(make=_mean, fewest=lambda _: 1),
    "median": by_rule("median", median, lambda f: 2 * f + 1),
    "trimmed_mean": by_rule("trimmed_mean", trimmed_mean, lambda f: 2 * f + 1, buffers_drop=lambda _, f: f),
    "krum": by_rule("krum", krum, lambda f: 2 * f + 3, whole=True),
}

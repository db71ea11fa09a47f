"""The gradient of a batch, and its weighted mean, against plain torch loops.

Plain loops run in float64 on a copy of the model, so they are the truth up to 1e-15. TOLERANCE is for the relative L2
error of float32: a unit roundoff of 6e-8, sums of up to some thousand terms whose errors grow like the square root of
their number (30), over a handful of layers, most of it averaged out: below 2e-6. Errors of method (an unweighted mean,
statistics of the wrong batch, a forgotten zero_grad) are thousands of times larger, and are checked to be.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from contract.averaging import WeightedMean
from contract.codec import codec
from contract.errors import ConfigError, ModelError, NonFiniteGradient, WeightsMismatch
from contract.gradients import BatchGradient, batch_gradient
from contract.models import initial_weights
from contract.modelspec import ModelSpec
from contract.tensors import Buffers, Layout, flatten, load, pack_buffers, read_buffers

TOLERANCE = 2e-6
SIZES = (7, 3, 5)

Batches = list[tuple[Tensor, Tensor]]


def built_in(name: str, **options: object) -> nn.Module:
    return initial_weights(ModelSpec(name=name, classes=10, channels=1, image_size=28, options=options), seed=2)


def normalised() -> nn.Module:
    """A small convolutional network with BatchNorm in two dimensions and in one."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(8)
        return nn.Sequential(
            nn.Conv2d(1, 6, 5, stride=3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * 8 * 8, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Linear(16, 10),
        )


def mobilenet() -> nn.Module:
    return built_in("mobilenet_v3_small", dropout=0.0)


def joined(parts: Batches) -> tuple[Tensor, Tensor]:
    """All batches as one."""
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def batches() -> Batches:
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(sum(SIZES), 1, 28, 28, generator=generator)
    x += torch.arange(len(x)).view(-1, 1, 1, 1) / 5  # so that batches differ in mean, which BatchNorm sees
    y = torch.randint(0, 10, (len(x),), generator=generator)
    return list(zip(x.split(SIZES), y.split(SIZES), strict=True))


def started(model: nn.Module) -> tuple[Layout, NDArray[np.float32], Buffers]:
    """Layout and values of `model`; BatchNorm's running statistics are moved off their start at 0 and 1."""
    generator = torch.Generator().manual_seed(7)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
        elif name.endswith("num_batches_tracked"):
            buffer.fill_(41)
    layout = Layout.of(model)
    return layout, flatten(model, layout), read_buffers(model, layout)


def scrambled(model: nn.Module, layout: Layout) -> nn.Module:
    """A model of the same layout that holds other values, an old gradient, and is in evaluation mode."""
    other = copy.deepcopy(model)
    load(other, layout, np.full(layout.elements, 0.5, np.float32), read_buffers(other, layout))
    for parameter in other.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    return other.eval()


def averaged_by_workers(model: nn.Module) -> tuple[NDArray[np.float32], Buffers, list[BatchGradient]]:
    """What workers and a peer make of the batches: a gradient per batch, then the weighted mean."""
    layout, flat, buffers = started(model)
    worker = scrambled(model, layout)
    made = [batch_gradient(worker, layout, "cross_entropy", flat, buffers, x, y, seed=1) for x, y in batches()]
    mean = WeightedMean(layout, sum(SIZES))
    for one in made:
        mean.add(codec("none").encode(one.gradient, 0), codec("none"), one.buffers, one.samples)
    gradient, after = mean.result(buffers)
    return gradient, after, made


def plain_gradient(
    model: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype = torch.float64
) -> tuple[NDArray[np.float64], dict[str, Tensor], float]:
    """Gradient, buffers afterwards and loss, by nothing but torch, from the values that `model` holds."""
    fresh = copy.deepcopy(model).to(dtype).train()
    loss = functional.cross_entropy(fresh(x.to(dtype)), y)
    gradients = torch.autograd.grad(loss, list(fresh.parameters()))
    return torch.cat([g.reshape(-1) for g in gradients]).double().numpy(), dict(fresh.named_buffers()), loss.item()


def relative(found: NDArray[np.float32], expected: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", ["cnn", "mlp", "squeezenet1_1"])
def test_without_batchnorm_the_mean_is_the_gradient_over_all_samples(name: str) -> None:
    model = built_in(name, **({"dropout": 0.0} if name == "squeezenet1_1" else {}))
    found, _, made = averaged_by_workers(model)
    expected, _, loss = plain_gradient(model, *joined(batches()))
    assert relative(found, expected) < TOLERANCE
    unweighted = np.mean([one.gradient for one in made], axis=0)
    assert relative(unweighted, expected) > 1000 * TOLERANCE
    assert sum(one.loss * one.samples for one in made) / sum(SIZES) == pytest.approx(loss, rel=TOLERANCE)


@pytest.mark.parametrize("truth", [torch.float64, torch.float32])
@pytest.mark.parametrize("make", [normalised, mobilenet])
def test_with_batchnorm_every_batch_starts_from_the_given_statistics(
    make: Callable[[], nn.Module], truth: torch.dtype
) -> None:
    # Normalising 3 samples of a 1x1 map divides by deviations near zero, and MobileNetV3 does so 34 times: float32 is
    # some 2e-5 off the truth whoever computes it, so only the plain loop in float32 can be held to TOLERANCE there.
    tolerance = 1e-4 if make is mobilenet and truth == torch.float64 else TOLERANCE
    model = make()
    found, after, made = averaged_by_workers(model)
    gradients, buffers = [], []
    for (x, y), one in zip(batches(), made, strict=True):
        gradient, ended, loss = plain_gradient(model, x, y, truth)
        assert relative(one.gradient, gradient) < tolerance
        assert one.loss == pytest.approx(loss, rel=tolerance)
        gradients.append(gradient)
        buffers.append(ended)

    expected = np.average(gradients, axis=0, weights=SIZES)
    assert relative(found, expected) < tolerance
    assert relative(np.mean([one.gradient for one in made], axis=0), expected) > 1000 * tolerance
    joint, _, _ = plain_gradient(model, *joined(batches()), truth)
    assert relative(found, joint) > 1000 * tolerance  # statistics are those of a batch, not of all samples

    start = dict(model.named_buffers())
    for name, value in after.items():
        if name.endswith("num_batches_tracked"):
            assert value == 42
            continue
        statistics = np.average([ended[name].double().numpy() for ended in buffers], axis=0, weights=SIZES)
        assert value == pytest.approx(statistics, rel=tolerance, abs=tolerance)
        assert np.abs(statistics - start[name].numpy()).max() > 2 * tolerance


def test_the_result_depends_on_nothing_that_the_model_held_before() -> None:
    model = normalised()
    layout, flat, buffers = started(model)
    (first, second, _) = batches()

    def computed(worker: nn.Module, batch: tuple[Tensor, Tensor]) -> BatchGradient:
        return batch_gradient(worker, layout, "cross_entropy", flat, buffers, *batch, seed=1)

    fresh = computed(copy.deepcopy(model), first)
    worker = scrambled(model, layout)
    computed(worker, second)
    warm = computed(worker, first)
    assert warm.gradient.tobytes() == fresh.gradient.tobytes()
    assert pack_buffers(layout, warm.buffers) == pack_buffers(layout, fresh.buffers)
    assert (warm.loss, warm.samples) == (fresh.loss, fresh.samples)


def test_values_given_are_left_alone_and_no_gradient_stays_behind() -> None:
    model = normalised()
    layout, flat, buffers = started(model)
    before = flat.tobytes(), pack_buffers(layout, buffers)
    made = batch_gradient(model, layout, "cross_entropy", flat, buffers, *batches()[0], seed=1)
    assert (flat.tobytes(), pack_buffers(layout, buffers)) == before
    assert pack_buffers(layout, made.buffers) != before[1]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (made.gradient.dtype, made.gradient.shape, made.samples) == (np.float32, (layout.elements,), 7)


def test_dropout_follows_the_seed_and_leaves_the_global_random_state() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10))
    layout, flat, buffers = started(model)

    def computed(seed: int) -> bytes:
        made = batch_gradient(model, layout, "cross_entropy", flat, buffers, *batches()[0], seed=seed)
        return made.gradient.tobytes()

    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = computed(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert computed(1) == first
    assert computed(2) != first
    assert computed(2**63 - 1) != first


def test_a_frozen_parameter_has_a_zero_gradient() -> None:
    model = normalised()
    layout, flat, buffers = started(model)
    whole = batch_gradient(model, layout, "cross_entropy", flat, buffers, *batches()[0], seed=1).gradient
    for parameter in model[0].parameters():  # type: ignore[index]
        parameter.requires_grad_(False)
    made = batch_gradient(model, layout, "cross_entropy", flat, buffers, *batches()[0], seed=1).gradient
    frozen = 6 * 25 + 6
    assert whole[:frozen].any()
    assert not made[:frozen].any()
    assert made[frozen:].tobytes() == whole[frozen:].tobytes()


def test_a_loss_that_is_not_finite_is_told() -> None:
    model = built_in("mlp")
    layout, flat, buffers = started(model)
    x, y = batches()[0]
    x[2, 0, 3, 4] = torch.nan
    with pytest.raises(NonFiniteGradient, match="the loss of a batch of 7 samples is nan"):
        batch_gradient(model, layout, "cross_entropy", flat, buffers, x, y, seed=1)


class RootNorm(nn.Module):
    """The norm has no gradient at zero: torch's formula by hand gives 0/0 there, while the loss is fine."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(784, 10)
        self.second = nn.Linear(784, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(x.flatten(1)) + (self.second(x.flatten(1)) ** 2).sum(1, keepdim=True).sqrt()
        return out


def test_a_gradient_that_is_not_finite_names_its_parameter() -> None:
    model = RootNorm()
    layout, flat, buffers = started(model)
    x, y = batches()[0]
    flat[7850:] = 0
    with pytest.raises(NonFiniteGradient, match=r"the gradient of second\.weight holds NaN or infinity"):
        batch_gradient(model, layout, "cross_entropy", flat, buffers, x, y, seed=1)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_batchnorm_with_one_sample_is_told() -> None:
    model = normalised()
    layout, flat, buffers = started(model)
    x, y = batches()[0]
    with pytest.raises(ModelError, match="use a batch_size above 1 and give every peer at least two samples"):
        batch_gradient(model, layout, "cross_entropy", flat, buffers, x[:1], y[:1], seed=1)


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        raise LookupError("no way back")


class BrokenBackward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = Broken.apply(self.layer(x.flatten(1)))  # type: ignore[no-untyped-call]
        return out


def test_what_cannot_be_computed_is_told() -> None:
    x, y = batches()[0]
    model: nn.Module = BrokenBackward()
    layout, flat, buffers = started(model)
    with pytest.raises(ModelError, match="LookupError: no way back"):
        batch_gradient(model, layout, "cross_entropy", flat, buffers, x, y, seed=1)
    with pytest.raises(ModelError, match="a batch of 0 inputs and 0 targets"):
        batch_gradient(model, layout, "cross_entropy", flat, buffers, x[:0], y[:0], seed=1)
    with pytest.raises(ModelError, match="a batch of 7 inputs and 3 targets"):
        batch_gradient(model, layout, "cross_entropy", flat, buffers, x, y[:3], seed=1)
    with pytest.raises(ConfigError, match="loss 'hinge'"):
        batch_gradient(model, layout, "hinge", flat, buffers, x, y, seed=1)
    with pytest.raises(WeightsMismatch):
        batch_gradient(model, layout, "cross_entropy", flat[1:], buffers, x, y, seed=1)
    model.requires_grad_(False)
    with pytest.raises(ModelError, match="no parameter that can be trained"):
        batch_gradient(model, layout, "nll", flat, buffers, x, y, seed=1)

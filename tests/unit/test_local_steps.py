"""A worker's own steps: against a plain torch loop on the model's own tensors."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from contract import jsonform
from contract.algorithms import local_steps
from contract.config import RunConfig, from_mapping
from contract.errors import ConfigError, CorruptObject, ModelError, NonFiniteGradient
from contract.gradients import batch_gradient
from contract.local_steps import LocalSteps, LocalUpdate, local_update
from contract.precision import has_bfloat16
from contract.seeds import public_seed
from contract.tensors import Layout, flatten, read_buffers

SEED, LR = 11, 0.05
#: Samples per batch: unequal, so that an unweighted loss is wrong.
COUNTS = (6, 4, 3)


class Net(nn.Module):
    """Everything at once: batch normalisation, dropout, a tied parameter, a frozen and an unused one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3)
        self.last, self.tied = nn.Linear(8, 3), nn.Linear(8, 3)
        self.tied.weight = self.last.weight
        self.frozen = nn.Parameter(torch.ones(8), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(self.norm(torch.relu(self.first(x)))) * self.frozen
        return self.last(hidden) + self.tied(hidden) * 0.5


def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [(torch.randn(n, 5, generator=generator), torch.randint(3, (n,), generator=generator)) for n in COUNTS]


@pytest.fixture
def net() -> Net:
    torch.manual_seed(4)
    return Net()


def steps(**settings: Any) -> LocalSteps:
    algorithm = {k: settings.pop(k) for k in ("local_steps", "local_epochs", "keep_state") if k in settings}
    config = from_mapping(
        {"algorithm": {"name": "local_sgd", **algorithm}, "optimizer": {"momentum": 0.5, **settings}}, "here"
    )
    found = local_steps(config, LR)
    assert found is not None
    return found


def update(net: nn.Module, work: LocalSteps, **more: Any) -> LocalUpdate:
    layout = Layout.of(net)
    flat, buffers = flatten(net, layout), read_buffers(net, layout)
    given = {"seed": SEED, "batches": data(), **more}
    return local_update(net, layout, "cross_entropy", flat, buffers, given.pop("batches"), work, **given)


def in_torch(net: nn.Module, make: Any, order: list[int]) -> tuple[nn.Module, float]:
    """The same steps with torch's own optimizer on the model's own tensors; the sample-weighted mean loss."""
    plain = copy.deepcopy(net).train()
    optimizer = make([p for p in plain.parameters() if p.requires_grad])
    losses, batches = [], data()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        for at in order:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(plain(batches[at][0]), batches[at][1])
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()) * COUNTS[at])
    return plain, sum(losses) / sum(COUNTS[at] for at in order)


def order(count: int) -> list[int]:
    """Each pass in an order of its own."""
    found: list[int] = []
    for start in range(0, count, len(COUNTS)):
        found += sorted(range(len(COUNTS)), key=lambda at: public_seed(SEED, "order", start, at))
    return found[:count]


MAKERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=LR, momentum=0.5),
    "adam": lambda p: torch.optim.Adam(p, lr=LR),
    "nadam": lambda p: torch.optim.NAdam(p, lr=LR),
    "adamw": lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=0.0),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(("settings", "count"), [({"local_epochs": 3}, 9), ({"local_steps": 5}, 5), ({}, 3)])
def test_steps_are_those_of_a_plain_loop(net: Net, name: str, settings: dict[str, Any], count: int) -> None:
    layout = Layout.of(net)
    before = flatten(net, layout)
    plain, loss = in_torch(net, MAKERS[name], order(count))
    found = update(net, steps(name=name, **settings))
    # Adaptive optimizers divide by small numbers, and gradients are added up in another order.
    np.testing.assert_allclose(found.gradient, before - flatten(plain, layout), rtol=0, atol=2e-5)
    assert np.abs(found.gradient).max() > 0.01
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.samples == sum(COUNTS), "each sample counts once, however often it was used"
    for entry, value in read_buffers(plain, layout).items():
        np.testing.assert_allclose(found.buffers[entry], value, rtol=1e-5, atol=1e-6)
    assert found.buffers["norm.num_batches_tracked"] == count


def test_passes_have_orders_of_their_own() -> None:
    assert len({tuple(order(30)[at : at + 3]) for at in range(0, 30, 3)}) > 2


def test_one_step_of_plain_sgd_is_the_gradient_times_the_rate(net: Net) -> None:
    layout = Layout.of(net)
    flat, buffers = flatten(net, layout), read_buffers(net, layout)
    x, y = data()[0]
    gradient = batch_gradient(net, layout, "cross_entropy", flat, buffers, x, y, seed=SEED)
    found = update(net, steps(momentum=0.0), batches=[(x, y)])
    np.testing.assert_allclose(found.gradient, LR * gradient.gradient, rtol=0, atol=1e-6)
    assert found.loss == gradient.loss


def test_weights_that_are_frozen_stay_and_the_model_is_as_it_was(net: Net) -> None:
    layout = Layout.of(net)
    tensors, flat = [p.data_ptr() for p in net.parameters()], flatten(net, layout)
    found = update(net, steps(name="adamw", weight_decay=0.5, local_epochs=2))
    moved = {entry.name: bool(view.any()) for entry, view in layout.views(found.gradient)}
    assert moved == {**dict.fromkeys(moved, True), "frozen": False}
    assert [p.data_ptr() for p in net.parameters()] == tensors
    assert all(p.grad is None for p in net.parameters())
    assert np.array_equal(flatten(net, layout), flat)
    assert net.tied.weight is net.last.weight


def test_equal_work_gives_equal_bits_whatever_came_before(net: Net) -> None:
    layout = Layout.of(net)
    flat, buffers = flatten(net, layout), read_buffers(net, layout)

    def once() -> LocalUpdate:
        return local_update(
            net, layout, "cross_entropy", flat, buffers, data(), steps(name="adam", local_epochs=2), seed=SEED
        )

    first, state = once(), torch.random.get_rng_state()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(3.0)
    torch.manual_seed(99)
    again = once()
    assert first.gradient.tobytes() == again.gradient.tobytes()
    assert first.loss == again.loss
    torch.random.set_rng_state(state)
    other = local_update(
        net, layout, "cross_entropy", flat, buffers, data(), steps(name="adam", local_epochs=2), seed=SEED + 1
    )
    assert other.gradient.tobytes() != first.gradient.tobytes()


@pytest.mark.parametrize("name", ["adam", "sgd", "rmsprop"])
def test_kept_moments_go_on(name: str) -> None:
    """Two rounds of one step, the second with the first one's moments, are one of two; begun anew they are not."""
    torch.manual_seed(4)
    plain, x_y = nn.Sequential(nn.Linear(5, 3)), data()[0]
    layout = Layout.of(plain)
    flat = flatten(plain, layout)

    def one(flat: np.ndarray, kept: Any, count: int = 1) -> LocalUpdate:
        work = steps(name=name, local_steps=count, keep_state=True)
        return local_update(plain, layout, "cross_entropy", flat, {}, [x_y], work, seed=SEED, kept=kept)

    first = one(flat, None)
    second = one(flat - first.gradient, first.moments)
    both = one(flat, None, 2)
    np.testing.assert_allclose(first.gradient + second.gradient, both.gradient, rtol=0, atol=1e-6)
    for key, value in both.moments.items():
        np.testing.assert_allclose(second.moments[key], value, rtol=1e-4, atol=1e-6)
    anew = one(flat - first.gradient, None)
    assert np.abs(first.gradient + anew.gradient - both.gradient).max() > 1e-4


def test_moments_of_another_optimizer_are_refused(net: Net) -> None:
    kept = update(net, steps(name="adam", keep_state=True)).moments
    assert kept.keys() == {"exp_avg", "exp_avg_sq", "step"}
    with pytest.raises(CorruptObject, match="moments of sgd"):
        update(net, steps(), kept=kept)
    assert update(net, steps(name="adam")).moments == {}, "nobody has asked for them"


def test_gradients_of_steps_are_clipped(net: Net) -> None:
    found = update(net, steps(momentum=0.0, local_steps=1, clip_norm=0.01))
    assert float(np.linalg.norm(found.gradient)) == pytest.approx(LR * 0.01, rel=1e-4)


def test_a_rate_that_is_too_high_is_told(net: Net) -> None:
    with pytest.raises(NonFiniteGradient, match="a smaller"):
        update(net, steps(local_epochs=400, momentum=0.0, weight_decay=1e6))


def test_no_batches_are_no_work(net: Net) -> None:
    with pytest.raises(ModelError, match="nothing to take steps with"):
        update(net, steps(), batches=[])


def test_the_form_that_travels_is_read_back() -> None:
    work = steps(name="adam", options={"amsgrad": True, "beta2": 0.9}, local_steps=4)
    assert jsonform.from_dict(LocalSteps, jsonform.loads(jsonform.dumps(jsonform.to_dict(work)), "x"), "x") == work
    with pytest.raises(ValueError, match="no work for a worker"):
        LocalSteps(optimizer=work.optimizer, steps=0, epochs=0)


class TestPrecision:
    def test_bfloat16_is_coarser_and_still_the_gradient(self, net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
        """torch computes the same where the processor has no such instructions, slower."""
        monkeypatch.setattr("contract.precision.has_bfloat16", lambda: True)
        layout = Layout.of(net)
        flat, buffers = flatten(net, layout), read_buffers(net, layout)
        x, y = data()[0]
        found = [
            batch_gradient(net, layout, "cross_entropy", flat, buffers, x, y, seed=SEED, precision=precision).gradient
            for precision in ("float32", "bfloat16")
        ]
        error = np.linalg.norm(found[0] - found[1]) / np.linalg.norm(found[0])
        assert 1e-4 < error < 0.05, "8 bits of precision"
        assert found[1].dtype == np.float32
        work = steps(local_epochs=2)
        whole, mixed = (update(net, work, precision=precision).gradient for precision in ("float32", "bfloat16"))
        assert 1e-4 < np.linalg.norm(whole - mixed) / np.linalg.norm(whole) < 0.05

    def test_a_processor_without_it_is_told(self, net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
        has_bfloat16.cache_clear()
        with pytest.raises(ConfigError, match=r"no instructions for bfloat16; set compute.precision = 'float32'"):
            update(net, steps(), precision="bfloat16")
        has_bfloat16.cache_clear()

    def test_an_unknown_one_is_refused(self, net: Net) -> None:
        with pytest.raises(ConfigError, match="neither float32 nor bfloat16"):
            update(net, steps(), precision="float8")


def test_defaults_take_no_steps() -> None:
    assert local_steps(RunConfig(), 0.1) is None

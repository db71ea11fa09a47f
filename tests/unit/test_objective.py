"""Losses, the forward pass, and evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from contract.errors import ConfigError, DataError, ModelError
from contract.objective import evaluate, forward, loss_function


class Echo(nn.Module):
    """Answers with its input, through dropout that only training mode applies."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(1.0)

    def forward(self, x: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        out: Tensor = self.dropout(x)
        return out


def test_losses_are_means_over_samples() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    targets = torch.tensor([0, 0, 1])
    log_probabilities = logits - logits.exp().sum(1, keepdim=True).log()
    expected = float(-(log_probabilities[0, 0] + log_probabilities[1, 0] + log_probabilities[2, 1]) / 3)
    # Values near 1 in float32, after some ten operations: 10 roundings of 6e-8.
    assert float(loss_function("cross_entropy")(logits, targets)) == pytest.approx(expected, rel=6e-7)
    assert float(loss_function("nll")(log_probabilities, targets)) == pytest.approx(expected, rel=6e-7)


def test_an_unknown_loss_is_told() -> None:
    with pytest.raises(ConfigError, match="loss 'hinge' is none of cross_entropy, nll"):
        loss_function("hinge")


def test_evaluation_weighs_samples_alike_whatever_the_batches() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(11, 4, generator=generator)
    targets = torch.randint(0, 4, (11,), generator=generator)
    batches = list(zip(logits.split(4), targets.split(4), strict=True))
    assert [len(y) for _, y in batches] == [4, 4, 3]
    result = evaluate(Echo(), "cross_entropy", batches)
    assert result.samples == 11
    assert result.accuracy == int((logits.argmax(1) == targets).sum()) / 11
    assert 0 < result.accuracy < 1
    # Three means in float32, summed in float64: a few roundings of 6e-8.
    expected = float(functional.cross_entropy(logits.double(), targets))
    assert result.loss == pytest.approx(expected, rel=5e-7)
    unweighted = sum(float(functional.cross_entropy(x, y)) for x, y in batches) / 3
    assert abs(unweighted - expected) > 1e-4


def test_evaluation_restores_the_mode_of_every_module() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 2))
    model.train()
    model[0].eval()  # frozen by its owner
    batch = (torch.randn(3, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 1]))
    evaluate(model, "cross_entropy", [batch])
    assert [module.training for module in model.modules()] == [True, False, True, True]
    with pytest.raises(ModelError):
        evaluate(model, "cross_entropy", [(torch.zeros(3, 5), batch[1])])
    assert [module.training for module in model.modules()] == [True, False, True, True]


def test_evaluation_changes_no_statistics() -> None:
    model = nn.BatchNorm1d(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, "cross_entropy", [(torch.full((3, 2), 7.0), torch.tensor([0, 1, 1]))])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(DataError, match="no samples"):
        evaluate(Echo(), "cross_entropy", [])


class Raises(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("model", "x", "y", "sentence"),
    [
        (nn.Linear(4, 3), torch.zeros(2, 5), torch.zeros(2, dtype=torch.long), r"failed on a batch of shape \[2, 5\]"),
        (nn.Linear(4, 3), torch.zeros(2, 4), torch.tensor([0, 3]), "IndexError: Target 3 is out of bounds"),
        (nn.Linear(4, 3), torch.zeros(2, 4), torch.zeros(2, 1, dtype=torch.long), r"targets of shape \[2, 1\]"),
        (Pair(), torch.zeros(2, 4), torch.zeros(2, dtype=torch.long), "returned tuple, but must return one tensor"),
        (Raises(KeyError("mode\nsecond line")), torch.zeros(1), torch.zeros(1), "KeyError: 'mode"),
    ],
    ids=["features", "target", "target shape", "tuple", "own error"],
)
def test_a_batch_that_a_model_refuses_is_told_in_one_sentence(
    model: nn.Module, x: Tensor, y: Tensor, sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence) as raised:
        forward(model, "cross_entropy", x, y)
    assert "\n" not in str(raised.value)


def test_running_out_of_memory_is_not_blamed_on_the_model() -> None:
    # The text with which torch 2.13 reports a failed allocation on CPUs.
    error = RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(MemoryError, match="DefaultCPUAllocator"):
        forward(Raises(error), "nll", torch.zeros(1), torch.zeros(1))
    with pytest.raises(MemoryError):
        forward(Raises(MemoryError()), "nll", torch.zeros(1), torch.zeros(1))

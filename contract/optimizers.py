"""torch's optimizers on one flat parameter, by the names of contract/training.py, and what they keep between steps.

n is the number of parameters. All of these are elementwise, so one vector (n,) will do for a whole model. What they
keep are vectors (n,) and scalars (), float32: their *moments*, by torch's own names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer

from contract.averaging import clip_factor
from contract.errors import ConfigError, CorruptObject

#: Moments by torch's name: vectors (n,), and scalars ().
Moments = dict[str, NDArray[np.float32]]

_CLASSES: Mapping[str, Callable[..., Optimizer]] = {
    "sgd": SGD,
    "adam": Adam,
    "adamw": AdamW,
    "nadam": NAdam,
    "radam": torch.optim.RAdam,
    "adamax": torch.optim.Adamax,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rmsprop": torch.optim.RMSprop,
    "rprop": torch.optim.Rprop,
    "asgd": torch.optim.ASGD,
}
#: What torch takes in pairs, and what the two are called in a configuration.
_PAIRS = {
    "betas": ("beta1", "beta2"),
    "etas": ("eta_minus", "eta_plus"),
    "step_sizes": ("step_min", "step_max"),
}
#: Vectors and scalars that each optimizer keeps, in the order in which they are stored.
_MOMENTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sgd": (("momentum_buffer",), ()),
    "adam": (("exp_avg", "exp_avg_sq"), ("step",)),
    "adamw": (("exp_avg", "exp_avg_sq"), ("step",)),
    "nadam": (("exp_avg", "exp_avg_sq"), ("mu_product", "step")),
    "radam": (("exp_avg", "exp_avg_sq"), ("step",)),
    "adamax": (("exp_avg", "exp_inf"), ("step",)),
    "adagrad": (("sum",), ("step",)),
    "adadelta": (("acc_delta", "square_avg"), ("step",)),
    "rmsprop": (("square_avg",), ("step",)),
    "rprop": (("prev", "step_size"), ("step",)),
    "asgd": (("ax",), ("eta", "mu", "step")),
}
#: No optimizer keeps more vectors than these: RMSprop with a momentum, centred; Adam with amsgrad.
VECTORS_MAX = 3


class Settings(Protocol):
    """What an optimizer is built from: contract.training.OptimizerConfig, or `Described`."""

    @property
    def name(self) -> str: ...
    @property
    def lr(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def nesterov(self) -> bool: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def options(self) -> Mapping[str, Any]: ...
    @property
    def clip_norm(self) -> float: ...
    @property
    def clip_value(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Described:
    """The settings as they travel to a worker, which does without the configuration's own library."""

    name: str
    lr: float
    momentum: float
    nesterov: bool
    weight_decay: float
    options: dict[str, Any] = field(default_factory=dict)
    clip_norm: float
    clip_value: float

    @classmethod
    def of(cls, settings: Settings, lr: float) -> Described:
        """`settings` with another learning rate."""
        return cls(
            name=settings.name,
            lr=lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
            options=dict(settings.options),
            clip_norm=settings.clip_norm,
            clip_value=settings.clip_value,
        )


def build(parameter: nn.Parameter, settings: Settings) -> Optimizer:
    """The optimizer of one parameter (n,). Raises ConfigError for what torch does not take."""
    given: dict[str, Any] = dict(settings.options)
    made = _CLASSES.get(settings.name)
    if made is None:
        raise ConfigError(f"optimizer {settings.name!r} is none of {', '.join(_CLASSES)}")
    signature = inspect.signature(made).parameters
    for pair, names in _PAIRS.items():
        if pair in signature:
            given[pair] = tuple(
                given.pop(name, usual) for name, usual in zip(names, signature[pair].default, strict=True)
            )
    if settings.name == "sgd":
        given |= {"momentum": settings.momentum, "nesterov": settings.nesterov}
    if "weight_decay" in signature:
        given["weight_decay"] = settings.weight_decay
    try:
        return made([parameter], lr=settings.lr, **given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer {settings.name}: {error}") from error


def idle(lr: float) -> Optimizer:
    """An optimizer of nothing, whose learning rate stands for that of steps which are taken elsewhere."""
    return SGD([torch.zeros(())], lr=lr)


def clip(gradient: Tensor, settings: Settings) -> None:
    """Cut off the values of `gradient` (n,), then scale it down to the norm, as `settings` say; in place."""
    if settings.clip_value:
        gradient.clamp_(-settings.clip_value, settings.clip_value)
    factor = clip_factor(gradient.numpy(), settings.clip_norm)
    if factor < 1.0:
        gradient.mul_(factor)


def name_of(optimizer: Optimizer) -> str:
    """Its name in a configuration."""
    name = type(optimizer).__name__.lower()
    if name not in _MOMENTS:
        raise TypeError(f"nobody here knows what {type(optimizer).__name__} keeps")
    return name


def kept(optimizer: Optimizer) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the vectors and of the scalars that this optimizer keeps from its first step on."""
    name, group = name_of(optimizer), optimizer.param_groups[0]
    if name == "sgd" and group["momentum"] == 0:
        return (), ()
    vectors, scalars = _MOMENTS[name]
    if group.get("amsgrad"):
        vectors = (*vectors, "max_exp_avg_sq")
    if name == "rmsprop" and group["momentum"] > 0:
        vectors = (*vectors, "momentum_buffer")
    if name == "rmsprop" and group["centered"]:
        vectors = (*vectors, "grad_avg")
    return vectors, scalars


def moments(optimizer: Optimizer) -> Moments:
    """What it keeps, sharing its memory; empty before the first step, but for those that begin with something."""
    (parameter,) = optimizer.param_groups[0]["params"]
    state = {name: value for name, value in optimizer.state.get(parameter, {}).items() if value is not None}
    vectors, scalars = kept(optimizer)
    if state and state.keys() != {*vectors, *scalars}:
        raise TypeError(f"{type(optimizer).__name__} keeps {sorted(state)}, which nobody here knows")
    return {name: state[name].detach().numpy() for name in (*vectors, *scalars) if state}


def check_moments(optimizer: Optimizer, found: Mapping[str, NDArray[np.float32]], elements: int, what: str) -> None:
    """Raise CorruptObject unless an optimizer like this, of n = `elements`, can have kept `found`."""
    name, (vectors, scalars) = name_of(optimizer), kept(optimizer)
    shapes = {**dict.fromkeys(vectors, (elements,)), **dict.fromkeys(scalars, ())}
    if (found or moments(optimizer)) and {n: array.shape for n, array in found.items()} != shapes:
        raise CorruptObject(f"{what} does not hold the moments of {name} for {elements} parameters")
    if any(not np.isfinite(found[n]) or found[n] < 0 for n in scalars if found):
        raise CorruptObject(f"{what} has a counter that no sequence of steps leads to")


def encode_moments(found: Moments) -> bytes:
    """A safetensors file of them."""
    blob: bytes = safetensors.numpy.save(found)
    return blob


def decode_moments(blob: bytes, what: str) -> Moments:
    """Inverse of `encode_moments`. Raises CorruptObject; whether they fit an optimizer `check_moments` knows."""
    try:
        found: Moments = safetensors.numpy.load(blob)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CorruptObject(f"{what} holds no moments of an optimizer: {error}") from error
    return found


def set_moments(optimizer: Optimizer, found: Mapping[str, NDArray[np.float32]]) -> None:
    """Go on from copies of `found`, which `check_moments` has seen."""
    (parameter,) = optimizer.param_groups[0]["params"]
    optimizer.state[parameter] = {n: torch.from_numpy(array.astype(np.float32)) for n, array in found.items()}

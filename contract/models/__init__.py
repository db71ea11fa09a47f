"""From a model's name to a torch Module: the built-in architectures, and any importable `package.module:callable`.

Built-in architectures take images of one or three channels (N, channels, image_size, image_size), float32, and answer
with logits (N, classes). They are defined from 28 to 224 pixels (`mlp` and `cnn` also for less); the module of each
family says how images smaller than the paper's are handled. `mlp` takes any number of channels, and feature vectors
(N, features), of which each feature is a channel of one pixel.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from contract.errors import ModelError, PeerlessError
from contract.importing import imported, told
from contract.models.cnn_mlp import cnn, mlp
from contract.models.fedkeeper import fedkeeper_cnn
from contract.models.mobilenet import mobilenet_v3_small
from contract.models.squeezenet import squeezenet1_1
from contract.models.vgg import vgg11
from contract.modelspec import ModelSpec

#: The built-in architectures by the name that a configuration uses.
BUILT_IN: Mapping[str, Callable[..., nn.Module]] = {
    "cnn": cnn,
    "mlp": mlp,
    "vgg11": vgg11,
    "squeezenet1_1": squeezenet1_1,
    "mobilenet_v3_small": mobilenet_v3_small,
    "fedkeeper_cnn": fedkeeper_cnn,
}

#: The smallest image, in pixels, that an architecture has a use for; 28 where nothing is said.
SMALLEST_IMAGE: Mapping[str, int] = {"cnn": 12}


def build(spec: ModelSpec) -> nn.Module:
    """Build the model that `spec` names, with weights drawn from torch's global random state.

    A built-in model gets `classes`, `channels` and `image_size`; an imported callable gets those of the three that its
    signature names. `spec.options` are passed as keyword arguments in any case and win over the three. Raises
    ModelError with one sentence when the name, an option or the result is wrong.
    """
    given = {"classes": spec.classes, "channels": spec.channels, "image_size": spec.image_size}
    if ":" in spec.name:
        factory = imported(spec.name, "model")
        accepted = _named_arguments(factory)
        given = {name: value for name, value in given.items() if name in accepted}
    elif spec.name in BUILT_IN:
        factory = BUILT_IN[spec.name]
        _check_images(spec)
    else:
        known = ", ".join(BUILT_IN)
        raise ModelError(f"model {spec.name!r} is none of {known}, nor of the form package.module:callable")

    arguments = {**given, **spec.options}
    _check_arguments(spec.name, factory, arguments)
    try:
        model = factory(**arguments)
    except PeerlessError:
        raise
    except Exception as error:
        raise ModelError(f"model {spec.name} could not be built: {told(error)}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"model {spec.name} returned {type(model).__name__} instead of a torch.nn.Module")
    return model


def initial_weights(spec: ModelSpec, seed: int) -> nn.Module:
    """Build the model with weights drawn from `seed`; torch's global random state is left as it was.

    The same seed gives the same weights on one release of torch, unless an imported model draws from elsewhere.
    Raises ModelError as `build` does.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build(spec)


def _check_images(spec: ModelSpec) -> None:
    if spec.classes < 1:
        raise ModelError(f"model {spec.name} needs at least one class, not {spec.classes}")
    if spec.name == "mlp":
        return  # takes whatever can be flattened
    if spec.image_size == 1:
        raise ModelError(f"model {spec.name} takes images, not feature vectors; use mlp or a model of your own")
    if spec.channels not in (1, 3):
        raise ModelError(f"model {spec.name} takes images of 1 or 3 channels, not {spec.channels}")
    smallest = SMALLEST_IMAGE.get(spec.name, 28)
    if spec.image_size < smallest:
        raise ModelError(
            f"model {spec.name} takes images of at least {smallest} pixels, not {spec.image_size}; "
            "set data.image_size to resize them"
        )


def _named_arguments(factory: Callable[..., Any]) -> frozenset[str]:
    """Names that can be passed as keywords. `**kwargs` names nothing: torchvision hands those on to a constructor."""
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return frozenset()  # some builtins have no signature
    return frozenset(parameter.name for parameter in parameters if parameter.kind in by_keyword)


def _check_arguments(name: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Tell a wrong option apart from an error inside the model. Raises ModelError."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        known = ", ".join(sorted(_named_arguments(factory) - {"classes", "channels", "image_size"})) or "none"
        raise ModelError(f"model {name}: {error}; its options are: {known}") from error

"""Built-in architectures and importable models."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from contract.config import BUILT_IN_MODELS
from contract.errors import ModelError
from contract.models import BUILT_IN, build, initial_weights
from contract.modelspec import ModelSpec
from contract.tensors import Layout, flatten


def spec(name: str, *, classes: int = 10, channels: int = 1, image_size: int = 28, **options: object) -> ModelSpec:
    return ModelSpec(name=name, classes=classes, channels=channels, image_size=image_size, options=options)


def on_meta(wanted: ModelSpec) -> nn.Module:
    """The architecture without memory for its weights: VGG-11's would take half a gigabyte."""
    with torch.device("meta"):
        return build(wanted)


@pytest.mark.parametrize(
    ("wanted", "parameters"),
    [
        (spec("vgg11", classes=1000, channels=3, image_size=224), 132_863_336),
        (spec("squeezenet1_1", classes=1000, channels=3, image_size=224), 1_235_496),
        (spec("mobilenet_v3_small", classes=1000, channels=3, image_size=224), 2_542_856),
        (spec("vgg11", channels=3, image_size=32, head="cifar"), 9_225_610),
        (spec("cnn"), 117_066),
        (spec("fedkeeper_cnn"), 582_026),
        (spec("mlp"), 397_510),
        (spec("mlp", hidden=100, layers=2), 784 * 100 + 100 + 100 * 100 + 100 + 100 * 10 + 10),
    ],
    ids=lambda value: value.name if isinstance(value, ModelSpec) else f"{value:,}",
)
def test_parameter_counts_are_the_published_ones(wanted: ModelSpec, parameters: int) -> None:
    assert Layout.of(on_meta(wanted)).elements == parameters


def test_the_registry_is_what_a_configuration_accepts() -> None:
    assert tuple(BUILT_IN) == BUILT_IN_MODELS


@pytest.mark.parametrize("image_size", [28, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cnn", {}),
        ("mlp", {}),
        ("vgg11", {"head": "cifar"}),
        ("squeezenet1_1", {}),
        ("mobilenet_v3_small", {}),
        ("fedkeeper_cnn", {}),
    ],
)
def test_small_images_train_every_parameter(
    name: str, options: dict[str, object], channels: int, image_size: int
) -> None:
    model = initial_weights(spec(name, classes=7, channels=channels, image_size=image_size, **options), seed=3)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(4, channels, image_size, image_size, generator=generator)
    model.train()
    logits = model(x)
    assert logits.shape == (4, 7)
    functional.cross_entropy(logits, torch.tensor([0, 1, 2, 6])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", list(BUILT_IN))
@pytest.mark.parametrize(("channels", "image_size"), [(1, 28), (3, 32), (1, 97), (3, 224)])
def test_any_size_up_to_224_gives_logits_and_gradients_of_the_right_shape(
    name: str, channels: int, image_size: int
) -> None:
    model = on_meta(spec(name, classes=13, channels=channels, image_size=image_size))
    logits = model(torch.empty(2, channels, image_size, image_size, device="meta"))
    assert logits.shape == (2, 13)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape"),
    [("vgg11", (1, 512, 7, 7)), ("squeezenet1_1", (1, 512, 13, 13)), ("mobilenet_v3_small", (1, 576, 7, 7))],
)
def test_the_last_map_at_224_pixels_has_the_papers_shape(name: str, shape: tuple[int, ...]) -> None:
    model = on_meta(spec(name, channels=3, image_size=224))
    features = model.features
    assert isinstance(features, nn.Module)
    assert features(torch.empty(1, 3, 224, 224, device="meta")).shape == shape


def test_vgg11_pads_28_pixels_evenly_to_32() -> None:
    model = initial_weights(spec("vgg11", head="cifar"), seed=1).eval()
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(x), model(functional.pad(x, (2, 2, 2, 2))))


def test_initial_weights_depend_on_the_seed_alone_and_leave_the_random_state() -> None:
    wanted = spec("cnn")
    layout = Layout.of(build(wanted))
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = flatten(initial_weights(wanted, 5), layout)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    assert np.array_equal(flatten(initial_weights(wanted, 5), layout), first)
    assert not np.array_equal(flatten(initial_weights(wanted, 6), layout), first)


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's, importable for one test."""
    (tmp_path / "owned_models.py").write_text(
        textwrap.dedent(
            """
            from torch import nn

            def told(classes, *, image_size):
                return nn.Linear(image_size, classes)

            def asks_nothing(width=4, **further):
                assert not further, further
                return nn.Linear(width, 2)

            class Direct(nn.Module):
                def __init__(self, channels, depth=1):
                    super().__init__()
                    self.layers = nn.Linear(channels, depth)

            class Nested:
                inner = told

            def not_a_module():
                return "hello"

            def fails():
                raise RuntimeError("no such luck")

            number = 3
            """
        )
    )
    (tmp_path / "owned_broken.py").write_text("import nowhere_to_be_found\n")
    (tmp_path / "owned_raising.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "owned_models"


def test_an_own_model_gets_what_its_signature_names_and_its_options(own_module: str) -> None:
    assert build(spec(f"{own_module}:told", classes=5, image_size=9)).weight.shape == (5, 9)
    assert build(spec(f"{own_module}:Nested.inner", classes=5, image_size=9)).weight.shape == (5, 9)
    assert build(spec(f"{own_module}:asks_nothing", width=6)).weight.shape == (2, 6)
    assert build(spec(f"{own_module}:Direct", channels=3, depth=2)).layers.weight.shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("resnet9000", {}, "'resnet9000' is none of cnn, mlp"),
        ("cnn", {"hiden": 3}, "model cnn: got an unexpected keyword argument 'hiden'; its options are: hidden"),
        ("cnn", {"hidden": 0}, "hidden is 0"),
        ("mlp", {"layers": 1.5}, "layers is 1.5"),
        ("vgg11", {"head": "cifar10"}, "head is 'cifar10', but must be imagenet or cifar"),
        ("squeezenet1_1", {"dropout": 2.0}, "dropout probability has to be between 0 and 1"),
        ("no_such_package.models:net", {}, "there is no module named no_such_package"),
        ("owned_models:nothing", {}, "owned_models has no nothing"),
        ("owned_models:number", {}, "number is int, which cannot be called"),
        ("owned_models:not_a_module", {}, "returned str instead of a torch.nn.Module"),
        ("owned_models:fails", {}, "RuntimeError: no such luck"),
        ("owned_models:told", {"depth": 2}, "unexpected keyword argument 'depth'; its options are: none"),
        ("owned_models:", {}, "not of the form package.module:callable"),
        ("owned_broken:net", {}, "no module named nowhere_to_be_found (importing owned_broken)"),
        ("owned_raising:net", {}, "importing owned_raising failed: ZeroDivisionError"),
    ],
)
def test_a_wrong_model_is_told_in_one_sentence(
    own_module: str, name: str, options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ModelError) as raised:
        build(spec(name, **options))
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (spec("cnn", channels=2), "1 or 3 channels, not 2"),
        (spec("squeezenet1_1", image_size=27), "at least 28 pixels, not 27"),
        (spec("cnn", channels=6, image_size=1), "takes images, not feature vectors; use mlp"),
    ],
)
def test_images_that_an_architecture_cannot_take_are_refused(wanted: ModelSpec, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        build(wanted)


def test_the_dense_network_takes_feature_vectors_and_any_channels() -> None:
    assert build(spec("mlp", channels=6, image_size=1, classes=3))(torch.zeros(4, 6)).shape == (4, 3)
    assert build(spec("mlp", channels=2, image_size=5, classes=3))(torch.zeros(4, 2, 5, 5)).shape == (4, 3)

"""torch Datasets, given directly or by a callable's name."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from contract.config import DataConfig
from contract.errors import DataError
from peerless.data import from_torch_dataset, load


class Listed(Dataset):
    def __init__(self, samples, classes=None) -> None:
        self.samples = samples
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


class Streamed(IterableDataset):
    """Yields one buffer again and again, and claims a length that it does not keep."""

    def __len__(self) -> int:
        return 7

    def __iter__(self):
        buffer = torch.zeros(3)
        for index in range(4):
            buffer.fill_(index)
            yield buffer, index


def image(value: int) -> Image.Image:
    return Image.fromarray(np.full((2, 5), value, np.uint8))


@pytest.mark.parametrize(
    ("x", "shape", "dtype"),
    [
        (torch.ones(4), (4,), np.float32),
        (torch.ones(2, 5, dtype=torch.uint8), (1, 2, 5), np.uint8),
        (torch.ones(3, 2, 5, dtype=torch.float64), (3, 2, 5), np.float32),
        (torch.ones(4, dtype=torch.bfloat16, requires_grad=True), (4,), np.float32),
        (np.ones((3, 2, 5), np.int16), (3, 2, 5), np.float32),
        (image(1), (1, 2, 5), np.uint8),
        (image(1).convert("RGBA"), (3, 2, 5), np.uint8),
    ],
)
def test_takes_tensors_arrays_and_images(x, shape, dtype):
    dataset = from_torch_dataset(Listed([(x, 0), (x, torch.tensor(1)), (x, np.int64(2))]))
    assert dataset.train_x.shape == (3, *shape)
    assert dataset.train_x.dtype == dtype
    assert (dataset.train_x == 1).all()
    np.testing.assert_array_equal(dataset.train_y, [0, 1, 2])
    assert dataset.test_x is None


def test_a_tensor_dataset_and_a_listed_one_are_read_alike():
    x, y = torch.arange(30.0).reshape(5, 2, 3), torch.tensor([0, 1, 2, 1, 0])
    fast = from_torch_dataset(TensorDataset(x, y))
    slow = from_torch_dataset(Listed(list(zip(x, y, strict=True))))
    np.testing.assert_array_equal(fast.train_x, slow.train_x)
    np.testing.assert_array_equal(fast.train_y, slow.train_y)
    assert fast.train_x.shape == (5, 1, 2, 3)


def test_a_pair_is_training_and_test_and_names_come_along():
    training, test = Listed([(torch.ones(2), 0)], classes=["low", "high"]), Listed([(torch.zeros(2), 1)])
    for dataset in (from_torch_dataset((training, test)), from_torch_dataset(training, test)):
        assert dataset.names == ("low", "high")
        np.testing.assert_array_equal(dataset.train_x, [[1, 1]])
        np.testing.assert_array_equal(dataset.test_x, [[0, 0]])
        assert from_torch_dataset(dataset) is dataset


def test_an_iterable_dataset_is_read_to_its_end():
    dataset = from_torch_dataset(Streamed())
    np.testing.assert_array_equal(dataset.train_x, [[0] * 3, [1] * 3, [2] * 3, [3] * 3])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (Listed([]), "is empty"),
        (5, "expected a torch Dataset, got int"),
        ((Listed([]),), "pair"),
        (Listed([torch.ones(3)]), "sample 0: expected a pair"),
        (Listed([(torch.ones(3), 0), (torch.ones(4), 0)]), r"sample 1 is float32 of shape \(4,\)"),
        (Listed([(torch.ones(3), 0), (torch.ones(3, dtype=torch.uint8), 0)]), "sample 1 is uint8"),
        (Listed([(torch.ones(1, 1, 1, 1), 0)]), "sample 0: x has shape"),
        (Listed([("text", 0)]), "sample 0: x must be"),
        (Listed([(torch.ones(3), "one")]), "sample 0: y must be"),
        (Listed([(torch.ones(3), torch.ones(2)), (torch.ones(3), torch.ones(3))]), "target of sample 1 has shape"),
        (Listed([(torch.ones(3), math.inf)]), "targets that are NaN or infinite"),
        (Listed([(torch.ones(3), -1)]), "label -1"),
        (TensorDataset(torch.ones(3, 2), torch.ones(3) * 1j), "whole numbers"),
        (TensorDataset(torch.ones(3, 2, 2, 2, 2), torch.ones(3, dtype=torch.int64)), "samples of shape"),
    ],
)
def test_refuses_what_is_no_classification_data_set(given, sentence):
    with pytest.raises(DataError, match=sentence):
        from_torch_dataset(given)


def test_an_error_while_reading_names_its_kind():
    class Broken(Listed):
        def __getitem__(self, index):
            raise OSError("disk gone")

    with pytest.raises(DataError, match="raised OSError: disk gone"):
        from_torch_dataset(Broken([1, 2]))


MODULE = """
import torch
from pathlib import Path
from torch.utils.data import TensorDataset

def plain():
    return TensorDataset(torch.zeros(3, 2), torch.tensor([0, 1, 2]))

def by_path(path):
    return TensorDataset(torch.full((3, 2), float(len(Path(path).read_text()))), torch.tensor([0, 1, 2]))

def both(path="", test_path=""):
    return by_path(path), by_path(test_path)

def broken():
    raise RuntimeError("no luck")

number = 5
"""


@pytest.fixture
def code(tmp_path: Path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own_peerless_data.py").write_text(MODULE)
    (tmp_path / "code" / "own_peerless_broken.py").write_text("1 / 0")
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("22")
    yield tmp_path
    sys.modules.pop("own_peerless_data", None)


def load_own(folder: Path, name: str, **values):
    return load(DataConfig(source=name, **values), base=folder, code=[Path("code")])


def test_a_callable_is_imported_from_the_users_code_and_leaves_the_path_as_it_was(code):
    before = list(sys.path)
    dataset = load_own(code, "own_peerless_data:plain")
    assert dataset.classes == 3
    assert "own_peerless_data:plain" in dataset.provenance
    assert sys.path == before


@pytest.mark.parametrize("name", ["by_path", "both"])
def test_paths_reach_the_callable(code, name):
    dataset = load_own(code, f"own_peerless_data:{name}", path="one", test_path="two")
    assert (dataset.train_x == 1).all()
    assert (dataset.test_x == 2).all()


@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        ("own_peerless_data:plain", {"path": "one"}, "no argument named path"),
        ("own_peerless_data:plain", {"test_path": "one"}, "no argument named test_path"),
        ("own_peerless_data:broken", {}, "raised RuntimeError: no luck"),
        ("own_peerless_data:by_path", {"path": "nowhere"}, "raised FileNotFoundError"),
        ("own_peerless_data:by_path", {}, "raised TypeError"),
        ("own_peerless_data:number", {}, "no callable"),
        ("own_peerless_data:missing", {}, "missing"),
        ("own_peerless_broken:x", {}, "ZeroDivisionError"),
        ("own_peerless_nowhere:x", {}, "no module own_peerless_nowhere"),
    ],
)
def test_a_users_mistake_is_one_sentence(code, name, values, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        load_own(code, name, **values)
    assert name in str(caught.value)

"""Data sets of the user's own: a torch Dataset, given directly or by the name of a callable that returns one."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

from contract.errors import DataError, PeerlessError
from peerless.data.dataset import Dataset, Targets, Values, count_classes, sample_array, target_array


def from_torch_dataset(dataset: object, test: object = None, *, provenance: str = "own data set") -> Dataset:
    """Read a torch Dataset, or a (training, test) pair of them, into memory.

    A sample is (x, y): x a tensor or array of shape (F,), (H, W) or (C, H, W), or a Pillow image; y a whole number
    (a label), a floating-point number, or an array of numbers.
    uint8 stays uint8, everything else becomes float32. A Dataset of ours is returned as it is. Raises DataError.
    """
    if isinstance(dataset, Dataset):
        return dataset
    if isinstance(dataset, tuple):
        if len(dataset) != 2 or test is not None:
            raise DataError(
                f"{provenance}: expected a torch Dataset or a pair (training, test), got {len(dataset)} items"
            )
        dataset, test = dataset
    train_x, train_y = _read(dataset, provenance)
    test_x, test_y = (None, None) if test is None else _read(test, f"{provenance}, test set")
    classes = count_classes(train_y, test_y, where=provenance)
    names = _class_names(dataset) if train_y.dtype == np.int64 else ()
    if names and len(names) >= classes:
        classes = len(names)
    else:
        names = ()
    return Dataset(
        train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y,
        classes=classes, names=names, provenance=provenance,
    )  # fmt: skip


def from_callable(source: str, *, path: str = "", test_path: str = "", code: Sequence[Path] = ()) -> Dataset:
    """Call `package.module:callable` and read what it returns.

    `path` and `test_path` are passed to the arguments of those names, where the callable has them and they are not
    empty; with only `path`, the callable is called a second time for the test set. `code` are folders to import from,
    before all others. Raises DataError, also for anything that the callable raises.
    """
    with _importable(code):
        function = _resolve(source)
        accepted = _argument_names(function, source)
        if path and "path" not in accepted:
            raise DataError(f"data.path is set, but {source} has no argument named path")
        arguments = {"path": path} if path else {}
        if not test_path:
            return from_torch_dataset(_call(function, arguments, source), provenance=source)
        if "test_path" in accepted:
            arguments["test_path"] = test_path
            return from_torch_dataset(_call(function, arguments, source), provenance=source)
        if "path" in accepted:
            training = _call(function, arguments, source)
            return from_torch_dataset(training, _call(function, {"path": test_path}, source), provenance=source)
        raise DataError(f"data.test_path is set, but {source} has no argument named test_path or path")


@contextmanager
def _importable(folders: Sequence[Path]) -> Iterator[None]:
    before = list(sys.path)
    sys.path[:0] = [str(folder) for folder in folders]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def _resolve(source: str) -> Callable[..., object]:
    module_name, _, attribute = source.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise DataError(
            f"data.source {source}: there is no module {error.name}; name its folder in code.include"
        ) from error
    except AttributeError as error:
        raise DataError(f"data.source {source}: {error}") from error
    except Exception as error:  # anything may happen in a user's module, and all of it is the user's to mend
        raise DataError(f"data.source {source} cannot be imported ({type(error).__name__}: {error})") from error
    if not callable(function):
        raise DataError(f"data.source {source} is no callable, but {type(function).__name__}")
    return function  # type: ignore[no-any-return]


def _argument_names(function: Callable[..., object], source: str) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(function).parameters)
    except (TypeError, ValueError) as error:
        raise DataError(f"data.source {source}: its arguments cannot be told ({error})") from error


def _call(function: Callable[..., object], arguments: dict[str, str], source: str) -> object:
    try:
        return function(**arguments)
    except PeerlessError:
        raise
    except Exception as error:  # as above
        raise DataError(f"data.source {source} raised {type(error).__name__}: {error}") from error


def _class_names(dataset: object) -> tuple[str, ...]:
    names = getattr(dataset, "classes", ())
    if isinstance(names, Iterable) and not isinstance(names, str):
        return tuple(str(name) for name in names)
    return ()


def _read(dataset: object, where: str) -> tuple[Values, Targets]:
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2:
        inputs, labels = (_numpy(tensor) for tensor in dataset.tensors)
        return _with_channels(sample_array(inputs, where), where), target_array(labels, where)
    # torch gives every Dataset a __getitem__, which an iterable one must not be asked for.
    by_index = hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset)
    length = len(dataset) if isinstance(dataset, Sized) and by_index else None
    if length == 0:
        raise DataError(f"{where} is empty")
    first: NDArray[Any] | None = None
    values: list[NDArray[Any]] = []
    block: NDArray[Any] | None = None
    targets: list[NDArray[Any]] = []
    for index, sample in enumerate(_samples(dataset, length, where)):
        x, target = _sample(sample, f"{where}, sample {index}")
        if first is None:
            first = x
            # One block where the length is known, because a list of arrays and their stack would need it twice.
            block = None if length is None else np.empty((length, *x.shape), x.dtype)
        if x.shape != first.shape or x.dtype != first.dtype:
            raise DataError(
                f"{where}: sample {index} is {x.dtype} of shape {x.shape}, the first is {first.dtype} of shape "
                f"{first.shape}; bring all samples to one shape"
            )
        if block is None:
            values.append(x.copy())  # an iterator may use one buffer for all samples
        else:
            block[index] = x
        if targets and target.shape != targets[0].shape:
            raise DataError(
                f"{where}: the target of sample {index} has shape {target.shape}, that of the first {targets[0].shape}"
            )
        targets.append(target)
    if first is None:
        raise DataError(f"{where} is empty")
    samples = _with_channels(np.stack(values) if block is None else block, where)
    return samples, target_array(np.stack(targets), where)


def _samples(dataset: object, length: int | None, where: str) -> Iterator[object]:
    try:
        if length is not None:
            for index in range(length):
                yield dataset[index]  # type: ignore[index]
        elif isinstance(dataset, Iterable):
            yield from dataset
        else:
            raise DataError(f"{where}: expected a torch Dataset, got {type(dataset).__name__}")
    except PeerlessError:
        raise
    except Exception as error:  # the user's own code reads the samples
        raise DataError(f"{where}: reading a sample raised {type(error).__name__}: {error}") from error


def _sample(sample: object, where: str) -> tuple[NDArray[Any], NDArray[Any]]:
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise DataError(f"{where}: expected a pair (x, y), got {type(sample).__name__}")
    x, y = sample
    if isinstance(x, Image.Image):
        x = np.asarray(x if x.mode in ("L", "RGB") else x.convert("RGB"))
        x = x.transpose(2, 0, 1) if x.ndim == 3 else x
    elif isinstance(x, torch.Tensor):
        x = _numpy(x)
    elif not isinstance(x, np.ndarray):
        raise DataError(f"{where}: x must be a tensor, an array or an image, but is {type(x).__name__}")
    if not 1 <= x.ndim <= 3:
        raise DataError(f"{where}: x has shape {x.shape}; wanted is (features,), (H, W) or (C, H, W)")
    target = np.array(_numpy(y) if isinstance(y, torch.Tensor) else y)
    if not target.size or target.dtype.kind not in "iufb":
        raise DataError(f"{where}: y must be a number or an array of numbers, but is {target.dtype} of {target.shape}")
    if target.size == 1 and target.dtype.kind in "iu":
        target = target.reshape(())
    return sample_array(x, where), target


def _numpy(tensor: torch.Tensor) -> NDArray[Any]:
    tensor = tensor.detach().cpu()
    # NumPy has no bfloat16.
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _with_channels(x: Values, where: str) -> Values:
    """(N, F) and (N, C, H, W) stay, (N, H, W) gets one channel."""
    if x.ndim == 3:
        return x[:, None]
    if x.ndim in (2, 4):
        return x
    raise DataError(f"{where} has samples of shape {x.shape[1:]}; wanted is (features,), (H, W) or (C, H, W)")

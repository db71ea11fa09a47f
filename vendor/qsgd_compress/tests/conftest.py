"""The forms that do the arithmetic: NumPy, and C for each of the processor's instruction sets. Tests pick one here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType

import pytest

import qsgd_compress.checksum
import qsgd_compress.codec
import qsgd_compress.entropy
import qsgd_compress.native_backend
import qsgd_compress.numpy_backend
import qsgd_compress.threads

try:
    from qsgd_compress import _native as built
except ImportError:  # no compiler; test_qsgd_native.py says so where there is one
    built = None

SETS: tuple[str, ...] = built.instruction_sets() if built else ()
FORMS = ("numpy", *SETS)


@contextmanager
def _arithmetic(form: str) -> Iterator[None]:
    """The public functions compute in `form`, one of FORMS, whatever QSGD_COMPRESS_BACKEND says."""
    native = None if form == "numpy" else built
    with pytest.MonkeyPatch.context() as patch:
        numpy_form = qsgd_compress.numpy_backend.NumpyBackend()
        backend = qsgd_compress.native_backend.NativeBackend(native) if native else numpy_form
        patch.setattr(qsgd_compress.codec, "_BACKEND", backend)
        patch.setattr(qsgd_compress.checksum, "NATIVE", native)
        patch.setattr(qsgd_compress.entropy, "NATIVE", native)
        if native:
            native.use(form)
        try:
            yield
        finally:
            if native:
                native.use(SETS[-1])  # what the module picks when it is imported


@pytest.fixture(scope="session")
def arithmetic() -> Callable[[str], AbstractContextManager[None]]:
    return _arithmetic


@pytest.fixture(scope="session", params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    """The name of each form in turn; `arithmetic(form)` puts it to use."""
    return str(request.param)


@pytest.fixture(scope="session", params=SETS)
def instruction_set(request: pytest.FixtureRequest) -> str:
    """The name of each form in C in turn."""
    return str(request.param)


@pytest.fixture
def in_form(form: str) -> Iterator[str]:
    """The whole test runs in each form in turn."""
    with _arithmetic(form):
        yield form


@pytest.fixture(scope="session")
def native() -> ModuleType:
    """The extension module."""
    if built is None:
        pytest.skip("the C part was not built")
    return built


@contextmanager
def _smallest_share(values: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qsgd_compress.threads, "SMALLEST_SHARE", values)
        yield


@pytest.fixture(scope="session")
def smallest_share() -> Callable[[int], AbstractContextManager[None]]:
    """Threads share work from that many values a thread on, so that small vectors are split too."""
    return _smallest_share

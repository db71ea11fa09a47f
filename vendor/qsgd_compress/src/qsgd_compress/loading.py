"""Whether the C part is in use; decided once, when the package is imported."""

from __future__ import annotations

import os
import warnings
from types import ModuleType

CHOICE = "QSGD_COMPRESS_BACKEND"
#: The functions that _native has and what they take and give; counted up with them, here and in native/module.c.
INTERFACE = 3


def _load() -> ModuleType | None:
    choice = os.environ.get(CHOICE, "")
    if choice not in ("", "native", "numpy"):
        raise ImportError(f"{CHOICE} is {choice!r}; it can be native or numpy")
    if choice == "numpy":
        return None
    try:
        import qsgd_compress._native as built

        module: ModuleType = built
        found = getattr(module, "INTERFACE", 0)
        if found != INTERFACE:
            raise ImportError(f"{module.__file__} was built from other sources (interface {found}, not {INTERFACE})")
    except ImportError as error:
        if choice == "native":
            raise ImportError(f"{CHOICE} asks for the C part of qsgd_compress, which is missing: {error}") from error
        if not isinstance(error, ModuleNotFoundError):
            warnings.warn(
                "qsgd_compress runs on NumPy, ten to twenty times slower, because its C part cannot be used;"
                f" install it again: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
        return None
    return module


#: The extension module, or None where it was not built or is not wanted.
NATIVE = _load()

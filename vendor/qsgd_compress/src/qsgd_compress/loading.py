"""Whether the C part is in use; decided once, when the package is imported."""

from __future__ import annotations

import os
from types import ModuleType

CHOICE = "QSGD_COMPRESS_BACKEND"


def _load() -> ModuleType | None:
    choice = os.environ.get(CHOICE, "")
    if choice not in ("", "native", "numpy"):
        raise ImportError(f"{CHOICE} is {choice!r}; it can be native or numpy")
    if choice == "numpy":
        return None
    try:
        from . import _native
    except ImportError as error:
        if choice == "native":
            raise ImportError(f"{CHOICE} asks for the C part of qsgd_compress, which is not there: {error}") from error
        return None
    module: ModuleType = _native
    return module


#: The extension module, or None where it was not built or is not wanted.
NATIVE = _load()

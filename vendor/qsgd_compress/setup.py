"""Builds the C part; where there is no compiler, the package installs without it and runs on NumPy."""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("src/qsgd_compress/native")
FLAGS = [
    "-std=gnu11",
    "-O2",
    "-ffp-contract=off",  # a fused multiply-add would round once where the format says twice
    "-fno-tree-vectorize",  # see native/kernels.inc
    "-fno-tree-slp-vectorize",
    "-fvisibility=hidden",
    "-Wno-psabi",
]

extension = Extension(
    "qsgd_compress._native",
    sources=sorted(str(path) for path in NATIVE.glob("*.c")),
    depends=sorted(str(path) for pattern in ("*.h", "*.inc") for path in NATIVE.glob(pattern)),
    define_macros=[("Py_LIMITED_API", "0x030B0000")],
    extra_compile_args=FLAGS,
    py_limited_api=True,
    optional=True,
)
setup(
    ext_modules=[extension] if sys.implementation.name == "cpython" and sys.platform != "win32" else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)

"""Builds the C part; where it cannot be built, the package installs without it and runs on NumPy."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

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


class BuildExtension(build_ext):
    """What could not be built does not count as an extension, nor does what an earlier build left of it."""

    def run(self) -> None:
        built = [Path(self.build_lib, self.get_ext_filename(ext.name)) for ext in self.extensions]
        for path in built:
            path.unlink(missing_ok=True)
        super().run()
        failed = [ext for ext, path in zip(self.extensions, built, strict=True) if not path.exists()]
        self.distribution.ext_modules = [ext for ext in self.extensions if ext not in failed]
        if self.inplace:
            for ext in failed:
                Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)


class BuildWheel(bdist_wheel):
    """Without the extension the wheel is one for every platform, and its name says so."""

    def run_command(self, command: str) -> None:
        super().run_command(command)
        if command == "build":
            self.root_is_pure = not self.distribution.has_ext_modules()


extension = Extension(
    "qsgd_compress._native",
    sources=sorted(str(path) for path in NATIVE.glob("*.c")),
    depends=sorted(str(path) for pattern in ("*.h", "*.inc") for path in NATIVE.glob(pattern)),
    define_macros=[("Py_LIMITED_API", "0x030B0000")],
    libraries=["m"],
    extra_compile_args=FLAGS,
    py_limited_api=True,
    optional=True,
)
# Microsoft's compiler has no vector types, and Pythons without a GIL have no limited API before 3.15.
possible = (
    sys.implementation.name == "cpython" and sys.platform != "win32" and not sysconfig.get_config_var("Py_GIL_DISABLED")
)
setup(
    ext_modules=[extension] if possible else [],
    cmdclass={"build_ext": BuildExtension, "bdist_wheel": BuildWheel},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if possible else {},
)

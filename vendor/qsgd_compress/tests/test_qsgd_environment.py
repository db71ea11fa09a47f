"""What is picked and loaded when the package is imported: each case in an interpreter of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import qsgd_compress as q

WORKS = """
import hashlib, sys, numpy as np, qsgd_compress as q
x = (np.arange(3_000) % 37 - 18).astype(np.float32)
frame = q.encode(x, bits=8, seed=5)
acc = np.ones(3_000, np.float32)
q.accumulate(frame, acc, 0.5)
print(q.backend(), hashlib.sha256(frame + q.decode(frame, 3_000).tobytes() + acc.tobytes()).hexdigest())
"""
BLOCKED = "import sys; sys.modules['qsgd_compress._native'] = None\n"


def run(code: str, choice: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "QSGD_COMPRESS_BACKEND"}
    if choice is not None:
        environment["QSGD_COMPRESS_BACKEND"] = choice
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def works(code: str, choice: str | None = None) -> tuple[str, str]:
    """The name of the backend, and a digest of what it computes."""
    done = run(code, choice)
    assert done.returncode == 0, done.stderr
    name, digest = done.stdout.split()
    return name, digest


class TestChoice:
    def test_numpy_and_native_compute_the_same(self, native):
        name, digest = works(WORKS, "numpy")
        assert name == "numpy"
        assert works(WORKS, "native") == ("native", digest)
        assert works(WORKS, "") == works(WORKS) == ("native", digest)

    def test_without_the_c_part_it_works_on_numpy(self):
        assert works(BLOCKED + WORKS)[0] == "numpy"
        assert works(BLOCKED + WORKS)[1] == works(WORKS)[1]
        assert works(BLOCKED + WORKS, "numpy")[0] == "numpy"

    def test_without_the_c_part_who_asks_for_it_is_told(self):
        done = run(BLOCKED + WORKS, "native")
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith("ImportError: QSGD_COMPRESS_BACKEND asks for the C part of qsgd_compress")

    @pytest.mark.parametrize("choice", ["nonsense", "Native", "c", "1", " "])
    def test_an_unknown_choice_is_an_import_error_with_the_known_ones(self, choice):
        done = run(WORKS, choice)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == (
            f"ImportError: QSGD_COMPRESS_BACKEND is {choice!r}; it can be native or numpy"
        )


class TestImports:
    LOADED = """
import sys, numpy as np
before = set(sys.modules)
import qsgd_compress as q
x = np.ones(100, np.float32)
{use}
print(*sorted(name for name in set(sys.modules) - before if not name.startswith("qsgd_compress")))
print(*sorted(name.partition(".")[2] for name in set(sys.modules) - before if name.startswith("qsgd_compress.")))
"""

    @pytest.mark.parametrize("use", ["", "q.accumulate(q.encode(x), q.decode(q.encode(x), 100))"])
    def test_with_the_c_part_nothing_else_is_loaded(self, native, use):
        """Each of google_crc32c, dataclasses, concurrent.futures and zstandard would cost milliseconds."""
        others, own = run(self.LOADED.format(use=use), "native").stdout.split("\n")[:2]
        assert others == ""
        assert "native_backend" in own.split()
        assert not {"numpy_backend", "rounding", "info"} & set(own.split())

    def test_on_numpy_the_checksum_waits_until_it_is_needed(self):
        others, own = run(self.LOADED.format(use=""), "numpy").stdout.split("\n")[:2]
        assert not {"google_crc32c", "dataclasses", "concurrent.futures", "zstandard"} & set(others.split())
        assert not {"_native", "native_backend"} & set(own.split())

    def test_the_header_s_dataclass_is_there_for_who_asks(self):
        assert isinstance(q.inspect(q.encode(np.zeros(3, np.float32))), q.FrameInfo)
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            q.nothing  # noqa: B018

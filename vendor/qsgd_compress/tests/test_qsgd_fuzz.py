"""A short run of the fuzzer, which finds nothing, and runs over C with flaws put into it, which find them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent
RUN = PACKAGE / "fuzz" / "run.py"
IMPOSSIBLE = 77


def fuzz(*arguments: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(RUN), *map(str, arguments)], capture_output=True, text=True, timeout=110, check=False
    )
    if done.returncode == IMPOSSIBLE:
        pytest.skip(done.stderr.strip())
    return done


def test_it_finds_nothing():
    done = fuzz("--runs", 150, "--seed", 20_261_121)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("150 cases of seed 20261121 on baseline")


@pytest.mark.parametrize(
    ("file", "right", "wrong", "report"),
    [
        pytest.param(
            "module.c",
            "if (buffer->len == bytes) return 1;",
            "if (bytes >= 0) return 1;",
            "ERROR: AddressSanitizer",
            id="a length that is not checked",
        ),
        pytest.param(
            "kernels.inc",
            "uint32_t u;\n    memcpy(&u, at, 4);\n    return u;",
            "return *(const uint32_t *)at;",
            "runtime error: load of misaligned address",
            id="a misaligned load",
        ),
        pytest.param("kernels.inc", "0x846CA68B", "0x846CA68D", "another frame than NumPy's", id="another constant"),
    ],
)
def test_it_finds_a_flaw_and_keeps_the_case(tmp_path, file, right, wrong, report):
    native, found = tmp_path / "native", tmp_path / "found.json"
    shutil.copytree(PACKAGE / "src" / "qsgd_compress" / "native", native)
    source = (native / file).read_text()
    assert right in source
    (native / file).write_text(source.replace(right, wrong))
    flawed = ("--native", native, "--flag=-O0")
    done = fuzz("--runs", 5_000, "--seed", 4, "--found", found, *flawed)
    assert done.returncode == 1
    assert report in done.stderr
    assert done.stderr.splitlines()[-1].endswith(f"the case is in {found}.")
    assert json.loads(found.read_text())["kind"] in ("read", "encode", "call")
    if file == "kernels.inc":
        again = fuzz("--reproduce", found, *flawed)
        assert again.returncode == 1
        assert report in again.stderr


@pytest.mark.parametrize("gcc", [None, "#!/bin/sh\nfor name; do :; done\necho ${name#*=}\n"], ids=["none", "bare"])
def test_one_sentence_says_what_the_machine_lacks(tmp_path, gcc):
    if gcc is not None:  # as gcc answers where the library is not installed
        (tmp_path / "gcc").write_text(gcc)
        (tmp_path / "gcc").chmod(0o755)
    bare = os.environ | {"PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, str(RUN)], env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == IMPOSSIBLE
    assert done.stderr.count("\n") == 1
    if sys.platform == "linux":
        assert ("needs gcc" if gcc is None else "without its libasan.so") in done.stderr

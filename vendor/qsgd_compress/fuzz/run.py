"""Fuzzes the codec under AddressSanitizer and UndefinedBehaviorSanitizer.

    python fuzz/run.py [--seconds N | --runs N] [--seed S]
    python fuzz/run.py --reproduce FILE

Builds the C sources with both sanitizers into a temporary folder, and runs the package on them in a child process that
has the sanitizers' runtime preloaded and every buffer of its own in a block of malloc, so that one byte past its end is
noticed. Cases are made from the seed and their number alone (cases.py) and tried one after the other (target.py), each
on one of the processor's instruction sets:

  read    frames of all forms, damaged in up to four ways - flipped bits, foreign bytes, cuts, tails, splices of two
          frames, other header fields, other geometries, forged scales, codes, padding and zstd payloads - most of them
          with lengths and both checksums made right again. inspect, check, decode, accumulate and accumulate_many must
          refuse with QsgdError and leave the caller's arrays alone, or agree with NumPy and give finite values.
  encode  vectors of any bit patterns at any address. NonFiniteGradient must name the first value that is not finite, or
          the frame must be NumPy's, byte for byte, and decode to within one step of each value.
  pack    codes of all distributions into zstd frames, which must be huffman.py's, byte for byte, and give them back.
  call    functions of the extension module with random lengths, ranges and types. They may compute or raise, and must
          not leave their buffers.

It ends by itself. The exit status is 0 where nothing was found; 1 where something was, with the case in a file that
--reproduce reads; and 77 where this machine cannot run it: it takes Linux, gcc and gcc's sanitizers.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "src" / "qsgd_compress"
FOUND, IMPOSSIBLE = 1, 77
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g"]
ASAN = "detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=64:max_malloc_fill_size=1073741824"


class Impossible(Exception):
    """This machine lacks something; the text says what."""


def main() -> int:
    options = arguments()
    try:
        runtime = sanitizer_runtime()
        with tempfile.TemporaryDirectory(prefix="qsgd-fuzz-") as folder:
            build(options.native, options.flag, Path(folder))
            return run(options, runtime, Path(folder))
    except Impossible as why:
        print(why, file=sys.stderr)
        return IMPOSSIBLE


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fuzzes qsgd_compress under sanitizers; its docstring says more.")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, help="try cases for so long (60 without --runs)")
    length.add_argument("--runs", type=int, help="try so many cases")
    length.add_argument("--reproduce", type=Path, metavar="FILE", help="try the one case of this file")
    parser.add_argument("--seed", type=int, default=0, help="which cases (0)")
    parser.add_argument(
        "--found",
        type=Path,
        default=Path("qsgd-fuzz-found.json"),
        metavar="FILE",
        help="where a case that shows something is written (%(default)s)",
    )
    parser.add_argument(
        "--native", type=Path, default=PACKAGE / "native", metavar="FOLDER", help="the C sources (the package's)"
    )
    parser.add_argument("--flag", action="append", default=[], help="one more for the compiler, as --flag=-O0")
    return parser.parse_args()


def sanitizer_runtime() -> str:
    """What LD_PRELOAD names; gcc answers with the bare name of a library that it does not have."""
    if not sys.platform.startswith("linux"):
        raise Impossible("The fuzzer preloads the sanitizers' runtime, which works on Linux only.")
    if shutil.which("gcc") is None:
        raise Impossible("The fuzzer needs gcc, which is not on the PATH (Debian, Ubuntu: apt-get install gcc).")
    libraries = []
    for name in ("libasan.so", "libubsan.so"):
        found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)  # noqa: S607
        if not os.path.isabs(found.stdout.strip()):
            package = name.removesuffix(".so")
            raise Impossible(f"gcc is here without its {name} (Fedora: dnf install {package}); the fuzzer needs it.")
        libraries.append(found.stdout.strip())
    return " ".join(libraries)


def build(native: Path, more_flags: list[str], folder: Path) -> None:
    """The package in `folder`, with its C part under sanitizers. Raises SystemExit where it does not compile."""
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        raise Impossible(f"The fuzzer needs Python's headers, which are not in {include}.")
    package = folder / "qsgd_compress"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("*.so", "native", "__pycache__"))
    flags = [*package_flags(), *more_flags, *SANITIZERS, "-fPIC", "-DPy_LIMITED_API=0x030B0000", f"-I{include}"]
    objects = [folder / f"{source.stem}.o" for source in sorted(native.glob("*.c"))]
    compilers = [
        subprocess.Popen(["gcc", *flags, "-w", "-c", native / f"{path.stem}.c", "-o", path])  # noqa: S607
        for path in objects
    ]
    failed = [compiler.wait() for compiler in compilers]
    if any(failed):
        raise SystemExit(FOUND)
    library = package / "_native.abi3.so"
    subprocess.run(["gcc", *SANITIZERS, "-shared", *objects, "-lm", "-o", library], check=True)  # noqa: S607


def package_flags() -> list[str]:
    """FLAGS of setup.py: what is fuzzed is compiled as what is installed."""
    for statement in ast.parse((HERE.parent / "setup.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "FLAGS":
            return list(ast.literal_eval(statement.value))
    raise SystemExit("setup.py has no FLAGS.")


def run(options: argparse.Namespace, runtime: str, folder: Path) -> int:
    case = folder / "case.json"
    command = [sys.executable, str(HERE / "target.py"), str(case)]
    if options.reproduce is not None:
        shutil.copyfile(options.reproduce, case)
        command.append("--reproduce")
    else:
        command.append(f"--seed={options.seed}")
        command.append(f"--runs={options.runs}" if options.runs is not None else f"--seconds={options.seconds or 60}")
    environment = os.environ | {
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": ASAN,
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "QSGD_COMPRESS_BACKEND": "native",
    }
    status = subprocess.run(command, env=environment, check=False).returncode
    if status == 0:
        return 0
    if not case.exists():
        print(f"The child ended with status {status} before its first case.", file=sys.stderr)
    elif options.reproduce is not None:
        print(f"The case of {options.reproduce} still ends with status {status}.", file=sys.stderr)
    else:
        shutil.copyfile(case, options.found)
        print(f"The child ended with status {status}; the case is in {options.found.resolve()}.", file=sys.stderr)
    return FOUND


if __name__ == "__main__":
    sys.exit(main())

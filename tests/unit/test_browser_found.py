"""Which browser the tests of the report use (infra/browser.py)."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from contract.errors import DeployFailed
from infra import browser


def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Linux without any browser."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv(browser.VARIABLE, raising=False)
    monkeypatch.setattr(browser, "folder", lambda: tmp_path / "own")
    monkeypatch.setattr(browser.platform, "system", lambda: "Linux")
    monkeypatch.setattr(browser.platform, "machine", lambda: "x86_64")


def test_the_named_one_comes_first_and_must_be_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin/chromium")
    named = program(tmp_path / "mine")
    monkeypatch.setenv(browser.VARIABLE, str(named))
    assert browser.find().path == named
    monkeypatch.setenv(browser.VARIABLE, str(tmp_path / "absent"))
    for ask in (browser.find, browser.install):
        with pytest.raises(browser.BrowserMissing, match=r"absent is no program"):
            ask()


def test_one_on_the_path_is_used_unless_it_is_a_snap(tmp_path: Path) -> None:
    program(tmp_path / "bin/chromium-browser", "#!/bin/sh\nexec /snap/bin/chromium\n")
    with pytest.raises(browser.BrowserMissing, match=r"python -m infra\.browser"):
        browser.find()
    program(tmp_path / "snap/bin/google-chrome")
    (tmp_path / "bin/google-chrome").symlink_to(tmp_path / "snap/bin/google-chrome")
    with pytest.raises(browser.BrowserMissing):
        browser.find()
    usable = program(tmp_path / "bin/google-chrome-stable")
    assert browser.find().path == usable


def test_the_installed_one_brings_its_libraries_and_its_font(tmp_path: Path) -> None:
    program(tmp_path / "own/chromium")
    found = browser.install(lambda text: pytest.fail(text))
    assert found.path == tmp_path / "own/chromium"
    assert found.environ["LD_LIBRARY_PATH"] == str(tmp_path / "own/lib")


def test_where_none_can_be_installed_a_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise DeployFailed("npm could not install it: no network")

    monkeypatch.setattr(browser.toolkit, "npm_install", refuse)
    with pytest.raises(browser.BrowserMissing, match=r"no network; install Chromium, or name its program in PEERLESS"):
        browser.install()
    monkeypatch.setattr(browser.platform, "machine", lambda: "aarch64")
    with pytest.raises(browser.BrowserMissing, match="apt-get install chromium"):
        browser.install()

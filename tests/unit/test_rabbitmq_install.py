"""Which packages are unpacked, what is kept of them, and when a cached server is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.local import rabbitmq_install as install

EMPTY_MACHINE = """\
Reading package lists...
Inst libc6 (2.36-9 Debian:12.15/oldstable [amd64])
Inst libtinfo6 (6.4-4 Debian:12.15/oldstable [amd64])
Inst socat (1.7.4.4-2 Debian:12.15/oldstable [amd64])
Inst erlang-base (1:25.2.3+dfsg-1 Debian:12.15/oldstable [amd64]) []
Inst erlang-mnesia (1:25.2.3+dfsg-1 Debian:12.15/oldstable [amd64])
Inst rabbitmq-server (3.10.8-1.1 Debian:12.15/oldstable [all])
Conf rabbitmq-server (3.10.8-1.1 Debian:12.15/oldstable [all])
"""
THIS_MACHINE = """\
Inst libtinfo6 [6.3-1] (6.4-4 Debian:12.15/oldstable [amd64])
Inst libwrap0 (7.6.q-32 Debian:12.15/oldstable [amd64])
Inst erlang-mnesia (1:25.2.3+dfsg-1 Debian:12.15/oldstable [amd64])
Inst rabbitmq-server (3.10.8-1.1 Debian:12.15/oldstable [all])
"""


def test_server_and_erlang_come_whole_and_only_missing_libraries_with_them() -> None:
    assert install.packages_of(EMPTY_MACHINE, THIS_MACHINE) == [
        "erlang-base=1:25.2.3+dfsg-1",
        "erlang-mnesia=1:25.2.3+dfsg-1",
        "rabbitmq-server=3.10.8-1.1",
        "libtinfo6=6.4-4",
    ]


def test_a_broken_package_state_of_this_machine_does_not_matter() -> None:
    assert "rabbitmq-server=3.10.8-1.1" in install.packages_of(EMPTY_MACHINE, "E: Unmet dependencies.")


def test_nothing_is_fetched_where_apt_knows_no_server() -> None:
    assert install.packages_of("E: Unable to locate package rabbitmq-server", "") == []


def write_application(plugins: Path, name: str, uses: str) -> None:
    folder = plugins / f"{name}-1.0" / "ebin"
    folder.mkdir(parents=True)
    (folder / f"{name}.app").write_text(
        f"{{application, {name}, [\n {{modules, []}},\n {{applications, [{uses}]}}]}}.\n"
    )


def test_plugins_that_the_server_does_not_use_go_and_what_those_it_uses_need_stays(tmp_path: Path) -> None:
    """What the management API needs besides stands apart, for a node that has it."""
    plugins = tmp_path / "plugins"
    write_application(plugins, "rabbit", "kernel,stdlib,\n   ra, rabbit_common")
    write_application(plugins, "ra", "kernel, aten")
    write_application(plugins, "aten", "")
    write_application(plugins, "rabbit_common", "kernel")
    write_application(plugins, "rabbitmq_management", "rabbit, cowboy")
    write_application(plugins, "cowboy", "kernel")
    write_application(plugins, "rabbitmq_mqtt", "rabbit")
    install.trim_plugins(plugins)
    assert {path.name for path in plugins.iterdir()} == {"rabbit-1.0", "ra-1.0", "aten-1.0", "rabbit_common-1.0"}
    beside = tmp_path / "plugins-management"
    assert {path.name for path in beside.iterdir()} == {"rabbitmq_management-1.0", "cowboy-1.0"}


def test_a_layout_that_is_not_understood_is_left_alone(tmp_path: Path) -> None:
    write_application(tmp_path, "cowboy", "kernel")
    install.trim_plugins(tmp_path)
    assert (tmp_path / "cowboy-1.0").exists()


def unpacked_tree(root: Path) -> Path:
    write_application(root / "usr/lib/rabbitmq/lib/rabbitmq_server-9.8.7/plugins", "rabbit", "kernel")
    for name in (
        "usr/lib/rabbitmq/lib/rabbitmq_server-9.8.7/sbin/rabbitmq-server",
        "usr/lib/erlang/erts-1.2/bin/erlexec",
    ):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("#!/bin/sh\n")
    return root


def test_a_finished_tree_tells_its_version_and_is_complete(tmp_path: Path) -> None:
    root = unpacked_tree(tmp_path / "root")
    assert install.finish(root) == "9.8.7"
    assert install.is_complete(root)
    assert "erts-1.2" in (root / "bin/erl").read_text()


def test_a_tree_without_server_or_runtime_is_unusable(tmp_path: Path) -> None:
    assert install.finish(tmp_path) is None


@pytest.mark.parametrize("damage", ["missing file", "shorter file", "missing list", "broken list", "other machine"])
def test_a_damaged_or_foreign_tree_is_not_complete(tmp_path: Path, damage: str) -> None:
    root = unpacked_tree(tmp_path / "root")
    install.finish(root)
    runtime, manifest = root / "usr/lib/erlang/erts-1.2/bin/erlexec", root / "peerless.json"
    match damage:
        case "missing file":
            runtime.unlink()
        case "shorter file":
            runtime.write_text("#!")
        case "missing list":
            manifest.unlink()
        case "broken list":
            manifest.write_text("[]")
        case "other machine":
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"machine": "riscv64 plan9 4"}))
    assert not install.is_complete(root)


def program(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_an_installed_server_needs_an_erlang(tmp_path: Path) -> None:
    program(tmp_path / "sbin", "rabbitmq-server")
    assert install.installed_server({"PATH": str(tmp_path / "sbin")}, (), ()) is None


def test_the_real_script_is_preferred_to_a_wrapper_on_the_path(tmp_path: Path) -> None:
    program(tmp_path / "bin", "rabbitmq-server")
    erl = program(tmp_path / "bin", "erl")
    script = program(tmp_path / "real", "rabbitmq-server")
    found = install.installed_server({"PATH": str(tmp_path / "bin")}, (str(tmp_path / "real"),), ())
    assert found is not None
    assert (found.script, found.path) == (script, (str(erl.parent),))


def test_the_cache_follows_xdg_and_avoids_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert install.cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "peerless"
    assert install.cache_folder({"HOME": "/somewhere", "XDG_CACHE_HOME": "relative"}).name == "peerless"
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    spaced = install.cache_folder({"XDG_CACHE_HOME": str(tmp_path / "my cache")})
    assert " " not in str(spaced)
    assert spaced.stat().st_mode & 0o077 == 0

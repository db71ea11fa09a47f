"""The digest of the user's own code."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.code import code_digest
from contract.errors import CodeError


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def test_no_code_has_no_digest(tmp_path: Path) -> None:
    assert code_digest(None) == code_digest(tmp_path) == code_digest(tmp_path / "missing") == ""


def test_the_same_files_have_the_same_digest_wherever_they_lie(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {"m.py": "x = 1", "p/__init__.py": ""})
    b = write(tmp_path / "b", {"p/__init__.py": "", "m.py": "x = 1"})
    assert code_digest(a) == code_digest(b)
    assert len(code_digest(a)) == 64


@pytest.mark.parametrize(
    "files",
    [
        {"m.py": "x = 2", "n.py": "y"},
        {"m.py": "x = 1", "o.py": "y"},
        {"m.py": "x = 1"},
        {"m.py": "x = 1", "n.py": "y", "z.txt": ""},
        {"p/m.py": "x = 1", "n.py": "y"},
        {"m.py": "x = 1n.py", "n.py": "y"},
    ],
)
def test_any_difference_shows(tmp_path: Path, files: dict[str, str]) -> None:
    reference = write(tmp_path / "a", {"m.py": "x = 1", "n.py": "y"})
    assert code_digest(write(tmp_path / "b", files)) != code_digest(reference)


def test_importing_the_code_does_not_change_its_digest(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"m.py": "x = 1"})
    before = code_digest(folder)
    write(folder, {"__pycache__/m.cpython-311.pyc": "compiled", "p/__pycache__/x": "", "stray.pyc": ""})
    assert code_digest(folder) == before


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "a", {"m.py": "x = 1"})

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(CodeError, match=r"m\.py: .* \(Permission denied\)"):
        code_digest(folder)

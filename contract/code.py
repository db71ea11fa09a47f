"""The digest of the user's own code, by which a run refuses a peer or worker with other code."""

from __future__ import annotations

import hashlib
from pathlib import Path

from contract.errors import CodeError


def code_digest(folder: Path | None) -> str:
    """SHA-256 (hex) over the sorted relative paths and contents of all files in `folder`; "" where there is no code.

    Python's own caches do not count, because importing the code makes them. Raises CodeError for an unreadable file.
    """
    if folder is None or not folder.is_dir():
        return ""
    named = [(path.relative_to(folder), path) for path in folder.rglob("*")]
    files = sorted(
        (relative.as_posix(), path)
        for relative, path in named
        if "__pycache__" not in relative.parts and path.suffix != ".pyc" and path.is_file()
    )
    if not files:
        return ""
    digest = hashlib.sha256(b"peerless code 1")
    for name, path in files:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CodeError(f"{path}: a file of the run's own code cannot be read ({error.strerror})") from error
        for part in (name.encode("utf-8", "surrogateescape"), content):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()

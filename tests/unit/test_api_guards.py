"""`peerless.train` inside of itself: a script that ships its own file without a guard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import peerless
from contract.errors import CodeError, ModelError

SCRIPT = """
import peerless, torch
class Net(torch.nn.Linear): ...
peerless.train({"model": "unguarded_script:Net"})
"""


def configuration(folder: Path) -> dict[str, object]:
    np.savez(folder / "data.npz", x=np.zeros((30, 2), np.float32), y=np.arange(30) % 2)
    return {
        "peers": 1,
        "model": "unguarded_script:Net",
        "data": {"source": "npz", "path": str(folder / "data.npz"), "validation_samples": 5},
        "code": {"include": [str(folder / "unguarded_script.py")]},
    }


def test_a_script_that_trains_when_it_is_imported_is_told_to_guard(tmp_path: Path) -> None:
    (tmp_path / "unguarded_script.py").write_text(SCRIPT)
    for _ in range(2):  # the first failure leaves nothing behind
        with pytest.raises(ModelError, match="while another one imported your code; guard it with if __name__"):
            peerless.train(configuration(tmp_path), runs_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_peer_that_imports_such_a_script_refuses_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERLESS_CODE_DIR", str(tmp_path))
    with pytest.raises(CodeError, match="a script must guard"):
        peerless.train(configuration(tmp_path), runs_dir=tmp_path / "runs")

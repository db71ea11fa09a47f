"""The images' builds, as far as they go without a container engine: see infra/images/trial.py.

Needs package indexes; TORCH_INDEX as for `make setup`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import images
from contract.code import code_digest
from infra.images import trial
from infra.images.staging import PEER
from infra.settings import Settings

MODEL = """
import einops
from torch import nn


class Flatten(nn.Module):
    def forward(self, x):
        return einops.rearrange(x, "n c h w -> n (c h w)")


def build(classes, channels, image_size):
    return nn.Sequential(Flatten(), nn.Linear(channels * image_size**2, classes))
"""

LOOK = """
import os, sys
from contract.code import code_digest
from contract.env import AgentEnv
from contract.models import build
from contract.modelspec import ModelSpec

folder = AgentEnv.read(os.environ).code_dir
sys.path.insert(0, str(folder))
spec = ModelSpec(name="own_model:build", classes=10, channels=1, image_size=8)
print(code_digest(folder), sum(p.numel() for p in build(spec).parameters()))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_both_images_install_import_and_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's own figures: seconds and memory vary, what was computed does not."""
    monkeypatch.setattr(trial, "IMPORTS", 1)
    figures = {figure.name: figure.value for figure in images.run()}
    assert figures["worker_gradient_equal"] == 1.0
    assert figures["worker_resident_beside_torch"] < 100
    assert figures["peer_resident_beside_torch"] < 100
    assert figures["worker_files"] < 1_500
    assert figures["worker_peak"] < 1_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_own_code_and_what_it_asks_for_are_in_the_image(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "own_model.py").write_text(MODEL)
    settings = Settings(code_dir=str(code), code_requirements=("einops==0.8.1",), code_digest=code_digest(code))
    work = tmp_path / "peer"
    work.mkdir()
    installed = trial.install(PEER, work, settings, os.environ.get("TORCH_INDEX", ""))
    told = installed.run("-c", LOOK, AWS_REGION="us-east-1")
    assert told.stdout.split() == [settings.code_digest, "650"], told.stderr
    helped = installed.run("-m", "peer_agent", "--help")
    assert helped.stdout.startswith("usage:"), helped.stderr
    # Without its environment an instance says which variable is missing; it got that far.
    started = installed.run(*installed.command[1:])
    assert "PEERLESS_" in started.stdout, started.stderr

"""`peerless export`: the very weights of the run, loadable without its code, and a card that gives nothing away."""

from __future__ import annotations

import hashlib
import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_model

from contract.errors import ConfigError, CorruptObject, PeerlessError, UserError
from contract.tensors import flatten
from contract.weights_file import from_safetensors, read_saved
from peerless.cli import main
from peerless.launch import parts
from peerless.launch.export import export
from tests.fakes.mixed_model import mixed, values
from tests.fakes.run_folders import RUN, begun, ended, event


def same(model: torch.nn.Module) -> bool:
    """Whether a model has the weights and buffers of the one that the run saved."""
    ours, theirs = mixed().state_dict(), model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_safetensors_are_the_runs_own_file(tmp_path: Path) -> None:
    folder = ended(tmp_path / "first")
    made = export(str(folder.path), "safetensors", tmp_path / "out.safetensors")
    assert made.model.read_bytes() == folder.model.read_bytes()
    assert made.checked
    assert made.file_sha256 == hashlib.sha256(folder.model.read_bytes()).hexdigest()
    assert made.model_sha256 == json.loads(folder.summary.read_text())["model_sha256"]
    model = mixed(9)
    load_model(model, made.model)
    assert same(model)


def test_a_state_dict_loads_with_weights_only_and_fits_strictly(tmp_path: Path) -> None:
    made = export(str(ended(tmp_path / "first").path), "state_dict", tmp_path)
    assert made.model == tmp_path / "first.pt"
    state = torch.load(made.model, weights_only=True)
    assert all(type(tensor) is torch.Tensor for tensor in state.values())
    assert state["decoder.weight"].data_ptr() == state["embedding.weight"].data_ptr(), "tied, so stored once"
    model = mixed(9)
    model.load_state_dict(state)
    assert same(model)


def test_the_card_tells_figures_hashes_and_settings(tmp_path: Path) -> None:
    cost = {"total": 0.5, "parts": {"gradient workers": 0.375, "storage": 0.125}, "as_if_on_aws": True}
    made = export(str(ended(tmp_path / "first", changes={"cost": cost}).path), "state_dict", tmp_path)
    card = made.card.read_text()
    for told in (RUN, "93.75%", "after 12 rounds", "| gradient workers | 0.375000 |", "would have cost 0.500000 USD"):
        assert told in card
    assert made.model_sha256 in card
    assert made.file_sha256 in card
    assert "package.of.mine:Net" in card
    assert 'torch.load("first.pt", weights_only=True)' in card
    settings = tomllib.loads(card.split("```toml\n")[1].split("```")[0])
    assert settings["exchange"]["codec"] == "qsgd4"


def test_the_card_holds_nothing_that_is_the_trainers_own(tmp_path: Path) -> None:
    own = {
        "data": {"source": "npz", "path": "/secret/data.npz", "test_path": "/secret/test.npz"},
        "init_from": "/secret/weights.safetensors",
        "code": {"include": ["/secret/net.py"], "requirements": ["secret-package"]},
        "aws": {"name": "secret", "alarm_email": "secret@example.org"},
    }
    error = {"error": "peer 1: /secret/data.npz is gone"}
    folder = ended(tmp_path / "first", changes=error, **own)
    folder.code.mkdir()
    (folder.code / "net.py").write_text("# secret")
    card = export(str(folder.path), "safetensors", tmp_path / "model.safetensors").card.read_text()
    assert "secret" not in card
    assert str(tmp_path) not in card
    assert "own code of the run" in card


def test_weights_that_the_summary_does_not_name_are_not_exported(tmp_path: Path) -> None:
    folder = ended(tmp_path / "first")
    blob = bytearray(folder.model.read_bytes())
    blob[-1] ^= 1
    folder.model.write_bytes(blob)
    with pytest.raises(CorruptObject, match="the file was changed after the run"):
        export(str(folder.path), "safetensors", tmp_path / "out.safetensors")
    folder.model.write_bytes(blob[:200])
    with pytest.raises(CorruptObject, match="it was damaged after the run"):
        export(str(folder.path), "safetensors", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_model_of_an_older_version_is_exported_and_not_called_checked(tmp_path: Path) -> None:
    folder = ended(tmp_path / "first")
    tensors = safetensors.torch.load(folder.model.read_bytes())
    folder.model.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    made = export(str(folder.path), "state_dict", tmp_path)
    assert not made.checked
    assert "not compared: the run is of an older version" in made.card.read_text()


def test_what_a_saved_file_carries_beside_its_tensors_does_not_hinder_reading(tmp_path: Path) -> None:
    blob = ended(tmp_path / "first").model.read_bytes()
    layout, flat, _ = values(mixed())
    assert np.array_equal(from_safetensors(layout, blob)[0], flat)
    saved = read_saved(blob)
    assert saved.parameters == layout.elements == flatten(mixed(), layout).size
    assert saved.tensors.keys() == mixed().state_dict().keys()


@pytest.mark.parametrize(
    ("form", "out", "error", "told"),
    [
        ("onnx", "out", ConfigError, "--format onnx: there are safetensors and state_dict"),
        ("safetensors", "nowhere/out", ConfigError, "there is no folder"),
        ("safetensors", "taken", UserError, "taken exists"),
        ("safetensors", "free", UserError, "free.md exists"),
        ("safetensors", "out.md", ConfigError, "gets the ending .md"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, form: str, out: str, error: type[PeerlessError], told: str) -> None:
    folder = ended(tmp_path / "first")
    (tmp_path / "taken").touch()
    (tmp_path / "free.md").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=told):
        export(str(folder.path), form, tmp_path / out)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_has_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ended \(epoch_limit\) without a model"):
        export(str(ended(tmp_path / "without", model=False).path), "safetensors", tmp_path)
    folder = begun(tmp_path / "begun", event("peer_started", round=None, mode="sync"))
    with parts.held(folder), pytest.raises(UserError, match="is going on"):
        export(str(folder.path), "safetensors", tmp_path)
    with pytest.raises(UserError, match=r"has no summary\.json"):
        export(str(folder.path), "safetensors", tmp_path)
    lost = ended(tmp_path / "lost")
    lost.model.unlink()
    with pytest.raises(UserError, match="is gone, which the run had saved"):
        export(str(lost.path), "safetensors", tmp_path)


def test_the_command_writes_into_the_working_directory_and_answers_a_mistake_with_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ended(Path("runs/first"))

    def command(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["peerless", "export", *arguments])
        with pytest.raises(SystemExit) as ended_with:
            main()
        return int(ended_with.value.code or 0)

    assert command("first", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["card"], told["checked"]) == ("first.safetensors", "first.md", True)
    assert Path("first.safetensors").read_bytes() == Path("runs/first/model.safetensors").read_bytes()
    assert command("first") == 2
    assert capsys.readouterr().err == "peerless: first.safetensors exists; name another file with --out\n"
    assert command("secnod") == 2
    assert "there are first\n" in capsys.readouterr().err

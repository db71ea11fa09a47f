"""The description that goes with an exported model: what it was trained on, how, with what result, at what cost.

Whoever gets the model may read it, so it holds nothing that is the trainer's own: no path, no address, no account.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from contract.code import code_digest
from contract.config import RunConfig
from contract.weights_file import Saved
from peerless.launch.runs import cost_of

#: What of a configuration names places, people and accounts: whole sections, and single keys.
_OWN_SECTIONS = ("code", "aws", "cost")
_OWN_KEYS = {"data": ("path", "test_path"), "": ("init_from",)}


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card is made of."""

    run: str
    form: str
    """`safetensors` or `state_dict`."""
    file: str
    """The model's file name."""
    file_bytes: int
    file_sha256: str
    config: RunConfig
    summary: Mapping[str, Any]
    saved: Saved
    code: Path
    """Folder of the run's own code, which need not exist."""

    def markdown(self) -> str:
        """Raises CodeError where the run's own code cannot be read for its digest."""
        parts = (
            [f"# {self.run}", "", self._opening(), ""],
            ["## Data", "", *_table(self._data())],
            ["## Result", "", *_table(self._result())],
            ["## Cost", "", *self._cost()],
            ["## Hashes", "", *_table(self._hashes())],
            ["## Load", "", "```python", *self._loading(), "```", ""],
            ["## Configuration", "", "Without what names places, code and accounts.", "", "```toml"],
            [tomli_w.dumps(shareable(self.config)).strip(), "```"],
        )
        return "\n".join(line for part in parts for line in part) + "\n"

    def _opening(self) -> str:
        config, sizes = self.config, []
        if self.saved.parameters is not None:
            sizes.append(f"{self.saved.parameters:,} parameters")
        sizes.append(f"{len(self.saved.tensors)} tensors")
        return (
            f"Model `{config.model}` ({', '.join(sizes)}), trained by {config.peers} peers with Peerless, "
            f"{'in rounds that all take together' if config.mode == 'sync' else 'asynchronously'}, each on its own "
            "part of the data."
        )

    def _data(self) -> Iterable[tuple[str, str]]:
        data = self.config.data
        yield "source", f"`{data.source}`"
        yield "preprocessing", ", ".join(data.preprocess) or "none"
        yield "divided among the peers", "by labels" if data.partition == "label_shards" else "at random"
        if data.train_samples:
            yield "training samples", f"at most {data.train_samples:,}"
        if data.image_size:
            yield "image size", f"{data.image_size} pixels"
        yield "batch size", str(self.config.batch_size)
        yield "initial weights", "given" if self.config.init_from else f"drawn from seed {self.config.seed}"

    def _result(self) -> Iterable[tuple[str, str]]:
        summary = self.summary
        yield "ended by", f"{summary['reason']}, after {summary.get('rounds')} rounds"
        accuracy, loss = summary.get("test_accuracy"), summary.get("test_loss")
        yield "test accuracy", "not measured" if accuracy is None else f"{accuracy:.2%}"
        yield "test loss", "not measured" if loss is None else f"{loss:.6g}"
        if (validation := summary.get("validation_loss")) is not None:
            yield "best validation loss", f"{validation:.6g}"
        yield "time", f"{summary.get('seconds_training', 0.0):.1f} s of training"
        if summary.get("peers_lost"):
            yield "peers lost", str(summary["peers_lost"])

    def _cost(self) -> list[str]:
        usd, as_if = cost_of(self.summary)
        if usd is None:
            return ["Not counted.", ""]
        cost = self.summary.get("cost")
        if not isinstance(cost, Mapping):
            return [f"At most {usd:.4f} USD, by the peers' own count.", ""]
        told = "Trained on one machine; the same work on AWS would have cost" if as_if else "On AWS:"
        parts = cost.get("parts") or {}
        return [
            f"{told} {usd:.6f} USD.",
            "",
            *_table((str(name), f"{float(part):.6f}") for name, part in parts.items()),
        ]

    def _hashes(self) -> Iterable[tuple[str, str]]:
        checked = "compared with the file" if self.saved.sha256 else "not compared: the run is of an older version"
        yield f"weights and buffers ({checked})", f"`{self.summary['model_sha256']}`"
        yield f"`{self.file}` ({self.file_bytes:,} bytes), SHA-256", f"`{self.file_sha256}`"
        if digest := code_digest(self.code):
            yield "own code of the run", f"`{digest}`"

    def _loading(self) -> list[str]:
        if self.form == "state_dict":
            return ["import torch", "", f'model.load_state_dict(torch.load("{self.file}", weights_only=True))']
        return [
            "from safetensors.torch import load_model",
            "",
            f'load_model(model, "{self.file}")',
        ]


def shareable(config: RunConfig) -> dict[str, Any]:
    """The configuration without what names places, people and accounts."""
    values = config.model_dump(mode="json", exclude=set(_OWN_SECTIONS))
    for section, names in _OWN_KEYS.items():
        table = values[section] if section else values
        for name in names:
            del table[name]
    return values


def _table(rows: Iterable[tuple[str, str]]) -> list[str]:
    lines = [f"| {name} | {value} |" for name, value in rows]
    return ["| | |", "|---|---|", *lines, ""] if lines else []

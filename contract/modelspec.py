"""What a model is built from; free of torch, so that the run's configuration can carry it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from contract import jsonform


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model by name, for inputs (N, channels, image_size, image_size) and outputs (N, classes).

    `name` is a built-in architecture or `package.module:callable`; `options` are further keyword arguments for it.
    Hashable, so that a worker can keep what it built (`options` do not enter the hash).
    """

    name: str
    classes: int
    channels: int
    image_size: int
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if min(self.classes, self.channels, self.image_size) < 1:
            raise ValueError(f"classes, channels and image_size of model {self.name!r} must be at least 1")

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        form: dict[str, Any] = jsonform.to_dict(self)
        return form

    @classmethod
    def from_dict(cls, value: object) -> ModelSpec:
        """Inverse of `to_dict`. Raises CorruptObject."""
        return jsonform.from_dict(cls, value, "model")

"""What of a script or notebook is shipped with a model: all that it needs, and nothing that trains again."""

from __future__ import annotations

from typing import Any

import pytest

from contract.errors import CodeError
from peerless.launch.definitions import extract


def run(*sources: str, name: str = "Net") -> dict[str, Any]:
    """The names that the extracted module defines."""
    scope: dict[str, Any] = {"__name__": "extracted"}
    exec(extract(sources, name), scope)  # noqa: S102 - the text under test
    return {key: value for key, value in scope.items() if not key.startswith("__") and key != "annotations"}


def test_a_scripts_model_comes_without_what_trains_it() -> None:
    source = """
from __future__ import annotations
import math, os
import no_such_package_here as plt
from collections import OrderedDict
WIDTH: int = 8
DEPTH = WIDTH // 4
SHAPE = {"in": WIDTH}
SHAPE["out"] = DEPTH
FUNCTION = math.sqrt
dataset = [1 / 0]
run = dataset.train()
for WIDTH in (16, 32):
    DEPTH = dataset.train()

def block(width): return FUNCTION(width)

class Base:
    kind = OrderedDict

class Net(Base):
    sizes = [WIDTH for _ in range(DEPTH)]

    def __init__(self, run: Unknown = None):
        dataset = self.sizes
        self.value = block(16.0), dataset, SHAPE["out"]

if __name__ == "__main__":
    raise SystemExit("running the script again would train again")
"""
    made = run(source)
    assert sorted(made) == ["Base", "DEPTH", "FUNCTION", "Net", "OrderedDict", "SHAPE", "WIDTH", "block", "math", "os"]
    assert made["Net"]().value == (4.0, [8, 8], 2)


def test_cells_that_ran_again_or_failed_leave_the_last_definition() -> None:
    made = run(
        "class Net(Base): width = WIDTH  # failed: neither was there yet",
        "this is no python",
        "class Net(Base): width = WIDTH",
        "WIDTH = 1",
        "class Base: ...",
        "WIDTH = 2",
        "WIDTH += 1",
    )
    assert made["Net"].width == 3
    assert made["Net"].__bases__ == (made["Base"],)


def test_a_name_that_is_made_from_its_own_earlier_value_keeps_its_history() -> None:
    cells = ["x = 5", "x = 1", "x = x + 1", "def half(): return x / 2", "half = (half, x)", "class Net: value = half"]
    first, second = run(*cells)["Net"].value
    assert (first(), second) == (1.0, 2)


def test_classes_that_use_each_other_keep_an_order_in_which_they_can_be_defined() -> None:
    made = run("class Net:\n    def child(self): return Child()\nclass Child(Net): ...")
    assert isinstance(made["Net"]().child(), made["Net"])


def test_conditional_definitions_and_star_imports_come_along() -> None:
    made = run(
        "try:\n    import no_such_package_here as fast\nexcept ImportError:\n    fast = None",
        "from math import *",
        "size = 1\nif size:\n    size = 7",
        "class Net:\n    def area(self): return pi * size, fast",
    )
    assert made["Net"]().area() == (pytest.approx(3.14159 * 7, rel=1e-5), None)


def test_a_model_that_is_not_at_the_top_level_is_refused() -> None:
    with pytest.raises(CodeError, match="Net is not defined at the top level of the script or notebook"):
        extract(["def make():\n    class Net: ...\n    return Net", "print('Net')"], "Net")

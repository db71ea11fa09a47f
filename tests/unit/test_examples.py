"""The configurations in examples/ are what the command line takes, and show what they are there for."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.config import from_toml

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_is_a_configuration_and_says_how_to_run_it(path: Path) -> None:
    config = from_toml(path)
    assert config.name == path.stem.replace("_", "-")
    assert f"peerless train examples/{path.name} --local\n" in path.read_text()


def test_the_robust_one_bears_what_it_says() -> None:
    config = from_toml(EXAMPLES / "robust.toml")
    assert (config.aggregation.name, config.aggregation.byzantine) == ("trimmed_mean", 2)
    assert config.membership.quorum == 2 * config.aggregation.byzantine + 1


def test_the_other_one_cuts_gradients_into_shards() -> None:
    assert from_toml(EXAMPLES / "reduce_scatter.toml").exchange.topology == "reduce_scatter"

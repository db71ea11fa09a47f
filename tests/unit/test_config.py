"""The configuration: what is accepted, what is refused in one sentence, and that it goes there and back complete."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from contract import config
from contract.config import RunConfig
from contract.errors import ConfigError
from peerless.launch.workload import resolve

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "mnist.toml"


def keys(section: type[BaseModel], prefix: str = "") -> set[str]:
    """Dotted names of all keys of a section."""
    found: set[str] = set()
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= keys(kind, f"{prefix}{name}.")
        else:
            found.add(prefix + name)
    return found


def written(table: dict[str, object], prefix: str = "") -> set[str]:
    """Dotted names of all keys of a TOML table; an empty inline table is a key."""
    found: set[str] = set()
    for name, value in table.items():
        found |= written(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name}
    return found


def test_the_example_writes_every_key_out_with_a_comment() -> None:
    text = EXAMPLE.read_text()
    assert written(tomllib.loads(text)) == keys(RunConfig)
    bare = [line for line in text.splitlines() if re.match(r"\w+ *=", line) and "#" not in line]
    allowed = [line for line in bare if line.split()[0] in ("name", "preprocess")]
    assert bare == allowed, "every key has its comment"


def test_every_key_is_documented() -> None:
    def check(section: type[BaseModel]) -> None:
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name} has no docstring"
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                check(field.annotation)

    check(RunConfig)


def test_there_and_back() -> None:
    made = config.from_toml(EXAMPLE, ["peers=2", "data.sizes=[3, 1]", "model=vgg11", 'model_options={head="cifar"}'])
    assert config.from_mapping(tomllib.loads(made.to_toml()), "text") == made
    assert config.from_mapping(json.loads(made.to_json()), "text") == made
    assert made.model == "vgg11"


def test_a_configuration_cannot_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().seed = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optimiser.lr=1", "unknown key optimiser; did you mean optimizer?"),
        ("data.sorce=mnist", "unknown key data.sorce; did you mean source?"),
        ("optimizer.lr=-1", "optimizer.lr = -1: Input should be greater than 0"),
        ("optimizer.lr=nan", "optimizer.lr = nan"),
        ("peers=0", "peers = 0"),
        ("peers=true", "peers = True: must not be true or false"),
        ("optimizer.momentum=false", "optimizer.momentum = False: must not be"),
        ("mode=semi", "mode = 'semi': Input should be 'sync' or 'async'"),
        ("model=vgg12", "model 'vgg12' is none of cnn"),
        ("data.source=imagenet", "data.source 'imagenet' is none of mnist"),
        ("data.sizes=[1, 2]", "data.sizes names 2 partitions, but peers is 4"),
        ("name=My Run", "name = 'My Run'"),
        ("peers", "write key=value"),
        ("peers.x=1", "peers is a value, not a table"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)) as caught:
        config.from_toml(EXAMPLE, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"), [(b"peers = ", "not valid TOML"), (b"\xff\xfe", "cannot be read"), (None, "no such")]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "bad.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"bad.toml.*{sentence}"):
        config.from_toml(path)


@pytest.mark.parametrize("given", [0, 1, 12, 0.05, 0.999])
def test_tolerated_failures_are_a_count_or_a_share_and_stay_what_they_are(given: float) -> None:
    made = RunConfig(compute={"tolerated_failures": given})  # type: ignore[arg-type]
    again = config.from_mapping(tomllib.loads(made.to_toml()), "again").compute.tolerated_failures
    assert (again, type(again)) == (given, type(given))


@pytest.mark.parametrize("given", ["-1", "1.0", "2.5", "0.0", "true", '"3"'])
def test_other_tolerated_failures_are_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=r"compute\.tolerated_failures.*must"):
        config.with_overrides({}, [f"compute.tolerated_failures={given}"], "test")


@pytest.mark.parametrize(
    ("values", "batches", "elements", "expected"),
    [
        ({}, (2, 2), 117_066, "never"),  # the demo
        ({}, (64, 2), 25_000_000, "auto"),
        ({"compute": {"batches_per_worker": 8}}, (64, 2), 25_000_000, "never"),
        ({"compute": {"batches_per_worker": "auto"}}, (64, 2), 25_000_000, "auto"),
        ({"compute": {"reduce": "always"}}, (2, 2), 117_066, "always"),
        ({"compute": {"reduce": "always"}}, (1, 1), 117_066, "never"),
        ({"compute": {"reduce": "never"}}, (64, 64), 25_000_000, "never"),
        ({"algorithm": {"name": "local_sgd"}}, (64, 64), 25_000_000, "never"),
    ],
)
def test_a_run_has_reducers_only_where_some_round_needs_them(
    values: dict[str, Any], batches: tuple[int, ...], elements: int, expected: str
) -> None:
    given = config.from_mapping({"peers": 2, "batches_per_round": 0, **values}, "test")
    assert resolve(given, batches, elements).compute.reduce == expected


def test_whether_reducers_add_up_is_one_of_three() -> None:
    with pytest.raises(ConfigError, match=r"compute\.reduce = 'sometimes'"):
        config.with_overrides({}, ["compute.reduce=sometimes"], "test")

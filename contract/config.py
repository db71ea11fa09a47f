"""The configuration of a run: frozen, validated at birth, one docstring per key.

`examples/mnist.toml` writes every key out. A configuration comes from TOML, from JSON (in the run's bucket) or from
keyword arguments, and goes back to TOML complete, so that a run can be repeated from its folder alone.
"""

from __future__ import annotations

import copy
import difflib
import json
import re
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from contract.computing import ComputeConfig as ComputeConfig
from contract.deploying import AwsConfig as AwsConfig
from contract.deploying import CostConfig as CostConfig
from contract.errors import ConfigError
from contract.section import Positive, Seconds, Section
from contract.training import AlgorithmConfig as AlgorithmConfig
from contract.training import EarlyStoppingConfig as EarlyStoppingConfig
from contract.training import OptimizerConfig as OptimizerConfig
from contract.training import OuterConfig as OuterConfig
from contract.training import SchedulerConfig as SchedulerConfig
from contract.training import check_algorithm

#: A dotted module and an attribute, for example `mypackage.models:resnet`.
IMPORTABLE = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")

BUILT_IN_MODELS = ("cnn", "mlp", "vgg11", "squeezenet1_1", "mobilenet_v3_small", "fedkeeper_cnn")
BUILT_IN_SOURCES = ("mnist", "fashion-mnist", "cifar10", "npz", "image-folder")
BUILT_IN_LOSSES = ("cross_entropy", "nll", "mse", "bce")
BUILT_IN_AGGREGATORS = ("mean", "median", "trimmed_mean", "krum")


class DataConfig(Section):
    """Where samples come from and how they are divided among the peers."""

    source: str = "mnist"
    """`mnist`, `fashion-mnist`, `cifar10`, `npz`, `image-folder`, or `package.module:callable` (a torch Dataset)."""
    path: str = ""
    """File or folder of the data; empty means the cache, filled by a download where the source has one."""
    test_path: str = ""
    """File or folder of the test set, for `npz`, `image-folder` and own sources; empty splits `test_fraction` off."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the samples that becomes the test set where the source brings none."""
    image_size: Annotated[int, Field(ge=0, le=1024)] = 0
    """Height and width in pixels to which images are resized; 0 keeps them as they are."""
    preprocess: tuple[Literal["min_max", "standardise", "normalise"], ...] = ("min_max", "standardise")
    """Steps in order: `min_max` to [0, 1], `standardise` to mean 0 and deviation 1 (both with the training set's
    statistics, per channel), `normalise` each sample to unit L2 norm."""
    validation_samples: Annotated[int, Field(ge=0)] = 0
    """Samples kept apart from the training set for validation, never from the test set; 0 keeps a tenth, but no more
    than 5,000."""
    train_samples: Annotated[int, Field(ge=0)] = 0
    """Use only so many training samples (drawn by `seed`); 0 uses all."""
    partition: Literal["iid", "label_shards"] = "iid"
    """`iid` deals shuffled samples out; `label_shards` sorts by label and gives each peer `shards_per_peer` shards."""
    shards_per_peer: Positive = 2
    """Label shards per peer under `label_shards`."""
    sizes: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Relative partition sizes, one per peer, for example [4, 2, 1, 1]; empty means equal."""


class ExchangeConfig(Section):
    """How peers exchange contributions and agree on a round."""

    codec: Literal["none", "fp16", "qsgd8", "qsgd4"] = "qsgd4"
    """Compression of a peer's averaged gradient."""
    error_feedback: bool = False
    """Add what the codec lost of a peer's gradient, or a whole contribution that a commit left out, to its next one.
    Costs a float32 vector of the model's size per peer. `none` loses nothing: only what was left out comes back."""
    topology: Literal["all_gather", "reduce_scatter"] = "all_gather"
    """`all_gather` (the paper): every peer fetches every contribution. `reduce_scatter`: each peer averages one shard
    of the parameters for all, so that traffic per peer stays flat as peers are added; averages are compressed again."""
    packing: Literal["none", "zstd"] = "none"
    """Lossless packing of contributions and averages in S3. `zstd` makes `qsgd4` a fifth smaller for some milliseconds
    of the processor per 100 MB of weights: worth it on lines below a gigabit per second."""
    transport: Literal["rabbitmq", "s3"] = "rabbitmq"
    """`rabbitmq` announces contributions and records by messages; `s3` needs no broker: peers look into S3 every
    `poll_seconds`, which is slower and otherwise equal."""
    inline_bytes: Annotated[int, Field(ge=0, le=524_288)] = 262_144
    """Frames up to this size travel inside the message too; larger ones only by their S3 key (claim check)."""
    max_staleness: Annotated[int, Field(ge=0)] = 4
    """Asynchronous mode: a frame computed more than so many rounds behind the receiver's is rejected and counted."""
    average_weights_every: Annotated[int, Field(ge=0)] = 0
    """Asynchronous mode: every so many rounds of its own a peer averages its weights with the others' latest, so that
    they do not drift apart; 0 never does. They travel as float32, 4 bytes a parameter whatever the codec. What is more
    than `max_staleness` rounds behind is left out, so keep this no larger where peers differ in pace."""
    poll_seconds: Seconds = 2.0
    """A record that no message announced for so long is looked for in S3."""
    start_timeout_seconds: Seconds = 180.0
    """How long the peers wait for each other at the start."""
    round_timeout_seconds: Seconds = 600.0
    """A member that is alive and still delivers nothing for so long is dropped from the run."""


class MembershipConfig(Section):
    """Who counts in a round, and how long the others wait for whom (synchronous mode)."""

    quorum: Annotated[int, Field(ge=1, strict=True)] | Annotated[float, Field(gt=0, le=1, strict=True)] = 1.0
    """Contributions that a round needs: a whole number of peers, or a share of the live members (1.0: all of them, and
    then results do not depend on timing). Below it the run waits, and says so."""
    heartbeat_seconds: Seconds = 1.0
    """A peer says so often that it lives, also while it computes."""
    heartbeat_timeout_seconds: Seconds = 5.0
    """A member that has been silent for so long is dropped with the next commit; it may come back at any round."""
    deadline_deviations: Annotated[float, Field(gt=0)] = 6.0
    """With a quorum below all members a round waits for the slow ones until the median of recent rounds plus so many
    median absolute deviations has passed."""
    deadline_floor_seconds: Seconds = 2.0
    """No such deadline is shorter."""
    deadline_ceiling_seconds: Seconds = 300.0
    """No such deadline is longer; the first rounds, of which nothing is known yet, have this one."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """So often a peer of a local run that died is started again; on AWS its instance does that."""


class AggregationConfig(Section):
    """How the contributions of a round become one gradient."""

    name: str = "mean"
    """`mean` weighs by samples. The others bear some peers that send anything: coordinate-wise `median`,
    `trimmed_mean` without the `byzantine` largest and smallest values, `krum`: the one closest to its neighbours. Or
    `package.module:attribute` (a Strategy of contract/robust.py)."""
    byzantine: Annotated[int, Field(ge=0)] = 1
    """How many peers may send anything: needs more than twice as many contributions for `trimmed_mean`, and at least
    twice as many plus three for `krum`."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Each contribution is scaled down to at most this L2 norm before anything else; 0 leaves them as they are."""

    @field_validator("name")
    @classmethod
    def _known_name(cls, value: str) -> str:
        return _known(value, BUILT_IN_AGGREGATORS, "aggregation.name")


class CheckpointConfig(Section):
    """What a run can be taken up from, and how much of it has to be computed again."""

    every_rounds: Annotated[int, Field(ge=0)] = 20
    """Rounds between checkpoints of weights, optimizer, scheduler and residuals; one more at an orderly end. 0 writes
    that last one only."""


class TrustConfig(Section):
    """What a peer has to bear from others."""

    rejections: Positive = 3
    """So many contributions that carry a peer's signature and still cannot be used exclude it from the run, with the
    evidence in the commit record."""


class CodeConfig(Section):
    """The user's own code, shipped to peers and workers."""

    include: tuple[str, ...] = ()
    """Files and folders, relative to the configuration file, that become importable by peers and workers."""
    requirements: tuple[str, ...] = ()
    """Python requirements of that code, for example `einops==0.8.1`."""


class RunConfig(Section):
    """Everything that determines a run."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,23}$")] = "run"
    """Prefix of the run's identifier: lower case letters, digits, hyphens."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    """Seed of everything random; the same seed gives the same weights, bit for bit, on one kind of machine."""
    peers: Annotated[int, Field(ge=1, le=1000)] = 4
    """Number of peers."""
    mode: Literal["sync", "async"] = "sync"
    """`sync`: a barrier each round, the same weights everywhere. `async`: nobody waits; frames carry their age."""
    epochs: Positive = 2
    """Epoch limit."""
    batch_size: Positive = 128
    """Samples per batch. The last batch of a partition holds the remainder; a single
    sample left over joins the batch before, as batch normalisation cannot train on one sample."""
    batches_per_round: Annotated[int, Field(ge=0)] = 2
    """Batches of each peer per round and update; 0 takes all (the paper: one update per epoch)."""
    validate_every: Annotated[int, Field(ge=0)] = 0
    """Rounds between validations; 0 validates once per epoch."""
    model: str = "cnn"
    """`cnn`, `mlp`, `vgg11`, `squeezenet1_1`, `mobilenet_v3_small`, `fedkeeper_cnn`, or `package.module:callable`
    returning a Module."""
    model_options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Keyword arguments for the model, on top of `classes`, `channels` and `image_size`, which the data give."""
    init_from: str = ""
    """A safetensors file with the initial weights; empty initialises from `seed`."""
    loss: str = "cross_entropy"
    """Loss, averaged over the samples of a batch: `cross_entropy` of logits, `nll` of log-probabilities, `mse` (squared
    error) of numbers, `bce` (binary cross entropy) of one logit per label, or `package.module:callable` of outputs and
    targets."""
    data: DataConfig = DataConfig()
    """Data."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    """Training algorithm."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer."""
    outer: OuterConfig = OuterConfig()
    """The step with averaged updates."""
    scheduler: SchedulerConfig = SchedulerConfig()
    """Learning rate over the rounds."""
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    """Early stopping."""
    compute: ComputeConfig = ComputeConfig()
    """Gradient computation."""
    exchange: ExchangeConfig = ExchangeConfig()
    """Exchange."""
    membership: MembershipConfig = MembershipConfig()
    """Membership."""
    aggregation: AggregationConfig = AggregationConfig()
    """Aggregation."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    trust: TrustConfig = TrustConfig()
    """Trust."""
    code: CodeConfig = CodeConfig()
    """The user's own code."""
    aws: AwsConfig = AwsConfig()
    """The deployment on AWS."""
    cost: CostConfig = CostConfig()
    """What it is billed with."""

    @field_validator("model")
    @classmethod
    def _known_model(cls, value: str) -> str:
        return _known(value, BUILT_IN_MODELS, "model")

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, value: str) -> str:
        return _known(value, BUILT_IN_LOSSES, "loss")

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        _known(self.data.source, BUILT_IN_SOURCES, "data.source")
        if self.data.sizes and len(self.data.sizes) != self.peers:
            raise ValueError(f"data.sizes names {len(self.data.sizes)} partitions, but peers is {self.peers}")
        self._check_aggregation()
        self._check_membership()
        check_algorithm(self.algorithm, self.optimizer, self.outer, self.mode, self.compute.state_machine)
        return self

    def _check_aggregation(self) -> None:
        """Raises ValueError for an aggregator that these peers, or this topology, cannot feed."""
        name, byzantine = self.aggregation.name, self.aggregation.byzantine
        needed = {"trimmed_mean": 2 * byzantine + 1, "krum": 2 * byzantine + 3}.get(name, 1)
        if self.peers < needed:
            raise ValueError(
                f"aggregation.name = {name!r} with byzantine = {byzantine} needs {needed} peers, "
                f"but the run has {self.peers}"
            )
        if self.mode == "async" and self.exchange.average_weights_every and name not in BUILT_IN_AGGREGATORS:
            raise ValueError(
                f"exchange.average_weights_every needs a built-in aggregation, and {name} is for gradients"
            )
        if self.exchange.topology == "reduce_scatter" and (name == "krum" or self.aggregation.clip_norm):
            what = "krum" if name == "krum" else "clip_norm"
            raise ValueError(f"aggregation: {what} needs whole gradients, which reduce_scatter does not bring together")

    def _check_membership(self) -> None:
        """Raises ValueError for numbers that contradict each other."""
        members = self.membership
        if isinstance(members.quorum, int) and members.quorum > self.peers:
            raise ValueError(f"membership.quorum is {members.quorum}, but the run has {self.peers} peers")
        if members.heartbeat_timeout_seconds < 2 * members.heartbeat_seconds:
            raise ValueError("membership.heartbeat_timeout_seconds must be at least two heartbeat_seconds")
        if members.deadline_floor_seconds > members.deadline_ceiling_seconds:
            raise ValueError("membership.deadline_floor_seconds is above deadline_ceiling_seconds")
        if self.mode == "async" and self.exchange.topology != "all_gather":
            raise ValueError("exchange.topology = 'reduce_scatter' needs mode = 'sync'")

    def to_toml(self) -> str:
        """The complete configuration as TOML, defaults included."""
        return tomli_w.dumps(self.model_dump(mode="json"))

    def to_json(self) -> str:
        """The complete configuration as one line of JSON with sorted keys."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)


def _known(value: str, built_in: tuple[str, ...], what: str) -> str:
    if value in built_in or IMPORTABLE.match(value):
        return value
    raise ValueError(f"{what} {value!r} is none of {', '.join(built_in)}, nor of the form package.module:callable")


def from_mapping(values: Mapping[str, Any], where: str) -> RunConfig:
    """Validate `values`; `where` names their origin in the error. Raises ConfigError."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_sentence(error)}") from error


def from_toml(path: Path, overrides: typing.Sequence[str] = ()) -> RunConfig:
    """Read a TOML file and apply `key=value` overrides (dotted keys, TOML values). Raises ConfigError."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such configuration file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the configuration cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    return with_overrides(values, overrides, str(path))


def with_overrides(values: Mapping[str, Any], overrides: typing.Sequence[str], where: str) -> RunConfig:
    """Validate `values` after applying `key=value` overrides to a copy. Raises ConfigError."""
    changed = copy.deepcopy(dict(values))
    for override in overrides:
        _override(changed, override)
    return from_mapping(changed, f"{where} with --set" if overrides else where)


def _override(values: dict[str, Any], override: str) -> None:
    """Set one dotted key, in place. `override` is the text after `--set`."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: write key=value, for example --set optimizer.lr=0.1")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word: `--set model=vgg11` is what people type
    *path, last = key.strip().split(".")
    table = values
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override}: {part} is a value, not a table")
    table[last] = value


def _sentence(error: ValidationError) -> str:
    """The first problem of a validation error as one clause that names the key, the value and the remedy."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}{_suggestion(first['loc'])}"
    message = first["msg"].removeprefix("Value error, ")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    shown = f" = {first['input']!r}" if key and not isinstance(first["input"], dict | BaseModel) else ""
    return f"{key}{shown}: {message}{more}" if key else message + more


def _suggestion(location: tuple[str | int, ...]) -> str:
    section: type[BaseModel] = RunConfig
    for part in location[:-1]:
        field = section.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return ""
        section = field.annotation
    near = difflib.get_close_matches(str(location[-1]), section.model_fields, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(section.model_fields)}"

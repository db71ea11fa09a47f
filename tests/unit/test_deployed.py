"""A deployment read from its stacks' outputs: what is found, and the one sentence for what is not as it should be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from contract.config import RunConfig, from_mapping
from contract.errors import ConfigError, DeploymentMissing
from infra import outputs
from infra.settings import Settings
from peerless.launch.deployed import Deployment, settings_for, stack_names
from peerless.launch.resources import one_run_at_a_time
from statemachines import Mode
from tests.fakes.stacks import cloud, stack_outputs

TWELVE = Settings(name="mine", peers=12)


def test_everything_is_found_in_rank_order_over_several_stacks() -> None:
    found = Deployment.find(cloud(stack_outputs(TWELVE)), "mine")
    assert found.settings == TWELVE
    assert found.run_bucket == "run"
    assert found.peer_buckets == tuple(f"peer-{rank}" for rank in range(12))
    assert found.functions == tuple(f"function-{rank}" for rank in range(12))
    assert found.groups == tuple(f"group-{rank}" for rank in range(12))
    assert found.machine_roles[11] == "arn:role-11"
    assert found.log_groups == ("/peers/0", "/peers/1")
    assert found.broker_endpoint == "amqps://broker:5671"
    assert found.machines(Mode.INLINE_MAP)[10] == "arn:inline-10"
    assert found.machines(Mode.DISTRIBUTED_MAP)[2] == "arn:distributed-2"
    places = found.places("r1", 3, "us-east-1", "123456789012")
    assert places.peer_buckets == ("peer-0", "peer-1", "peer-2")


@pytest.mark.parametrize("changes", [{"local": True}, {"broker": False}, {"workers": False}, {"peers": 1}])
def test_other_forms_of_a_deployment_are_whole_too(changes: dict[str, Any]) -> None:
    settings = dataclasses.replace(TWELVE, **changes)
    found = Deployment.find(cloud(stack_outputs(settings)), "mine")
    assert found.settings == settings
    assert len(found.functions) == (settings.peers if settings.workers else 0)
    assert bool(found.groups) == (not settings.local)


def test_a_parallel_machine_is_not_deployed() -> None:
    with pytest.raises(ConfigError, match="parallel"):
        Deployment.find(cloud(stack_outputs(TWELVE)), "mine").machines(Mode.PARALLEL)


def test_a_name_without_a_deployment_is_a_mistake() -> None:
    with pytest.raises(DeploymentMissing, match="no deployment 'min' here; `peerless deploy CONFIG` makes one"):
        Deployment.find(cloud(stack_outputs(TWELVE)), "min")


@pytest.mark.parametrize("missing", stack_names(TWELVE))
def test_a_missing_stack_is_named(missing: str) -> None:
    made = stack_outputs(TWELVE)
    del made[missing]
    with pytest.raises(DeploymentMissing, match="'mine' is not whole") as told:
        Deployment.find(cloud(made), "mine")
    assert missing in str(told.value) or "stack of buckets" in str(told.value)


def test_a_failed_stack_is_named_with_its_state() -> None:
    statuses = {"Peerless-mine-Workers1": "ROLLBACK_COMPLETE"}
    with pytest.raises(DeploymentMissing, match="Peerless-mine-Workers1 is ROLLBACK_COMPLETE"):
        Deployment.find(cloud(stack_outputs(TWELVE), statuses), "mine")


def test_lists_that_are_too_short_are_not_taken() -> None:
    made = stack_outputs(TWELVE)
    made["Peerless-mine-Workers1"][outputs.FUNCTIONS] = "function-10"
    with pytest.raises(DeploymentMissing, match="11 Functions for 12 peers"):
        Deployment.find(cloud(made), "mine")


def test_settings_of_another_version_are_told() -> None:
    made = stack_outputs(TWELVE)
    made["Peerless-mine-Storage"][outputs.SETTINGS] = '{"invented": 1}'
    with pytest.raises(DeploymentMissing, match="another version"):
        Deployment.find(cloud(made), "mine")


def configured(**values: Any) -> RunConfig:
    return from_mapping({"aws": {"name": "mine"}, **values}, "test")


def deployed(**changes: Any) -> Deployment:
    settings = dataclasses.replace(settings_for(configured(peers=4)), **changes)
    return Deployment.find(cloud(stack_outputs(settings)), "mine")


def test_a_configuration_fits_what_was_deployed_for_it() -> None:
    deployed().check(configured(peers=4))
    deployed().check(configured(peers=2))
    deployed(code_digest="abc").check(configured(), "abc")
    deployed().check(configured(compute={"service": "local", "memory_mb": 4_000}))
    deployed(reduce=False).check(configured(compute={"reduce": "never"}))
    deployed().check(configured(compute={"reduce": "never"}))


@pytest.mark.parametrize(
    ("changes", "values", "told"),
    [
        ({}, {"peers": 5}, "has 4 peers, but the configuration asks for 5"),
        ({"workers": False}, {}, "has no gradient workers"),
        ({"reduce": False}, {}, "has no gradient reducers, but compute.reduce is auto"),
        ({"broker": False}, {}, "has no broker"),
        ({"code_digest": "abc"}, {}, "other code of yours"),
        ({}, {"compute": {"memory_mb": 3_008}}, "compute.memory_mb = 1769, but the configuration says 3008"),
        ({}, {"compute": {"threads": 2}}, "compute.threads = 1"),
        ({}, {"compute": {"tolerated_failures": 2}}, "compute.tolerated_failures = 0.0"),
        ({"tolerated_failures": 2.0}, {"compute": {"tolerated_failures": 0.1}}, "but the configuration says 0.1"),
        ({}, {"aws": {"name": "mine", "express": True}}, "aws.express = false, but the configuration says true"),
    ],
)
def test_a_configuration_that_does_not_fit_is_told_why(
    changes: dict[str, Any], values: dict[str, Any], told: str
) -> None:
    with pytest.raises(DeploymentMissing, match="run `peerless deploy CONFIG` to change it") as error:
        deployed(**changes).check(configured(**{"peers": 4, **values}))
    assert told in str(error.value)


def test_every_part_of_the_aws_section_reaches_the_settings() -> None:
    """All but what concerns a run's bill: that is the run's own."""
    names = {field.name for field in dataclasses.fields(Settings)}
    assert set(type(RunConfig().aws).model_fields) - names == {"max_usd"}
    asked = settings_for(configured(aws={"name": "mine", "log_days": 7, "max_hours": 3.5}), code_dir="/code")
    assert (asked.log_days, asked.max_hours, asked.name, asked.code_dir) == (7, 3.5, "mine", "/code")


def test_one_run_at_a_time_trains_on_a_local_deployment(tmp_path: Path) -> None:
    with one_run_at_a_time(tmp_path, "mine"):
        with one_run_at_a_time(tmp_path, "other"):
            pass
        with (
            pytest.raises(ConfigError, match="another run trains on the local deployment 'mine'"),
            one_run_at_a_time(tmp_path, "mine"),
        ):
            pass
    with one_run_at_a_time(tmp_path, "mine"):
        pass


def test_the_local_form_carries_neither_images_nor_code() -> None:
    config = configured(aws={"name": "mine", "snap_start": True, "architecture": "x86_64", "instance_type": "t3.small"})
    local = settings_for(config, code_dir="/code", code_digest="abc", lambda_url="http://127.0.0.1:1")
    assert (local.local, local.lambda_url, local.code_dir, local.snap_start) == (True, "http://127.0.0.1:1", "", False)

"""The images' stack: built with few rights, named by their content, and gone with the stack."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from infra import outputs
from tests.infra.deployment import Deployment

IMAGES = f"-{outputs.IMAGES}/"


@pytest.fixture(params=("default", "full", "shared"))
def in_the_cloud(request: pytest.FixtureRequest, deployments: dict[str, Deployment]) -> Deployment:
    """Each configuration whose images CodeBuild makes."""
    return deployments[request.param]


def resources(deployment: Deployment, kind: str) -> list[dict[str, Any]]:
    """Properties of the images' stack's resources of a type."""
    return [properties for where, _, properties in deployment.of(kind) if IMAGES in where]


def tags(deployment: Deployment) -> list[str]:
    """Tags of the images that a deployment builds in the cloud."""
    return [properties["imageTag"] for properties in resources(deployment, "Custom::CDKContainerImageBuild")]


def tag_of(deployment: Deployment, image: str) -> str:
    """Tag of one of them, `Worker` or `Peer`."""
    (tag,) = (
        properties["imageTag"]
        for where, _, properties in deployment.of("Custom::CDKContainerImageBuild")
        if where.split("/")[1].startswith(image)
    )
    return str(tag)


def worker_images(deployment: Deployment) -> set[str]:
    """Image addresses of the workers' functions, references unresolved."""
    found = set()
    for name, template in deployment.templates.items():
        for resource in template["Resources"].values():
            code = resource.get("Properties", {}).get("Code", {})
            if f"-{outputs.WORKERS}" in name and "ImageUri" in code:
                found.add(json.dumps(code["ImageUri"]))
    return found


def test_local_deployments_build_nothing(deployments: dict[str, Deployment]) -> None:
    assert not deployments["local"].has(outputs.IMAGES)


def test_repositories_scan_and_expire_and_go(in_the_cloud: Deployment) -> None:
    repositories = resources(in_the_cloud, "AWS::ECR::Repository")
    assert len(repositories) == 2
    for repository in repositories:
        assert repository["ImageScanningConfiguration"] == {"ScanOnPush": True}
        assert repository["EmptyOnDelete"] is True
        (rule,) = json.loads(repository["LifecyclePolicy"]["LifecyclePolicyText"])["rules"]
        assert rule["action"] == {"type": "expire"}
        assert "RepositoryName" not in repository


def test_the_stack_leaves_nothing_behind(in_the_cloud: Deployment) -> None:
    """Log groups too, which CDK keeps for two years of its own accord."""
    template = in_the_cloud.templates[f"{in_the_cloud.settings.prefix}-{outputs.IMAGES}"]
    for id, resource in template["Resources"].items():
        assert resource.get("DeletionPolicy", "Delete") == "Delete", id
    groups = resources(in_the_cloud, "AWS::Logs::LogGroup")
    assert len(groups) == 2
    assert {group["RetentionInDays"] for group in groups} == {in_the_cloud.settings.log_days}


def test_the_build_log_exists_before_the_first_build(in_the_cloud: Deployment) -> None:
    """CodeBuild would make it otherwise, without an end, and CloudFormation could not."""
    template = in_the_cloud.templates[f"{in_the_cloud.settings.prefix}-{outputs.IMAGES}"]["Resources"]
    (log,) = (id for id in template if id.startswith("BuildLog"))
    builds = [made for made in template.values() if made["Type"] == "Custom::CDKContainerImageBuild"]
    assert len(builds) == 2
    assert all(log in build["DependsOn"] for build in builds)


def test_images_are_built_for_the_right_processor(in_the_cloud: Deployment) -> None:
    for build in resources(in_the_cloud, "Custom::CDKContainerImageBuild"):
        assert "--platform linux/arm64" in build["buildCommand"]
    (project,) = resources(in_the_cloud, "AWS::CodeBuild::Project")
    assert project["Environment"]["Type"] == "ARM_CONTAINER"
    assert project["TimeoutInMinutes"] <= 30


def test_a_function_runs_the_tag_that_was_built(in_the_cloud: Deployment) -> None:
    """The tag stands in the template as text: a reference would leave the template as it was when the code changes, and
    neither the command nor CloudFormation would touch the function."""
    (used,) = worker_images(in_the_cloud)
    assert tag_of(in_the_cloud, "Worker") in used
    peers = json.dumps(in_the_cloud.templates[f"{in_the_cloud.settings.prefix}-{outputs.PEERS}0"])
    assert tag_of(in_the_cloud, "Peer") in peers
    assert all(re.fullmatch(r"[0-9a-f]{32}", tag) for tag in tags(in_the_cloud))


def test_other_code_means_other_tags(deployments: dict[str, Deployment]) -> None:
    assert tags(deployments["default"]) == tags(deployments["shared"])
    assert not set(tags(deployments["default"])) & set(tags(deployments["full"]))


def test_workers_come_after_their_image(deployments: dict[str, Deployment]) -> None:
    for name in ("default", "shared", "docker"):
        deployment = deployments[name]
        folder = deployment.files[0].parent
        manifest = json.loads((folder / "manifest.json").read_text())["artifacts"]
        workers = manifest[f"{deployment.settings.prefix}-{outputs.WORKERS}0"]
        assert f"{deployment.settings.prefix}-{outputs.IMAGES}" in workers["dependencies"]


def test_a_build_may_push_to_its_repositories_and_read_its_contexts(in_the_cloud: Deployment) -> None:
    statements = [
        statement
        for policy in resources(in_the_cloud, "AWS::IAM::Policy")
        for statement in policy["PolicyDocument"]["Statement"]
    ]
    broad = {statement["Sid"] for statement in statements if statement["Resource"] == "*"}
    assert broad == {"LogIn"}
    (contexts,) = (statement["Resource"] for statement in statements if statement["Sid"] == "ReadContexts")
    assert all(re.search(r"/[0-9a-f]{64}\.zip$", resource) for resource in contexts)
    assert not any("iam:" in str(statement["Action"]) for statement in statements)
    assert all(not role.get("ManagedPolicyArns") for role in resources(in_the_cloud, "AWS::IAM::Role"))


def test_the_digest_of_own_code_is_an_output(deployments: dict[str, Deployment]) -> None:
    full = deployments["full"]
    assert full.output(outputs.IMAGES, outputs.CODE_DIGEST) == full.settings.code_digest
    prefix = deployments["default"].settings.prefix
    assert outputs.CODE_DIGEST not in deployments["default"].templates[f"{prefix}-{outputs.IMAGES}"].get("Outputs", {})


def test_local_docker_makes_assets_of_the_same_contexts(deployments: dict[str, Deployment]) -> None:
    docker = deployments["docker"]
    assert not docker.of("AWS::CodeBuild::Project")
    assets = json.loads((docker.files[0].parent / f"{docker.settings.prefix}-{outputs.IMAGES}.assets.json").read_text())
    images = list(assets["dockerImages"].values())
    assert len(images) == 2
    for image in images:
        assert image["source"]["platform"] == "linux/amd64"
        assert image["source"]["dockerBuildArgs"] == {"TORCH_INDEX": docker.settings.torch_index}
        assert (docker.files[0].parent / image["source"]["directory"] / "install.py").exists()
    (used,) = worker_images(docker)
    assert any(hash in used for hash in assets["dockerImages"])


def test_the_temporary_contexts_leave_no_trace(deployment: Deployment) -> None:
    """A path in a template would differ from run to run, and tell of the machine."""
    for path in deployment.files:
        assert "peerless-image-" not in path.read_text()

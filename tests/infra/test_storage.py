"""Buckets: encrypted, closed to the public, TLS only, kept when stacks go, and emptied of what expires."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from contract.keys import Place, Places, current_place
from infra import outputs
from infra.settings import Settings
from tests.infra.deployment import Deployment

PLACES = Places(run="mnist-1", run_bucket="run", peer_buckets=("p0",), region="us-east-1")
EXPIRING = [
    PLACES.weights("a" * 64),
    PLACES.contribution(1, 0, 0),
    PLACES.events(0, 1_700_000_000_000),
    PLACES.items(0, 1, 0),
    PLACES.gradient(0, 1, 0, 2),
]
LASTING = [
    PLACES.spec(),
    PLACES.member(0),
    PLACES.commit(1),
    PLACES.result(1),
    PLACES.stop(),
    PLACES.report(0),
    PLACES.validation(),
    PLACES.manifest(0),
    PLACES.batch(0, 1),
    current_place("run"),
]


def test_every_bucket_is_encrypted_and_closed_to_the_public(deployment: Deployment) -> None:
    buckets = deployment.of("AWS::S3::Bucket")
    assert len(buckets) == deployment.settings.peers + 1
    for where, _, properties in buckets:
        (rule,) = properties["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        assert rule["ServerSideEncryptionByDefault"]["SSEAlgorithm"] in ("AES256", "aws:kms"), where
        assert properties["PublicAccessBlockConfiguration"] == {
            "BlockPublicAcls": True,
            "BlockPublicPolicy": True,
            "IgnorePublicAcls": True,
            "RestrictPublicBuckets": True,
        }, where
        assert properties["OwnershipControls"]["Rules"] == [{"ObjectOwnership": "BucketOwnerEnforced"}], where
        assert "BucketName" not in properties, f"{where}: a name chosen by hand collides"


def test_every_bucket_refuses_calls_without_tls_to_everybody(deployment: Deployment) -> None:
    for where, _, properties in deployment.of("AWS::S3::Bucket"):
        (bucket,) = [b for b in _policies(deployment) if b.startswith(where.replace("/", "-").lower())]
        assert "BucketName" not in properties
        for condition in ({"Bool": {"aws:SecureTransport": "false"}}, {"NumericLessThan": {"s3:TlsVersion": 1.2}}):
            (statement,) = [s for s in _policies(deployment)[bucket] if s.get("Condition") == condition]
            assert statement["Effect"] == "Deny"
            assert statement["Action"] == "s3:*"
            assert statement["Principal"] in ("*", {"AWS": "*"})
            assert set(statement["Resource"]) == {f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"}


def test_no_bucket_policy_allows_anything(deployment: Deployment) -> None:
    """Rights come from the roles; bucket policies only take away."""
    for bucket, statements in _policies(deployment).items():
        assert {s["Effect"] for s in statements} == {"Deny"}, bucket


def test_buckets_outlive_their_stack_and_nothing_else_does(deployment: Deployment) -> None:
    kept = {
        resource["Type"]
        for template in deployment.templates.values()
        for resource in template["Resources"].values()
        if resource.get("DeletionPolicy", "Delete") != "Delete"
    }
    assert "AWS::S3::Bucket" in kept
    assert kept <= {"AWS::S3::Bucket", "AWS::AmazonMQ::Configuration"}
    for where, resource, _ in deployment.of("AWS::S3::Bucket"):
        assert resource["DeletionPolicy"] == resource["UpdateReplacePolicy"] == "Retain", where


@pytest.mark.parametrize("place", EXPIRING, ids=str)
def test_what_passes_expires_after_the_days_of_the_settings(deployment: Deployment, place: Place) -> None:
    for where, _, properties in deployment.of("AWS::S3::Bucket"):
        days = [rule["ExpirationInDays"] for rule in _expiring(properties) if place.key.startswith(rule["Prefix"])]
        assert days == [deployment.settings.data_days], where


@pytest.mark.parametrize("place", LASTING, ids=str)
def test_records_and_data_stay(deployment: Deployment, place: Place) -> None:
    for where, _, properties in deployment.of("AWS::S3::Bucket"):
        assert not [rule for rule in _expiring(properties) if place.key.startswith(rule["Prefix"])], where


def test_unfinished_uploads_and_old_versions_go(deployment: Deployment) -> None:
    for where, _, properties in deployment.of("AWS::S3::Bucket"):
        rules = properties["LifecycleConfiguration"]["Rules"]
        assert all(rule["Status"] == "Enabled" for rule in rules), where
        assert [r["AbortIncompleteMultipartUpload"] for r in rules if "AbortIncompleteMultipartUpload" in r], where
        versioned = properties.get("VersioningConfiguration") == {"Status": "Enabled"}
        old = [r["NoncurrentVersionExpiration"]["NoncurrentDays"] for r in rules if "NoncurrentVersionExpiration" in r]
        assert old == ([1] if versioned else []), where


def test_only_the_runs_bucket_keeps_versions_and_only_on_aws(deployment: Deployment) -> None:
    versioned = [where for where, _, p in deployment.of("AWS::S3::Bucket") if "VersioningConfiguration" in p]
    assert len(versioned) == (0 if deployment.settings.local else 1)
    if versioned:
        assert deployment.output("Storage", outputs.RUN_BUCKET) == versioned[0].replace("/", "-").lower()


def test_outputs_name_every_bucket_and_the_settings(deployment: Deployment) -> None:
    settings = deployment.settings
    lists = [
        deployment.output("Storage", f"{outputs.PEER_BUCKETS}{number}").split(",")
        for number in range(len(settings.groups))
    ]
    assert [len(names) for names in lists] == [len(ranks) for ranks in settings.groups]
    names = [name for part in lists for name in part]
    assert len({*names, deployment.output("Storage", outputs.RUN_BUCKET)}) == settings.peers + 1
    assert all(f"peer{rank:04d}" in name for rank, name in enumerate(names))
    told = Settings.from_mapping(json.loads(deployment.output("Storage", outputs.SETTINGS)))
    assert told == dataclasses.replace(settings, code_dir=""), "a folder of the user's machine is nobody's business"


def test_no_stack_has_more_outputs_or_resources_than_cloudformation_takes(deployment: Deployment) -> None:
    for name, template in deployment.templates.items():
        assert len(template["Resources"]) <= 400, name
        assert len(template.get("Outputs", {})) <= 160, name


def _expiring(properties: dict[str, Any]) -> list[dict[str, Any]]:
    return [rule for rule in properties["LifecycleConfiguration"]["Rules"] if "ExpirationInDays" in rule]


def _policies(deployment: Deployment) -> dict[str, list[dict[str, Any]]]:
    return {p["Bucket"]: p["PolicyDocument"]["Statement"] for _, _, p in deployment.of("AWS::S3::BucketPolicy")}

"""Every policy of every role: no wildcard without a written reason, no rights for everybody."""

from __future__ import annotations

import copy
import json

from tests.infra.deployment import Deployment


def test_every_wildcard_in_a_policy_has_its_reason(deployment: Deployment) -> None:
    found = list(deployment.wildcards())
    assert found
    assert [f"{w.where} {w.sid}: {w.text}" for w in found if len(w.reason.split()) < 4] == []


def test_a_wildcard_without_a_reason_is_noticed(deployment: Deployment) -> None:
    broken = copy.copy(deployment)
    broken.templates = copy.deepcopy(deployment.templates)
    broken.stacks = type(deployment.stacks)(broken.templates)
    for _, _, resource in broken.stacks.resources("AWS::IAM::Policy"):
        resource.get("Metadata", {}).get("Reasons", {}).pop("Trace", None)  # type: ignore[attr-defined]
    assert {w.sid for w in broken.wildcards() if not w.reason} == {"Trace"}


def test_no_policy_allows_all_of_a_service_to_a_peer(deployment: Deployment) -> None:
    for wildcard in deployment.wildcards():
        if any(room in wildcard.where for room in ("-Workers", "-Peers", "-Broker", "-Watch")):
            assert not wildcard.text.startswith("Action"), wildcard


def test_policies_are_as_short_as_iam_wants_them(deployment: Deployment) -> None:
    """6,144 characters of a managed policy, 10,240 of all inline ones of a role. Names on AWS are longer than the
    simulator's by some 20 characters, on two hundred mentions of them at most."""
    inline: dict[str, int] = {}
    for _, _, properties in deployment.of("AWS::IAM::Policy"):
        for role in properties["Roles"]:
            inline[role] = inline.get(role, 0) + len(json.dumps(properties["PolicyDocument"], separators=(",", ":")))
    assert max(inline.values()) < 7_000
    for where, _, properties in deployment.of("AWS::IAM::ManagedPolicy"):
        assert len(json.dumps(properties["PolicyDocument"], separators=(",", ":"))) < 5_000, where


def test_only_services_take_on_roles(deployment: Deployment) -> None:
    for where, _, properties in deployment.of("AWS::IAM::Role"):
        for statement in properties["AssumeRolePolicyDocument"]["Statement"]:
            assert set(statement["Principal"]) == {"Service"}, where


def test_no_template_holds_a_secret(deployment: Deployment) -> None:
    """Passwords are generated in the account; a template names them by dynamic references at most."""
    for name, template in deployment.templates.items():
        for line in json.dumps(template, indent=0).splitlines():
            if '"Password"' in line or '"SecretString"' in line:
                assert "resolve:secretsmanager" in line or line.rstrip().endswith("{"), f"{name}: {line}"

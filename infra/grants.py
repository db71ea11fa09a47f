"""One statement of a policy, with its reason, and how it comes to a role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aws_cdk import CfnResource, Tags
from aws_cdk import aws_iam as iam
from constructs import Construct

#: Tag of every role that acts for a peer, with its rank (four digits) or SHARED. Bucket policies recognise roles by it.
PEER_TAG = "peerless:peer"
#: Value of PEER_TAG on the role of a worker for all peers.
SHARED = "shared"
#: Name under which a policy's metadata holds the reasons of its wildcards, by Sid.
REASONS = "Reasons"


@dataclass(frozen=True, kw_only=True)
class Grant:
    """One statement. Raises ValueError for a wildcard without a reason."""

    sid: str
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    conditions: Mapping[str, Mapping[str, Any]] | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if not self.reason and any("*" in text for text in (*self.actions, *self.resources)):
            raise ValueError(f"grant {self.sid} has a wildcard and no reason")

    def statement(self) -> iam.PolicyStatement:
        """As CDK takes it."""
        return iam.PolicyStatement(
            sid=self.sid, actions=list(self.actions), resources=list(self.resources), conditions=self.conditions
        )


def attach(scope: Construct, id: str, role: iam.IRole, grants: Sequence[Grant]) -> iam.Policy:
    """An inline policy of `role` with these statements, their reasons in its metadata."""
    policy = iam.Policy(scope, id, roles=[role], statements=[grant.statement() for grant in grants])
    _explain(policy, grants)
    return policy


def attach_managed(scope: Construct, id: str, role: iam.IRole, grants: Sequence[Grant]) -> iam.ManagedPolicy:
    """The same as a managed policy: 6,144 characters each, where a role's inline ones have 10,240 together."""
    policy = iam.ManagedPolicy(scope, id, roles=[role], statements=[grant.statement() for grant in grants])
    _explain(policy, grants)
    return policy


def _explain(policy: Construct, grants: Sequence[Grant]) -> None:
    made = policy.node.default_child
    assert isinstance(made, CfnResource)
    made.add_metadata(REASONS, {grant.sid: grant.reason for grant in grants if grant.reason})


def tag_peer(role: iam.Role, who: str) -> None:
    """Mark a role as acting for the peer of this rank (four digits), or for all (SHARED)."""
    Tags.of(role).add(PEER_TAG, who)


def rank_name(rank: int) -> str:
    """A rank as keys and tags have it."""
    return f"{rank:04d}"

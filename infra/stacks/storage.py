"""The buckets: one for the run, one per peer. Stateful; `peerless destroy` empties and deletes them after asking."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping

from aws_cdk import Acknowledgment, CfnOutput, Duration, Fn, RemovalPolicy, Stack, Tags, Validations
from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3 as s3
from constructs import Construct

from infra import outputs, policies
from infra.grants import PEER_TAG, SHARED, rank_name
from infra.settings import Settings

_NO_ACCESS_LOG = (
    "A run writes and deletes some ten objects per peer and round, so a log bucket would soon hold more objects than "
    "the data. Who may touch what follows from the policies alone; CloudTrail data events can be switched on where an "
    "audit asks for them."
)


class StorageStack(Stack):
    """Attributes: `run_bucket`, `peer_buckets` (by rank).

    Keys in S3's own encryption (SSE-S3): all readers are roles of this account, so a key of KMS would add a price per
    request and a second policy to keep, and keep nobody out.
    """

    def __init__(self, scope: Construct, id: str, settings: Settings) -> None:
        super().__init__(scope, id, description=f"Buckets of the Peerless deployment {settings.name}")
        # Versions pay in the run's bucket: peers may delete weights and contributions there, so a malicious one could
        # destroy a run, and as versions those survive for a day at some 0.001 USD per GB. Peers' buckets have none:
        # only the user writes batches, and gradients, hundreds of GB a day for a large model, can be computed again.
        # Nor has the local AWS, which expires nothing.
        self.run_bucket = self._bucket("Run", settings, versioned=not settings.local)
        self._keep_records(self.run_bucket)
        self.peer_buckets = [self._bucket(f"Peer{rank_name(rank)}", settings) for rank in range(settings.peers)]
        for rank, bucket in enumerate(self.peer_buckets):
            _keep_other_peers_out(bucket, rank)
        self._outputs(settings)
        if settings.local:  # to MiniStack a change of outputs alone is none, so the settings there would stay the old
            Tags.of(self.run_bucket).add("peerless:settings", hashlib.sha256(settings.to_json().encode()).hexdigest())

    def _bucket(self, id: str, settings: Settings, *, versioned: bool = False) -> s3.Bucket:
        rules = [
            s3.LifecycleRule(id="WhatPasses", prefix=policies.EXPIRING, expiration=Duration.days(settings.data_days)),
            s3.LifecycleRule(id="UnfinishedUploads", abort_incomplete_multipart_upload_after=Duration.days(1)),
        ]
        if versioned:
            rules.append(
                s3.LifecycleRule(
                    id="OldVersions",
                    noncurrent_version_expiration=Duration.days(1),
                    expired_object_delete_marker=True,
                )
            )
        bucket = s3.Bucket(
            self,
            id,
            encryption=s3.BucketEncryption.S3_MANAGED,
            enforce_ssl=True,
            minimum_tls_version=1.2,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            versioned=versioned,
            lifecycle_rules=rules,
            removal_policy=RemovalPolicy.RETAIN,
        )
        Validations.of(bucket).acknowledge(Acknowledgment(id="AwsSolutions-S1", reason=_NO_ACCESS_LOG))
        return bucket

    def _keep_records(self, bucket: s3.Bucket) -> None:
        """Records are created once by whoever it is, and never deleted by a peer, whatever its own policies say.

        The first two statements need no list of peers: the user's side, too, creates records under a condition only,
        and a statement for everybody cannot be evaded by a role that somebody forgot to list. Deleting is for the user
        at the end, so the others go by the tag that every peer's and worker's role carries: roles live in stacks
        that refer to this one, which cannot refer back.
        """
        created = {"Bool": {"s3:ObjectCreationOperation": "true"}}  # parts of a multipart upload carry no condition
        self._deny(
            bucket,
            "RecordsAreCreatedOnce",
            ["s3:PutObject"],
            [*policies.CREATED_ONCE, *policies.PASSING_ONCE],
            {"Null": {"s3:if-none-match": "true"}, **created},
        )
        self._deny(
            bucket,
            "ClaimsAreConditional",
            ["s3:PutObject"],
            [policies.MEMBERS],
            {"Null": {"s3:if-none-match": "true", "s3:if-match": "true"}, **created},
        )
        peers = {"Null": {f"aws:PrincipalTag/{PEER_TAG}": "false"}}
        bucket.add_to_resource_policy(
            iam.PolicyStatement(
                sid="PeersDeleteNoRecords",
                effect=iam.Effect.DENY,
                principals=[iam.AnyPrincipal()],
                actions=["s3:DeleteObject"],
                not_resources=[bucket.arn_for_objects(key) for key in policies.CLEARED],
                conditions=peers,
            )
        )
        self._deny(
            bucket,
            "PeersTouchNoVersionsAndNoRules",
            [
                "s3:DeleteObjectVersion",
                "s3:PutBucketPolicy",
                "s3:DeleteBucketPolicy",
                "s3:PutBucketVersioning",
                "s3:PutLifecycleConfiguration",
                "s3:DeleteBucket",
            ],
            None,
            peers,
        )

    def _deny(
        self, bucket: s3.Bucket, sid: str, actions: list[str], keys: list[str] | None, conditions: Mapping[str, object]
    ) -> None:
        """Deny to everybody that meets the conditions; `keys` None means the bucket and all its objects."""
        resources = (
            [bucket.bucket_arn, bucket.arn_for_objects("*")]
            if keys is None
            else [bucket.arn_for_objects(key) for key in keys]
        )
        bucket.add_to_resource_policy(
            iam.PolicyStatement(
                sid=sid,
                effect=iam.Effect.DENY,
                principals=[iam.AnyPrincipal()],
                actions=actions,
                resources=resources,
                conditions=conditions,
            )
        )

    def _outputs(self, settings: Settings) -> None:
        # Without the folder of the user's code: it is another at every deployment, and its digest says all.
        CfnOutput(self, outputs.SETTINGS, value=dataclasses.replace(settings, code_dir="").to_json())
        CfnOutput(self, outputs.RUN_BUCKET, value=self.run_bucket.bucket_name)
        for number, ranks in enumerate(settings.groups):
            names = [self.peer_buckets[rank].bucket_name for rank in ranks]
            CfnOutput(self, f"{outputs.PEER_BUCKETS}{number}", value=Fn.join(",", names))


def _keep_other_peers_out(bucket: s3.Bucket, rank: int) -> None:
    """A second lock: a role of another peer is refused even where its own policies would let it in."""
    tag = f"aws:PrincipalTag/{PEER_TAG}"
    bucket.add_to_resource_policy(
        iam.PolicyStatement(
            sid="OtherPeersStayOut",
            effect=iam.Effect.DENY,
            principals=[iam.AnyPrincipal()],
            actions=["s3:*"],
            resources=[bucket.bucket_arn, bucket.arn_for_objects("*")],
            conditions={
                "Null": {tag: "false"},
                "StringNotEquals": {tag: [rank_name(rank), SHARED]},
            },
        )
    )


def bucket_arn(bucket: s3.IBucket) -> str:
    """The ARN from the name, so that other stacks need one reference per bucket: a stack has at most 200 outputs."""
    return Stack.of(bucket).format_arn(service="s3", region="", account="", resource=bucket.bucket_name)

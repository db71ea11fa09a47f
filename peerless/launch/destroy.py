"""Taking a deployment away: what runs made beside it, its stacks, and, where asked for, the data in its buckets."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from botocore.exceptions import ClientError

from contract.clock import Clock
from contract.errors import DeploymentMissing
from infra.settings import Settings
from peerless.launch import parallel, stacks
from peerless.launch.account import Clients, code, told

Note = Callable[[str], None]


def destroy(clients: Clients, name: str, *, purge: bool, note: Note, clock: Clock) -> list[str]:
    """Delete the deployment `name`, whole or not; gives the buckets that stay, which are all unless `purge`.

    Raises DeploymentMissing where there is none, and what `account.told` raises.
    """
    prefix = Settings(name=name).prefix
    found = stacks.find(clients, prefix)
    if not found:
        raise DeploymentMissing(f"there is no deployment {name!r} here to destroy")
    buckets = buckets_of(clients, found)
    parallel.remove(clients, prefix)
    stacks.delete(clients, found, note, clock)
    if not purge:
        return buckets
    for bucket in buckets:
        note(f"deleting bucket {bucket} with all that is in it")
        delete_bucket(clients, bucket)
    return []


def buckets_of(clients: Clients, found: Iterable[stacks.Stack]) -> list[str]:
    """Names of the buckets that these stacks hold, and that outlive them."""
    return [part.name for part in stacks.resources(clients, found) if part.type == "AWS::S3::Bucket"]


def delete_bucket(clients: Clients, bucket: str) -> None:
    """Empty a bucket, old versions too, and delete it; fine where it is gone already. Raises what `told` raises."""
    s3 = clients("s3")
    with told(f"delete bucket {bucket}"):
        try:
            for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
                rows = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
                objects = [{"Key": row["Key"], "VersionId": row["VersionId"]} for row in rows]
                if objects:
                    s3.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
            s3.delete_bucket(Bucket=bucket)
        except ClientError as error:
            if code(error) not in ("NoSuchBucket", "404"):
                raise

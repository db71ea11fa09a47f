"""Taking a deployment away: what runs made beside it, its stacks, and, where asked for, the data in its buckets."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from botocore.exceptions import ClientError

from contract.clock import Clock
from contract.errors import DeployFailed, DeploymentMissing
from infra import outputs
from infra.settings import Settings
from peerless.launch import parallel, stacks
from peerless.launch.account import Clients, code, told
from peerless.launch.logs import groups_named
from peerless.launch.stop import switch_off

Note = Callable[[str], None]
_GONE = ("NoSuchBucket", "404")


def destroy(clients: Clients, name: str, *, purge: bool, note: Note, clock: Clock) -> list[str]:
    """Delete the deployment `name`, whole or not; gives the buckets that stay.

    With `purge` none does. Without, those of a deployment with data stay, all of them, and so does their stack, by
    which a later call finds them. Raises DeploymentMissing where there is none, DeployFailed, and what `account.told`
    raises; what was not deleted then is found again by the next call.
    """
    prefix = Settings(name=name).prefix
    found = stacks.find(clients, prefix)
    if not found:
        raise DeploymentMissing(f"there is no deployment {name!r} here to destroy")
    storage = [stack for stack in found if stack.kind == outputs.STORAGE]
    others = [stack for stack in found if stack.kind != outputs.STORAGE]
    switch_off(clients, found)
    parts = stacks.resources(clients, found)
    parallel.remove(clients, prefix)
    stacks.delete(clients, others, note, clock)
    _delete_logs(clients, parts, note)
    buckets = buckets_of(clients, storage)
    if not purge and any(holds_data(clients, bucket) for bucket in buckets):
        return buckets
    # Emptied before their stack goes, because it is the stack by which they are found, should this be interrupted;
    # deleted after it, because it deletes their policies.
    for bucket in buckets:
        note(f"emptying bucket {bucket}")
        empty(clients, bucket)
    stacks.delete(clients, storage, note, clock)
    for bucket in buckets:
        delete_bucket(clients, bucket)
    return []


def holds_data(clients: Clients, bucket: str) -> bool:
    """Whether anything is in it, old versions not counted. A bucket that is gone holds nothing."""
    with told(f"look into bucket {bucket}"):
        try:
            return int(clients("s3").list_objects_v2(Bucket=bucket, MaxKeys=1).get("KeyCount", 0)) > 0
        except ClientError as error:
            if code(error) not in _GONE:
                raise
    return False


def _delete_logs(clients: Clients, parts: Iterable[stacks.Resource], note: Note) -> None:
    """Log groups that outlived their stacks: those that services made by themselves, by the names of ours."""
    made_by = {
        "AWS::Logs::LogGroup": "{}",
        "AWS::Lambda::Function": "/aws/lambda/{}",
        "AWS::CodeBuild::Project": "/aws/codebuild/{}",
        "AWS::AmazonMQ::Broker": "/aws/amazonmq/broker/{}/",
    }
    for part in parts:
        if part.type not in made_by:
            continue
        wanted = made_by[part.type].format(part.name)
        for group in groups_named(clients, wanted):
            if group == wanted or wanted.endswith("/"):
                note(f"deleting log group {group}")
                with told(f"delete log group {group}"):
                    try:
                        clients("logs").delete_log_group(logGroupName=group)
                    except ClientError as error:
                        if code(error) != "ResourceNotFoundException":
                            raise


def buckets_of(clients: Clients, found: Iterable[stacks.Stack]) -> list[str]:
    """Names of the buckets that these stacks hold, and that outlive them."""
    return [part.name for part in stacks.resources(clients, found) if part.type == "AWS::S3::Bucket"]


def empty(clients: Clients, bucket: str) -> None:
    """Delete all objects of a bucket, old versions too; fine where it is gone already. Raises what `told` raises."""
    s3 = clients("s3")
    with told(f"empty bucket {bucket}"):
        try:
            for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
                rows = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
                objects = [{"Key": row["Key"], "VersionId": row["VersionId"]} for row in rows]
                if objects:
                    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
                    for refused in answer.get("Errors", ()):
                        raise DeployFailed(
                            f"s3://{bucket}/{refused.get('Key')} cannot be deleted: {refused.get('Code')}"
                        )
        except ClientError as error:
            if code(error) not in _GONE:
                raise


def delete_bucket(clients: Clients, bucket: str) -> None:
    """Delete a bucket with all that is in it; fine where it is gone already. Raises what `told` raises."""
    empty(clients, bucket)
    with told(f"delete bucket {bucket}"):
        try:
            clients("s3").delete_bucket(Bucket=bucket)
        except ClientError as error:
            if code(error) not in _GONE:
                raise

"""S3Store over real HTTP, held to the same contract as the fake, and races between writers."""

from __future__ import annotations

from collections.abc import Iterator

import boto3
import pytest

from contract.keys import Place
from contract.store import ObjectStore, S3Store
from infra.local import ministack
from infra.local.processes import Starting
from tests.fakes.store_contract import BUCKETS, StoreContract, StoreRaces


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("ministack")
    server = ministack.start(folder, folder / "log", Starting(), folder / "data")
    try:
        yield server.endpoint_url
    finally:
        server.child.stop()


class TestS3StoreOverMiniStack(StoreContract, StoreRaces):
    @pytest.fixture
    def store(self, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        client = boto3.client("s3", region_name="us-east-1", endpoint_url=endpoint)
        for bucket in BUCKETS:
            client.create_bucket(Bucket=bucket)
        client.close()
        store = S3Store(region="us-east-1", endpoint_url=endpoint)
        yield store
        for bucket in BUCKETS:
            store.delete([Place(bucket, key) for key in store.list(bucket, "")])
        store.close()

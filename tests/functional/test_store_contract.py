"""The object store in memory and S3Store (over moto) do the same; tests/integration holds a real endpoint to it."""

from __future__ import annotations

from collections.abc import Iterator

import boto3
import pytest
from moto import mock_aws

from contract.store import ObjectStore, S3Store
from tests.fakes.store import MemoryStore
from tests.fakes.store_contract import BUCKETS, StoreContract, StoreRaces


class TestMemoryStore(StoreContract, StoreRaces):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return MemoryStore(BUCKETS)


class TestS3StoreOverMoto(StoreContract):
    @pytest.fixture
    def store(self) -> Iterator[ObjectStore]:
        with mock_aws():
            client = boto3.client("s3", region_name="us-east-1")
            for bucket in BUCKETS:
                client.create_bucket(Bucket=bucket)
            client.close()
            store = S3Store(region="us-east-1")
            yield store
            store.close()

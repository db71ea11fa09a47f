"""What every ObjectStore must do. A test module subclasses `StoreContract` and gives the store under test.

class TestMyStore(StoreContract):
    @pytest.fixture
    def store(self) -> Iterator[ObjectStore]: ...      # with the buckets of BUCKETS, empty
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from contract.errors import CorruptObject, ObjectMissing
from contract.keys import Place
from contract.store import ObjectStore, Stored

#: Buckets that exist, and are empty, when a test begins.
BUCKETS = ("contract-run", "contract-peer")
A = Place(BUCKETS[0], "runs/r/a")
ELSEWHERE = Place(BUCKETS[1], "runs/r/a")
NOWHERE = Place("contract-no-such-bucket", "runs/r/a")


class StoreContract:
    """The cases. Each begins with empty buckets."""

    def test_what_is_put_is_what_is_got(self, store: ObjectStore) -> None:
        for data in (b"", b"a", bytes(range(256)) * 5_000):
            stored = store.put(A, data)
            assert stored.size == len(data)
            assert store.get(A) == data
            assert store.find(A) == (data, stored.etag)
            assert store.head(A) == stored

    def test_any_kind_of_bytes_may_be_put(self, store: ObjectStore) -> None:
        whole = bytearray(b"0123456789")
        for write in (store.put, store.create):
            for place, data in ((A, whole), (Place(A.bucket, "view"), memoryview(whole)[2:5])):
                store.delete([place])
                assert write(place, data) is not None
                assert store.get(place) == bytes(data)
        whole[:] = b"changed   "
        assert store.get(A) == b"0123456789"

    def test_buckets_are_apart(self, store: ObjectStore) -> None:
        store.put(A, b"a")
        assert store.find(ELSEWHERE) is None
        store.put(ELSEWHERE, b"b")
        assert (store.get(A), store.get(ELSEWHERE)) == (b"a", b"b")

    def test_what_is_not_there_is_missing(self, store: ObjectStore) -> None:
        assert store.find(A) is None
        assert store.head(A) is None
        with pytest.raises(ObjectMissing, match="s3://contract-run/runs/r/a does not exist"):
            store.get(A)
        with pytest.raises(ObjectMissing, match="does not exist"):
            store.get_range(A, 0, 1)

    def test_more_than_may_be_is_not_read(self, store: ObjectStore) -> None:
        place = A
        store.put(place, bytes(1_001))
        found = store.find(place, 1_001)
        assert found is not None
        assert found[0] == store.get(place, 1_001) == bytes(1_001)
        for ask in (store.get, store.find):
            with pytest.raises(CorruptObject, match="1001 bytes, where 1000 are the most"):
                ask(place, 1_000)
        assert store.get(place) == bytes(1_001)

    def test_create_happens_once(self, store: ObjectStore) -> None:
        first = store.create(A, b"first")
        assert first is not None
        assert first.size == 5
        assert store.create(A, b"second") is None
        assert store.create(A, b"first") is None, "the same bytes from somebody else have not won either"
        assert store.find(A) == (b"first", first.etag)
        store.delete([A])
        assert store.create(A, b"third") is not None

    def test_replace_happens_over_the_named_version_only(self, store: ObjectStore) -> None:
        first = store.put(A, b"first")
        second = store.replace(A, b"second", first.etag)
        assert second is not None
        assert second.etag != first.etag
        assert store.replace(A, b"third", first.etag) is None
        assert store.find(A) == (b"second", second.etag)

    def test_replace_of_what_is_not_there_is_lost(self, store: ObjectStore) -> None:
        first = store.put(A, b"first")
        store.delete([A])
        assert store.replace(A, b"second", first.etag) is None
        assert store.find(A) is None

    @pytest.mark.parametrize(("offset", "length"), [(0, 10), (0, 1), (9, 1), (3, 4), (0, 0), (10, 0)])
    def test_ranges(self, store: ObjectStore, offset: int, length: int) -> None:
        store.put(A, b"0123456789")
        assert store.get_range(A, offset, length) == b"0123456789"[offset : offset + length]

    @pytest.mark.parametrize(("offset", "length"), [(0, 11), (9, 2), (10, 1), (50, 5)])
    def test_a_range_beyond_the_end_is_corrupt(self, store: ObjectStore, offset: int, length: int) -> None:
        store.put(A, b"0123456789")
        with pytest.raises(CorruptObject, match="s3://contract-run/runs/r/a"):
            store.get_range(A, offset, length)

    @pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1)])
    def test_a_negative_range_is_the_callers_mistake(self, store: ObjectStore, offset: int, length: int) -> None:
        with pytest.raises(ValueError, match="no range"):
            store.get_range(A, offset, length)

    def test_listings_are_by_prefix_and_in_order(self, store: ObjectStore) -> None:
        keys = ["x/10", "x/2", "x/a b", "x/ä", "x/Z", "x/z/deep", "xy", "y"]
        for key in keys:
            store.put(Place(A.bucket, key), b"")
        store.put(Place(ELSEWHERE.bucket, "x/elsewhere"), b"")
        assert store.list(A.bucket, "x/") == ["x/10", "x/2", "x/Z", "x/a b", "x/z/deep", "x/ä"]
        assert store.list(A.bucket, "") == sorted(keys, key=str.encode)
        assert store.list(A.bucket, "no such") == []

    def test_listings_and_deletions_have_no_limit(self, store: ObjectStore) -> None:
        places = [Place(A.bucket, f"many/{number:04d}") for number in range(1_050)]
        for place in places:
            store.put(place, b"")
        assert store.list(A.bucket, "many/") == [place.key for place in places]
        store.delete(places[:-1])
        assert store.list(A.bucket, "many/") == [places[-1].key]

    def test_deleting_what_is_not_there_is_fine(self, store: ObjectStore) -> None:
        store.delete([])
        store.put(A, b"a")
        store.put(ELSEWHERE, b"b")
        store.delete([A, Place(A.bucket, "missing"), ELSEWHERE])
        assert store.find(A) is None
        assert store.find(ELSEWHERE) is None

    @pytest.mark.parametrize(
        "use",
        [
            lambda store: store.put(NOWHERE, b"a"),
            lambda store: store.create(NOWHERE, b"a"),
            lambda store: store.replace(NOWHERE, b"a", '"0"'),
            lambda store: store.get(NOWHERE),
            lambda store: store.find(NOWHERE),
            lambda store: store.list(NOWHERE.bucket, ""),
            lambda store: store.delete([NOWHERE]),
        ],
        ids=["put", "create", "replace", "get", "find", "list", "delete"],
    )
    def test_a_bucket_that_is_not_there_is_named(
        self, store: ObjectStore, use: Callable[[ObjectStore], object]
    ) -> None:
        with pytest.raises(ObjectMissing, match="there is no bucket contract-no-such-bucket"):
            use(store)


class StoreRaces:
    """Several writers at once; for stores that are served to threads or processes (moto's is not made for that)."""

    def test_of_many_creators_one_wins(self, store: ObjectStore) -> None:
        answers = _at_once(8, lambda number: store.create(A, b"%d" % number))
        winners = [number for number, stored in enumerate(answers) if stored is not None]
        assert len(winners) == 1
        assert store.get(A) == b"%d" % winners[0]

    def test_of_many_replacers_one_wins(self, store: ObjectStore) -> None:
        first = store.put(A, b"first")
        answers = _at_once(8, lambda number: store.replace(A, b"%d" % number, first.etag))
        winners = [number for number, stored in enumerate(answers) if stored is not None]
        assert len(winners) == 1
        assert store.get(A) == b"%d" % winners[0]


def _at_once(count: int, write: Callable[[int], Stored | None]) -> list[Stored | None]:
    """The answers of `count` threads that all write as soon as the last of them is ready."""
    answers: list[Stored | None] = [None] * count
    failures: list[BaseException] = []
    ready = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            ready.wait()
            answers[number] = write(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    return answers

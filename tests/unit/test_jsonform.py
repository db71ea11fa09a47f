"""The strict JSON form: what does not fit is refused, by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import jsonform
from contract.errors import CorruptObject, NonFiniteGradient


@dataclass(frozen=True, kw_only=True)
class Inner:
    n: int


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    x: float
    flag: bool = False
    maybe: float | None = None
    inner: Inner
    many: tuple[Inner, ...] = ()
    table: dict[str, int] = field(default_factory=dict)
    anything: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a name is empty")


WHOLE = {"name": "a", "x": 1.5, "inner": {"n": 1}, "many": [{"n": 2}], "table": {"k": 3}, "anything": {"z": [None]}}


def test_defaults_fill_what_may_be_left_out() -> None:
    assert jsonform.from_dict(Outer, {"name": "a", "x": 1, "inner": {"n": 1}}, "it") == Outer(
        name="a", x=1, inner=Inner(n=1)
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": 1}, "it.name is int, expected str"),
        ({"name": ""}, "it: a name is empty"),
        ({"x": True}, "it.x is bool, expected float"),
        ({"x": "1"}, "it.x is str, expected float"),
        ({"flag": 1}, "it.flag is int, expected bool"),
        ({"maybe": "no"}, "it.maybe is str, expected float"),
        ({"inner": {"n": 1.0}}, "it.inner.n is float, expected int"),
        ({"inner": {"n": True}}, "it.inner.n is bool, expected int"),
        ({"inner": None}, "it.inner is not a JSON object"),
        ({"many": {"n": 2}}, "it.many is dict"),
        ({"many": [{"n": 2}, {}]}, r"it.many\[1\] lacks the field 'n'"),
        ({"table": {"k": "v"}}, "it.table.k is str, expected int"),
        ({"more": 1}, "it holds the unknown field 'more'"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CorruptObject, match=sentence):
        jsonform.from_dict(Outer, WHOLE | change, "it")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "1", '{"a":NaN}', '{"a":-Infinity}', '{"a":1,"a":2}', b"\xff\xfe", "[" * 100_000, '{"a":1}x'],
)
def test_what_is_no_json_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(CorruptObject, match=r"^thing is not"):
        jsonform.loads(text, "thing")


def test_an_overflowing_number_is_refused() -> None:
    value = jsonform.loads('{"name":"a","x":1e999,"inner":{"n":1}}', "it")
    with pytest.raises(CorruptObject, match=r"it\.x is float"):
        jsonform.from_dict(Outer, value, "it")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nothing_that_is_not_finite_is_written(value: float) -> None:
    with pytest.raises(NonFiniteGradient):
        jsonform.dumps({"loss": value})


@given(
    st.builds(
        Outer,
        name=st.text(min_size=1),
        x=st.floats(allow_nan=False, allow_infinity=False),
        flag=st.booleans(),
        maybe=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        inner=st.builds(Inner, n=st.integers()),
        many=st.lists(st.builds(Inner, n=st.integers())).map(tuple),
        table=st.dictionaries(st.text(), st.integers()),
    )
)
def test_round_trip(value: Outer) -> None:
    blob = jsonform.dumps(jsonform.to_dict(value))
    assert jsonform.from_dict(Outer, jsonform.loads(blob, "it"), "it") == value
    assert jsonform.loads(memoryview(blob), "it") == jsonform.loads(blob.decode(), "it")


def test_the_bytes_do_not_depend_on_the_order_of_writing() -> None:
    assert jsonform.dumps({"b": 1, "a": 2}) == b'{"a":2,"b":1}' == jsonform.dumps({"a": 2, "b": 1})

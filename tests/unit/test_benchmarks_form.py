"""The benchmarks' command line and the one form in which they report."""

from __future__ import annotations

import importlib
import json

import pytest

from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.reporting import Figure, line


def test_the_line_is_one_json_object_of_the_agreed_form() -> None:
    text = line("codec", [Figure(name="encode", value=1.234567, unit="x memcpy", better="higher", must=1.0, aim=1.6)])
    assert "\n" not in text
    report = json.loads(text)
    assert set(report) == {"benchmark", "machine", "results"}
    assert report["machine"]["cores"] >= 1
    assert report["results"] == [
        {"name": "encode", "value": 1.2346, "unit": "x memcpy", "better": "higher", "must": 1.0, "aim": 1.6}
    ]


def test_a_figure_without_must_and_aim_leaves_them_out() -> None:
    report = json.loads(line("x", [Figure(name="n", value=3, unit="messages", better="neither")]))
    assert set(report["results"][0]) == {"name", "value", "unit", "better"}


def test_the_list_names_only_benchmarks_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = [row.split()[0] for row in capsys.readouterr().out.splitlines()]
    assert listed == list(BENCHMARKS)
    assert all(callable(importlib.import_module(f"benchmarks.{name}").run) for name in listed)


def test_an_unknown_name_is_a_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rond"]) == 2
    assert "rond: there is round, demo" in capsys.readouterr().err

"""The price book: regions, the user's own prices over Peerless's, and how old they are."""

from __future__ import annotations

import calendar
from pathlib import Path

import pytest

from contract.errors import ConfigError
from peerless.cost.book import HOME_REGION, Price, Reader, book

#: 2026-11-22, 12:00 UTC.
NOW = float(calendar.timegm((2026, 11, 22, 12, 0, 0)))
ROW = '{ usd = 0.5, date = "2026-11-01", sure = "H", source = "our contract" }'


def written(folder: Path, text: str) -> str:
    path = folder / "prices.toml"
    path.write_text(text)
    return str(path)


def test_the_facts_are_in_the_book() -> None:
    """Spot checks against the fact sheet, one per service."""
    prices = book()
    assert prices["lambda_gb_second"]["arm64"].usd == 0.0000133334
    assert prices["step_functions"]["transition"].usd * 1_000 == pytest.approx(0.025)
    assert [prices["step_functions"][f"express_gb_hour{tier}"].usd for tier in ("", "_second_tier", "_third_tier")] == [
        0.06, 0.03, 0.0164,
    ]  # fmt: skip
    assert prices["s3"]["put"].usd * 1_000 == pytest.approx(0.005)
    assert prices["instance_hour"]["g5.xlarge"].usd == 1.006
    assert prices["instance_hour"]["g6.xlarge"].usd == 0.8048
    assert prices["fargate"]["arm64_vcpu_hour"].usd == 0.03238
    assert prices["lambda"]["tmp_gb_second"].usd == 0.0000000309
    families = {name.split(".")[0] for name in prices["instance_hour"]}
    assert families == {"t2", "t3", "t4g", "c7g", "g5", "g6"}


def test_ones_own_prices_lie_over_the_books(tmp_path: Path) -> None:
    text = f'[us-east-1.instance_hour]\n"m9g.huge" = {ROW}\n"t4g.medium" = {ROW}\n[us-east-1.s3]\nput = {ROW}\n'
    prices = book(written(tmp_path, text))
    assert prices.overridden == ("instance_hour.m9g.huge", "instance_hour.t4g.medium", "s3.put")
    assert prices["instance_hour"]["m9g.huge"] == Price(0.5, "2026-11-01", "H", "our contract")
    assert prices["s3"]["put"].usd == 0.5
    assert prices["s3"]["get"] == book()["s3"]["get"]
    assert book()["instance_hour"]["t4g.medium"].usd == 0.0336, "the book itself stays"


def test_of_another_region_home_prices_stand_in_and_that_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, f"[eu-central-1.s3]\nput = {ROW}\n")
    prices = book(path, "eu-central-1")
    assert prices["s3"]["put"].usd == 0.5
    assert prices["s3"]["get"] == book()["s3"]["get"]
    assert "s3.put" not in prices.stand_ins
    assert "s3.get" in prices.stand_ins
    assert book().stand_ins == ()
    read = Reader(prices)
    read.usd("s3", "put")
    assert read.warnings(NOW) == []
    read.usd("s3", "get")
    (told,) = read.warnings(NOW)
    assert "1 of 2 prices are those of us-east-1" in told
    assert "none of eu-central-1 (s3.get)" in told


@pytest.mark.parametrize(
    ("date", "is_old"),
    [("2025-11-21", True), ("2025-11-23", False), ("2025-11", True), ("2025-12", False), ("", False)],
)
def test_a_price_is_old_after_a_year(date: str, is_old: bool) -> None:
    assert Price(1.0, date, "H", "somewhere").is_old(NOW) is is_old


def test_only_prices_that_were_used_are_warned_of(tmp_path: Path) -> None:
    old = '{ usd = 0.5, date = "2024-02-29", sure = "H", source = "an old page" }'
    read = Reader(book(written(tmp_path, f"[us-east-1.s3]\nput = {old}\n")))
    read.usd("s3", "get")
    assert read.warnings(NOW) == []
    assert read.dates() == ("2026-09-18", "2026-09-18")
    read.usd("s3", "put")
    (told,) = read.warnings(NOW)
    assert told.startswith("1 of 2 prices are more than a year old (s3.put; the oldest is of 2024-02-29)")
    assert read.dates() == ("2024-02-29", "2026-09-18")
    assert Reader(book()).dates() == ("", "")


def test_the_books_own_prices_are_not_old_yet() -> None:
    assert not [name for rows in book().values() for name, price in rows.items() if price.is_old(NOW)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"[us-east-1.s3]\nputs = {ROW}\n", r"\[us-east-1\.s3\] has no price puts; did you mean put\?"),
        (f"[us-east-1.s4]\nput = {ROW}\n", r"\[us-east-1\.s4\] is none of lambda_gb_second, "),
        (f"[s3]\nput = {ROW}\n", r"\[s3\] is no region"),
        ("[us-east-1.s3]\nput = 0.5\n", r"put: a price needs usd, date, sure and source"),
        ('[us-east-1.s3]\nput = { usd = 1, sure = "H", source = "x" }\n', "a price needs usd, date, sure and source"),
        (f"[us-east-1.s3]\nput = {ROW.replace('0.5', '-1')}\n", "put: usd = -1 must be a number"),
        (f"[us-east-1.s3]\nput = {ROW.replace('0.5', 'nan')}\n", "put: usd = nan must be a number"),
        (f"[us-east-1.s3]\nput = {ROW.replace('0.5', 'true')}\n", "put: usd = True is not a number"),
        (f"[us-east-1.s3]\nput = {ROW.replace('2026-11-01', 'lately')}\n", "put: date = 'lately' must be"),
        (f"[us-east-1.s3]\nput = {ROW.replace('2026-11-01', '2026-02-30')}\n", "put: date = '2026-02-30' must be"),
        (f"[us-east-1.s3]\nput = {ROW.replace('our contract', '')}\n", "put: source must say"),
        (f"[us-east-1.s3]\nput = {ROW.replace('H', 'certain')}\n", "put: sure = 'certain'"),
        (f"[eu-west-1.s3]\nput = {ROW}\n", "it has prices of eu-west-1, but the run is billed with those of us-east-1"),
        ("", "it has prices of no region"),
        ("[us-east-1.s3\n", "not valid TOML"),
    ],
)
def test_a_mistake_in_ones_own_prices_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as raised:
        book(written(tmp_path, text))
    assert "prices.toml: " in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml: the prices cannot be read"):
        book(str(tmp_path / "nothing.toml"), HOME_REGION)

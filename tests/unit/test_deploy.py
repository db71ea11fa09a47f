"""What `peerless deploy` tells, asks and refuses before it changes anything; the CDK command is a stand-in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from contract.config import RunConfig, from_mapping
from contract.errors import CodeError, ConfigError, DeployFailed
from infra.settings import Settings
from peerless.launch import deploy as module
from peerless.launch.deploy import Target, deploy
from peerless.launch.deployed import settings_for
from tests.fakes.stacks import cloud, stack_outputs

Commands = list[tuple[list[str], Settings | None]]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """What the CDK command was asked; it prints two lines each time."""
    asked: Commands = []

    def cdk(arguments: Sequence[str], settings: Settings, environ: object, *, say: Callable[[str], None]) -> None:
        asked.append((list(arguments), settings))
        if settings.code_dir:
            assert (Path(settings.code_dir) / "mine.py").read_text() == "x = 1", "the code is there while it runs"
        say(f"{settings.prefix}-Storage | 1/9 | CREATE_COMPLETE | AWS::S3::Bucket | Run")
        say(f"{settings.prefix}-Broker | 1/9 |  CREATE_IN_PROGRESS  | AWS::AmazonMQ::Broker | Broker")
        say(f" ✅  {settings.prefix}-Storage")

    def bootstrap(account: str, region: str, environ: object, *, say: Callable[[str], None]) -> None:
        asked.append((["bootstrap", account, region], None))

    monkeypatch.setattr(module.toolkit, "cdk", cdk)
    monkeypatch.setattr(module.toolkit, "bootstrap", bootstrap)
    monkeypatch.chdir(tmp_path)
    return asked


def configured(**values: Any) -> RunConfig:
    return from_mapping({"aws": {"name": "mine", "torch_index": "https://index.example/cpu"}, **values}, "test")


def target(has: Settings | None, *, bootstrapped: bool = True) -> Target:
    """An AWS with a deployment or none."""
    made = stack_outputs(has) if has else {}
    inner = cloud(made | ({"CDKToolkit": {}} if bootstrapped else {}))

    class Sts:
        def get_caller_identity(self) -> dict[str, str]:
            return {"Account": "123456789012"}

    def clients(service: str) -> Any:
        return Sts() if service == "sts" else inner(service)

    return Target(clients=clients, region="eu-west-1", environ={})


def told(config: RunConfig, place: Target, *, answer: bool = True, diff: bool = False) -> list[str]:
    """What the user is told and asked; questions start with a question mark."""
    said: list[str] = []

    def confirm(question: str) -> bool:
        said.append(f"? {question}")
        return answer

    deploy(config, diff=diff, note=said.append, confirm=confirm, target=place)
    return said


def test_the_price_by_the_hour_stands_before_the_question(commands: Commands) -> None:
    said = told(configured(), target(settings_for(configured())))
    question = said.index("? deploy mine now?")
    before = "\n".join(said[:question])
    assert "account 123456789012, region eu-west-1" in before
    assert "USD per hour while it stands without a run: " in before
    assert "USD per hour while a run trains: " in before
    assert "15 to 20 minutes" in before
    assert said[question + 1].startswith("deploying Peerless-mine-Storage, Peerless-mine-Workers0")
    assert commands == [(["deploy", "--all", "--progress", "events", "--require-approval", "never"], commands[0][1])]


def test_of_the_commands_output_the_slow_steps_and_the_ends_are_shown(commands: Commands) -> None:
    said = told(configured(), target(settings_for(configured())))
    assert said[-2:] == [
        "Peerless-mine-Broker | 1/9 | CREATE_IN_PROGRESS | AWS::AmazonMQ::Broker | Broker",
        "✅ Peerless-mine-Storage",
    ]
    assert "| Run" in Path(".peerless/deploy-mine.log").read_text(), "the log has all of it"


def test_a_no_changes_nothing(commands: Commands) -> None:
    said = told(configured(), target(None, bootstrapped=False), answer=False)
    assert said[-1] == "? deploy mine now?"
    assert commands == []


def test_a_new_account_is_prepared_first_and_the_user_knows_before(commands: Commands) -> None:
    config = configured()
    with pytest.raises(Exception, match="no deployment"):  # the stand-in deploys nothing
        told(config, target(None, bootstrapped=False))
    assert [words[0] for words, _ in commands] == ["bootstrap", "deploy"]
    assert commands[0][0] == ["bootstrap", "123456789012", "eu-west-1"]
    assert "CDKToolkit" in "\n".join(told(config, target(None, bootstrapped=False), answer=False))


def test_a_diff_asks_nothing_and_makes_nothing(commands: Commands) -> None:
    said = told(configured(), target(None, bootstrapped=False), diff=True)
    assert [words for words, _ in commands] == [["diff", "--method", "template"]]
    assert not any(line.startswith("?") for line in said)


@pytest.mark.parametrize("stopped", [False, True])
def test_it_does_not_shrink_because_buckets_would_be_orphans(commands: Commands, stopped: bool) -> None:
    has = dataclasses.replace(settings_for(configured()), peers=12)
    place = target(has)
    if stopped:
        made = {name: values for name, values in stack_outputs(has).items() if not name.endswith("-Broker")}
        place = dataclasses.replace(place, clients=cloud(made))
    with pytest.raises(ConfigError, match="has 12 peers and cannot shrink to 4"):
        told(configured(), place)
    assert commands == []


def test_what_is_no_longer_asked_for_is_deleted_after_a_yes(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[str] = []
    monkeypatch.setattr(module.stacks, "delete", lambda _, found, *__: gone.extend(stack.name for stack in found))
    has = settings_for(configured())
    without = configured(exchange={"transport": "s3"})
    said = told(without, target(has))
    assert "no longer asked for, so it is deleted: Peerless-mine-Broker" in said
    assert gone == ["Peerless-mine-Broker"]


def test_own_code_goes_along_with_its_digest(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1")
    config = configured(code={"include": [str(tmp_path / "mine.py")]})
    told(config, target(settings_for(config)))
    settings = commands[0][1]
    assert settings is not None
    assert len(settings.code_digest) == 64
    assert not Path(settings.code_dir).exists(), "the copy goes afterwards"
    with pytest.raises(CodeError, match="does not exist"):
        told(configured(code={"include": ["/nowhere.py"]}), target(None))


def test_after_ctrl_c_the_user_knows_what_goes_on(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.toolkit, "cdk", interrupted)
    with pytest.raises(KeyboardInterrupt, match="CloudFormation goes on with what it has begun"):
        told(configured(), target(None))


def test_a_log_that_cannot_be_written_is_told(commands: Commands) -> None:
    Path(".peerless").touch()
    with pytest.raises(DeployFailed, match=r"\.peerless/deploy-mine.log cannot be written"):
        told(configured(), target(None))

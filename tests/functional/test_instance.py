"""What an instance does around its peer, with scripted peers and virtual time: every ending, and what it leaves."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest

from contract.errors import PermanentError, StoreUnavailable, TransientError
from contract.events import EventLog
from contract.keys import Place, current_place
from contract.records import Current, PeerReport, Stop
from peer_agent.instance import agent, chunks, participation
from peer_agent.instance.agent import AGAIN, FAILED, OVER
from tests.fakes.instance import BUCKET, PASSWORD, PLACES, RANK, RUN, Script, Stage, env, report
from tests.unit.test_runspec import spec as run_spec

FINE = Script(report=report(), events=[("finished", 3, {"reason": "epoch_limit", "error": None})])
DEAD = Script(status=-9, output="allocating\n")


def left_report(stage: Stage) -> PeerReport:
    return PeerReport.from_json(stage.store.get(PLACES.report(RANK)))


class TestARunThatGoesWell:
    def test_the_peer_is_started_once_and_the_group_is_switched_off(self, tmp_path: Path) -> None:
        stage = Stage(tmp_path, [FINE])
        stage.announce()
        assert stage.instance.run() == OVER
        assert stage.released == 1
        (command,) = stage.commands
        assert command[1:9] == ["-m", "peer_agent", "--rank", "1", "--run", RUN, "--run-bucket", BUCKET]
        assert command[command.index("--peer-id") + 1] == "lab-0001"
        assert [e["event"] for e in stage.events()] == ["instance_started", "finished", "instance_ended"]
        assert not stage.messages("error", "warning")

    def test_the_password_is_in_the_childs_environment_and_nowhere_else(self, tmp_path: Path) -> None:
        quoted = "p%40ss%2Fw%3Ard%25"
        leak = Script(report=report(), output=f"cannot reach amqps://peer-1:{quoted}@mq.example, {PASSWORD}\n")
        stage = Stage(tmp_path, [leak])
        stage.announce()
        stage.instance.run()
        assert stage.environments[0]["PEERLESS_BROKER_URL"] == f"amqps://peer-1:{quoted}@mq.example:5671/%2F"
        assert stage.environments[0]["PATH"] == "/bin"
        assert stage.asked_for == ["arn:secret"]
        for text in (stage.output.getvalue(), " ".join(stage.commands[0])):
            assert PASSWORD not in text
            assert quoted not in text
        assert "cannot reach amqps://peer-1:***@mq.example, ***" in stage.messages("info")

    def test_without_a_broker_no_secret_is_asked_for(self, tmp_path: Path) -> None:
        stage = Stage(tmp_path, [FINE], transport="s3")
        stage.announce()
        assert stage.instance.run() == OVER
        assert stage.asked_for == []
        assert "PEERLESS_BROKER_URL" not in stage.environments[0]

    def test_events_come_every_few_seconds_and_all_of_them(self, tmp_path: Path) -> None:
        def each(log: EventLog, second: int) -> None:
            log.emit("round_started", round=second, fields={"epoch": 0, "base_weights": "x"})

        stage = Stage(tmp_path, [Script(seconds=60, report=report(), every_second=each)])
        stage.announce()
        stage.instance.run()
        events = stage.events()
        assert [e["round"] for e in events if e["event"] == "round_started"] == list(range(60))
        found = stage.chunks()
        assert 10 <= len(found) <= 14
        gaps = [(b - a) / 1_000 for (a, _), (b, _) in itertools.pairwise(found)]
        assert max(gaps) <= chunks.CHUNK_SECONDS + 2 * participation.TICK_SECONDS
        assert all(moment >= int(events[-1]["t"] * 1_000) for moment, events in found), "named by when it was made"

    def test_another_run_that_has_been_started_meanwhile_is_served_before_the_end(self, tmp_path: Path) -> None:
        second = dataclasses.replace(PLACES, run="second")
        stage = Stage(tmp_path)

        def announce_second() -> None:
            made = dataclasses.replace(run_spec((5, 3)), run="second", places=second)
            stage.store.put(second.spec(), made.to_json())
            stage.store.put(current_place(BUCKET), Current(run="second", created=1.0).to_json())

        def report_second() -> None:
            stage.store.put(second.report(RANK), report(run="second").to_json())

        stage.scripts = [Script(report=report(), at_start=announce_second), Script(at_start=report_second)]
        stage.announce()
        assert stage.instance.run() == OVER
        assert [command[command.index("--run") + 1] for command in stage.commands] == [RUN, "second"]
        assert stage.released == 1


class TestWaiting:
    def test_a_run_that_comes_later_is_found(self, tmp_path: Path) -> None:
        stage = Stage(tmp_path, [FINE])

        def later(operation: str, place: Place) -> None:
            if stage.clock.monotonic() > 300 and (BUCKET, PLACES.spec().key) not in stage.store.objects:
                stage.store.before = None
                stage.announce()

        stage.store.before = later
        assert stage.instance.run() == OVER
        assert len(stage.commands) == 1
        assert stage.messages().count("waiting for a run") == 1
        assert stage.store.counts.gets < 60

    @pytest.mark.parametrize("known", [True, False])
    def test_without_a_run_to_take_part_in_it_ends(self, tmp_path: Path, known: bool) -> None:
        stage = Stage(tmp_path)
        if known:  # but this rank is through with it
            stage.announce()
            stage.store.put(PLACES.report(RANK), report().to_json())
        assert stage.instance.run() == OVER
        assert stage.commands == []
        assert stage.released == 1
        assert agent.WAIT_SECONDS <= stage.clock.monotonic() < agent.WAIT_SECONDS + 20

    def test_a_rank_that_the_run_does_not_have_ends_without_a_trace(self, tmp_path: Path) -> None:
        stage = Stage(tmp_path, settings=env(PEERLESS_RANK="2"))
        stage.announce()
        assert stage.instance.run() == OVER
        assert (stage.commands, stage.released) == ([], 1)
        assert not [key for _, key in stage.store.objects if "/reports/" in key or "stop" in key]

    def test_rights_that_are_not_known_everywhere_yet_are_waited_for(self, tmp_path: Path) -> None:
        stage = Stage(tmp_path, [FINE])
        stage.announce()

        def refuse(operation: str, place: Place) -> None:
            if stage.clock.monotonic() < 60:
                raise PermanentError(f"S3 refused {place}: 403 AccessDenied")

        stage.store.before = refuse
        assert stage.instance.run() == OVER
        assert len(stage.commands) == 1

    def test_a_store_that_keeps_refusing_ends_it_soon_and_one_that_is_away_later(self, tmp_path: Path) -> None:
        for error, least, most in (
            (PermanentError("S3 refused: 403"), agent.REFUSED_SECONDS, agent.REFUSED_SECONDS + 20),
            (StoreUnavailable("S3 is away"), agent.WAIT_SECONDS, agent.WAIT_SECONDS + 20),
        ):
            stage = Stage(tmp_path)

            def fail(operation: str, place: Place, error: Exception = error) -> None:
                raise error

            stage.store.before = fail
            assert stage.instance.run() == FAILED
            assert least <= stage.clock.monotonic() <= most
            assert stage.released == 1
            assert stage.messages("error") == [str(error)]


class TestAsked:
    def test_the_wish_is_passed_on_and_the_end_is_orderly(self, tmp_path: Path) -> None:
        ends = Script(seconds=1e6, asked_report=report(reason="interrupted"))
        stage = Stage(tmp_path, [ends])
        ends.every_second = lambda log, second: stage.instance.ask_to_end() if second == 30 else None
        stage.announce()
        assert stage.instance.run() == OVER
        assert stage.peers[0].asked == 1
        assert stage.released == 1, "the run is over for all"
        assert stage.clock.monotonic() < 40

    def test_every_wish_is_passed_on_once(self, tmp_path: Path) -> None:
        ends = Script(seconds=1e6, asked_status=None)
        stage = Stage(tmp_path, [ends])
        ends.every_second = lambda log, second: stage.instance.ask_to_end() if second in (30, 33) else None
        stage.announce()
        stage.instance.run()
        assert (stage.peers[0].asked, stage.peers[0].killed) == (2, 1)
        assert stage.clock.monotonic() < 30 + participation.END_SECONDS + 5

    def test_before_there_is_a_run_the_group_stays_as_it_is(self, tmp_path: Path) -> None:
        stage = Stage(tmp_path)

        def asked(operation: str, place: Place) -> None:
            if stage.clock.monotonic() > 20:
                stage.instance.ask_to_end()

        stage.store.before = asked
        assert stage.instance.run() == OVER
        assert stage.released == 0
        assert stage.clock.monotonic() < 60

    def test_a_peer_that_had_not_joined_leaves_its_rank_to_the_next_instance(self, tmp_path: Path) -> None:
        ends = Script(seconds=1e6, asked_status=-15)
        stage = Stage(tmp_path, [ends])
        ends.every_second = lambda log, second: stage.instance.ask_to_end() if second == 3 else None
        stage.announce()
        assert stage.instance.run() == OVER
        assert stage.released == 0
        assert not [key for _, key in stage.store.objects if "/reports/" in key or "stop" in key]
        assert stage.events()[-1]["event"] == "instance_ended"


class TestFailures:
    def test_a_run_that_failed_ends_the_instance_too(self, tmp_path: Path) -> None:
        failed = report(reason="failed", error="peer 0: it burnt")
        stage = Stage(tmp_path, [Script(status=1, report=failed)])
        stage.announce()
        assert stage.instance.run() == FAILED
        assert (len(stage.commands), stage.released) == (1, 1)
        assert left_report(stage) == failed

    def test_a_peer_that_dies_without_a_word_is_started_again(self, tmp_path: Path) -> None:
        stage = Stage(tmp_path, [DEAD, FINE])
        stage.announce()
        assert stage.instance.run() == OVER
        assert len(stage.commands) == 2
        assert [e["attempt"] for e in stage.events() if e["event"] == "instance_started"] == [1, 2]
        assert stage.messages("warning") == [
            "the peer was killed by signal 9 (perhaps for want of memory) without a word; starting it again in 5 s"
        ]

    def test_a_crash_loop_ends_and_everyone_learns_why(self, tmp_path: Path) -> None:
        stage = Stage(tmp_path, [DEAD] * 9)
        stage.announce()
        assert stage.instance.run() == FAILED
        assert (len(stage.commands), stage.released) == (3, 1)
        sentence = (
            "the peer was killed by signal 9 (perhaps for want of memory), 3 times; its output ends with: allocating"
        )
        assert stage.messages("error") == [sentence]
        assert [e["error"] for e in stage.events() if e["event"] == "failed"] == [sentence]
        assert Stop.from_json(stage.store.get(PLACES.stop())).reason == f"failed: peer 1: {sentence}"
        assert (left_report(stage).reason, left_report(stage).error) == ("failed", sentence)

    def test_a_crash_loop_over_many_instances_ends(self, tmp_path: Path) -> None:
        stage = Stage(tmp_path, [FINE])
        stage.announce()
        stage.claim(participation.MOST_INCARNATIONS)
        assert stage.instance.run() == FAILED
        assert (stage.commands, stage.released) == ([], 1)
        assert "was started 6 times without coming to an end" in (left_report(stage).error or "")

    @pytest.mark.parametrize("status", [1, 2])
    def test_a_peer_that_said_why_is_not_started_again(self, tmp_path: Path, status: int) -> None:
        said = [("failed", None, {"error": "the user's code here has digest none"})]
        stage = Stage(tmp_path, [Script(status=status, events=said), FINE])
        stage.announce()
        assert stage.instance.run() == FAILED
        assert len(stage.commands) == 1
        assert [e["error"] for e in stage.events() if e["event"] == "failed"] == [said[0][2]["error"]]
        assert left_report(stage).error == said[0][2]["error"]
        assert stage.released == 1

    def test_how_far_it_came_stands_in_its_report(self, tmp_path: Path) -> None:
        committed = {"contributors": [0, 1], "writer": 0, "samples": 2, "loss": 1.0, "validation_loss": None}
        lived = [
            ("member_claimed", None, {"incarnation": 2, "peer_id": "lab-0001"}),
            ("commit", 0, committed), ("commit", 1, committed), ("failed", 2, {"error": "no memory"}),
        ]  # fmt: skip
        stage = Stage(tmp_path, [Script(status=1, events=lived)])
        stage.announce()
        stage.instance.run()
        assert (left_report(stage).rounds, left_report(stage).incarnation) == (2, 2)

    def test_another_instance_that_holds_the_rank_keeps_its_group(self, tmp_path: Path) -> None:
        claimed = ("member_claimed", None, {"incarnation": 1, "peer_id": "lab-0001"})
        said = ("failed", 3, {"error": "rank 1 was taken over"})
        stage = Stage(tmp_path, [Script(status=1, events=[claimed, said], at_start=lambda: stage.claim(2))])
        stage.announce()
        assert stage.instance.run() == OVER
        assert stage.released == 0
        assert stage.clock.monotonic() > agent.STAND_BY_SECONDS
        assert not [key for _, key in stage.store.objects if "/reports/" in key or "stop" in key]

    def test_a_lost_secret_is_told_and_ends_the_instance(self, tmp_path: Path) -> None:
        stage = Stage(tmp_path)
        stage.announce()
        stage.secret_errors = [PermanentError("the broker user's secret arn:secret cannot be read: it is gone")]
        assert stage.instance.run() == FAILED
        assert (stage.commands, stage.released) == ([], 1)
        (failed,) = [e for e in stage.events() if e["event"] == "failed"]
        assert failed["error"] == "the broker user's secret arn:secret cannot be read: it is gone"
        assert (failed["run"], failed["rank"]) == (RUN, RANK)
        assert left_report(stage).error == failed["error"]

    def test_a_secret_that_is_late_is_waited_for(self, tmp_path: Path) -> None:
        stage = Stage(tmp_path, [FINE])
        stage.announce()
        stage.secret_errors = [TransientError("throttled")] * 3
        assert stage.instance.run() == OVER
        assert len(stage.asked_for) == 4

    def test_a_run_that_needs_a_broker_on_a_deployment_without_one(self, tmp_path: Path) -> None:
        stage = Stage(tmp_path, settings=env(PEERLESS_BROKER_ENDPOINT="", PEERLESS_BROKER_SECRET=""))
        stage.announce()
        assert stage.instance.run() == FAILED
        assert 'train with exchange.transport = "s3"' in (left_report(stage).error or "")

    def test_a_configuration_that_cannot_be_read(self, tmp_path: Path) -> None:
        stage = Stage(tmp_path)
        stage.announce()
        stage.store.put(PLACES.spec(), b"{}")
        assert stage.instance.run() == FAILED
        assert left_report(stage).error == "run configuration has version None; this build reads version 1"

    def test_an_error_of_its_own_ends_peer_and_instance(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: Any) -> None:
            raise ZeroDivisionError("division by zero")

        monkeypatch.setattr("peer_agent.instance.telemetry.Telemetry.heartbeat", broken)
        stage = Stage(tmp_path, [Script(seconds=1e6)])
        stage.announce()
        assert stage.instance.run() == FAILED
        assert stage.peers[0].killed == 1
        assert stage.released == 1
        assert left_report(stage).error == "internal error, ZeroDivisionError: division by zero"

    def test_a_group_that_cannot_be_switched_off_is_told_and_tried_again(self, tmp_path: Path) -> None:
        stage = Stage(tmp_path, [FINE])
        stage.announce()
        stage.group_errors = [TransientError("throttled")] * 2
        assert stage.instance.run() == OVER
        assert stage.released == 1
        stage = Stage(tmp_path / "other", [FINE])
        stage.announce()
        stage.group_errors = [PermanentError("group-1 cannot be set to 0 instances: AccessDenied")]
        assert stage.instance.run() == AGAIN
        assert "costs money until it is switched off" in stage.messages("error")[0]


class TestEventsAndAnUnreliableStore:
    def test_what_could_not_be_uploaded_comes_later(self, tmp_path: Path) -> None:
        def each(log: EventLog, second: int) -> None:
            log.emit("round_started", round=second, fields={"epoch": 0, "base_weights": "x"})

        stage = Stage(tmp_path, [Script(seconds=60, report=report(), every_second=each)])
        stage.announce()

        def away(operation: str, place: Place) -> None:
            if "/events/" in place.key and 10 < stage.clock.monotonic() < 63:
                raise StoreUnavailable("S3 is away")

        stage.store.before = away
        assert stage.instance.run() == OVER
        assert [e["round"] for e in stage.events() if e["event"] == "round_started"] == list(range(60))
        assert stage.messages("warning") == ["events could not be brought to S3: S3 is away"]

    def test_a_store_that_is_gone_at_the_end_does_not_keep_the_instance(self, tmp_path: Path) -> None:
        def away(operation: str, place: Place) -> None:
            if stage.clock.monotonic() > 10:
                raise StoreUnavailable("S3 is away")

        stage = Stage(tmp_path, [Script(status=1)])
        stage.announce()
        stage.store.before = away
        assert stage.instance.run() == FAILED
        assert stage.released == 1
        assert stage.clock.monotonic() < 300
        assert "the last events were lost on the way to S3" in stage.messages("error")

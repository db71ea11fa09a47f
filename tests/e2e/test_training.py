"""Whole runs through the command line: real peers, real workers, real RabbitMQ, the local AWS."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from safetensors.numpy import load_file

from tests.e2e.conftest import Workplace


@pytest.fixture(scope="module")
def first(workplace: Workplace) -> dict:
    """The run that several tests look at."""
    return workplace.train(run_dir="first")


def test_a_synchronous_run_ends_with_the_same_weights_everywhere(first: dict, workplace: Workplace) -> None:
    assert len(set(first["weights_sha256"].values())) == 1
    assert list(first["weights_sha256"]) == ["0", "1", "2"]
    assert first["reason"] == "epoch_limit"
    assert first["rounds"] == 2 * 3, "600 samples, 3 peers, batches of 40, 2 a round: 2.5, so 3 rounds an epoch"
    assert first["peers_lost"] == 0
    assert first["test_accuracy"] > 0.9
    assert first["state_machine_executions"] == 3 * first["rounds"]
    assert first["lambda_invocations"] == first["lambda_service"]["invocations"] == 3 * (2 + 2 + 1) * 2
    counted, billed = first["lambda_service"], first["cost"]
    assert billed["as_if_on_aws"]
    milliseconds = counted["billed_ms"] + counted["init_ms"]
    assert billed["use"]["lambda_gb_seconds"] == pytest.approx(milliseconds / 1_000 * 1_769 / 1_024)
    assert billed["use"]["state_transitions"] == first["state_machine_executions"] + first["lambda_invocations"]
    assert billed["parts"]["worker requests"] == pytest.approx(first["lambda_invocations"] * 0.0000002)
    assert billed["total"] == pytest.approx(sum(billed["parts"].values()))
    assert first["compression_ratio"] > 5, "a small model: headers count"
    folder = workplace.path / "first"
    assert {path.name for path in folder.iterdir()} == {
        "config.toml", "events.jsonl", "model.safetensors", "summary.json", "logs"
    }  # fmt: skip
    assert load_file(folder / "model.safetensors")
    stages = {"compute", "send", "receive", "update", "convergence"}
    assert stages <= set(first["stages"])
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert {event["rank"] for event in events} == {0, 1, 2}
    assert stages <= {event["stage"] for event in events if event["event"] == "stage"}


@pytest.mark.slow
def test_the_run_folder_repeats_the_run_bit_for_bit(first: dict, workplace: Workplace) -> None:
    done = workplace.peerless("train", "first/config.toml", "--local", "--json", "--run-dir", "again")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert again["weights_sha256"] == first["weights_sha256"]
    assert again["model_sha256"] == first["model_sha256"]


@pytest.mark.slow  # a whole run; tests/integration/test_compute_on_cloud.py compares the gradients, byte for byte
def test_the_instance_based_baseline_reaches_the_same(first: dict, workplace: Workplace) -> None:
    made = workplace.train("--set", "compute.service=local", run_dir="baseline")
    assert (made["lambda_invocations"], made["state_machine_executions"]) == (0, 0)
    assert made["gradient_service"] == "local"
    assert made["validation_loss"] == pytest.approx(first["validation_loss"], rel=1e-4)


@pytest.mark.slow  # three whole runs; tests/integration/test_compute_on_cloud.py compares the gradients
def test_every_form_of_the_state_machine_gives_the_same_weights(workplace: Workplace) -> None:
    sizes = ["--peers", "2", "--set", "batches_per_round=3", "--set", "epochs=1"]
    made = {
        mode: workplace.train(*sizes, "--set", f"compute.state_machine={mode}", run_dir=mode)
        for mode in ("inline_map", "distributed_map", "parallel")
    }
    assert {mode: summary["rounds"] for mode, summary in made.items()} == dict.fromkeys(made, 3)
    assert len({str(summary["weights_sha256"]) for summary in made.values()}) == 1


@pytest.mark.slow  # two whole runs; tests/integration/test_reduced_on_cloud.py compares the gradients
def test_reducers_give_the_weights_of_a_run_in_the_peers_own_processes(workplace: Workplace) -> None:
    """Rounds of ten batches: two levels."""
    settings = {"compute.reduce": "always", "batch_size": 20, "batches_per_round": 10, "epochs": 1, "peers": 2}
    sizes = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    reduced = workplace.train(*sizes, run_dir="reduced")
    alone = workplace.train(*sizes, "--set", "compute.service=local", run_dir="reduced-locally")
    assert reduced["weights_sha256"] == alone["weights_sha256"]
    lines = (workplace.path / "reduced" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [event for event in events if event["event"] == "not_reduced"] == []
    assert max(event["invocations"] for event in events if event["event"] == "worked") == 13
    assert reduced["lambda_service"]["invocations"] == reduced["lambda_invocations"]


@pytest.mark.slow  # tests/chaos/test_transports.py has it in `make test`
def test_an_asynchronous_run_has_one_common_end(workplace: Workplace) -> None:
    made = workplace.train("--set", "mode=async", "--set", "epochs=3", run_dir="async")
    assert made["mode"] == "async"
    assert len(set(made["weights_sha256"].values())) == 1
    assert made["test_accuracy"] > 0.9


@pytest.mark.slow  # tests/chaos/test_transports.py has it in `make test`
def test_s3_alone_gives_the_same_weights_without_a_broker(first: dict, lonely_workplace: Workplace) -> None:
    settings = ["exchange.transport=s3", "exchange.poll_seconds=0.2", "compute.service=local"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    made = lonely_workplace.train(*arguments, run_dir="alone")
    assert made["rounds"] == first["rounds"]
    assert len(set(made["weights_sha256"].values())) == 1
    assert made["validation_loss"] == pytest.approx(first["validation_loss"], rel=1e-4)
    logs = {path.name for path in (lonely_workplace.path / "alone" / "logs").iterdir()}
    assert "ministack.log" in logs
    assert "rabbitmq.log" not in logs, "no broker was started"


def test_a_script_trains_its_own_model_on_its_own_data(workplace: Workplace) -> None:
    (workplace.path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=workplace.path, env=workplace.environment(),
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "training: 2 peers" in done.stderr, "progress"
    told = json.loads(done.stdout)
    assert told["accuracy"] > 0.9
    assert sorted(told["layers"]) == ["net.0.bias", "net.0.weight", "net.2.bias", "net.2.weight"]
    assert told["events"] > 10
    assert (told["feedback"], told["hashes"]) == (True, 1), "error feedback trains, and alike on both peers"
    assert told["source"] == "npz", "the data were kept, so that the run can be repeated"


SCRIPT = """
import json
import torch
import peerless

HIDDEN = 16

class Net(torch.nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(channels, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, classes)
        )

    def forward(self, x):
        return self.net(x)

draw = torch.Generator().manual_seed(0)
y = torch.randint(2, (500,), generator=draw)
x = torch.randn(500, 4, generator=draw) + 3.0 * y[:, None]
run = peerless.train(
    {"name": "script", "peers": 2, "epochs": 3, "batch_size": 20, "data": {"validation_samples": 50},
     "exchange": {"error_feedback": True}},
    model=Net,
    dataset=torch.utils.data.TensorDataset(x, y),
    run_dir="from-script",
)
told = {
    "accuracy": run.summary["test_accuracy"],
    "layers": list(run.weights()),
    "events": len(run.metrics()),
    "source": run.config.data.source,
    "feedback": run.config.exchange.error_feedback,
    "hashes": len(set(run.summary["weights_sha256"].values())),
}
print(json.dumps(told))
"""

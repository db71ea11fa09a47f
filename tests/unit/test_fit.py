"""What a deployment has otherwise than configured, where that does no harm."""

from __future__ import annotations

from contract.config import from_mapping
from infra.settings import Settings
from peerless.launch.fit import differences


def test_a_deployment_as_configured_has_none() -> None:
    assert differences(from_mapping({}, "test"), Settings()) == []


def test_each_difference_is_told() -> None:
    config = from_mapping({"aws": {"instance_type": "c7g.large", "snap_start": True, "max_hours": 24.0}}, "test")
    assert differences(config, Settings(max_hours=6.0)) == [
        "aws.instance_type: deployed with t4g.medium, the configuration says c7g.large",
        "aws.snap_start: deployed with false, the configuration says true",
        "aws.max_hours: deployed with 6.0, the configuration says 24.0",
    ]
    assert differences(from_mapping({"aws": {"max_hours": 1.0}}, "test"), Settings()) == [], "a shorter run is fine"

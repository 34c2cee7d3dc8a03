"""What is written to MLflow's runs."""

from __future__ import annotations

from tasks.runs.tracking import Tracking


def test_a_name_that_mlflow_does_not_allow_is_written_with_other_letters(tracking: Tracking) -> None:
    run = tracking.start_run("mine", {})
    name = "nats_per_byte/c++, plain"
    tracking.log(run, parameters={name: 1}, metrics={name: 2.0}, tags={name: "three"})
    data = tracking.client.get_run(run).data
    cleaned = "nats_per_byte/c___ plain"
    assert (data.params[cleaned], data.metrics[cleaned], data.tags[cleaned]) == ("1", 2.0, "three")

"""What a promotion leaves with a version and its run, for candidacies as the gates would give them."""

from __future__ import annotations

from fusion_core.evaluation.decision import GateResult
from tasks.registry.promotion import move_champion
from tasks.registry.versions import version_by_alias
from tasks.runs.tracking import Tracking
from tasks.store.workplace import open_workplace
from tests.tasks.promotions import NAME, candidacy


def test_a_metric_of_any_name_can_be_promoted_on(versions: list[str]) -> None:
    judged = candidacy(NAME, versions[0], None)
    gate = GateResult(
        gate="must_not_drop_more_than", metric="nats_per_byte/c++", rival="pivot a", passed=True, reason="it held",
        candidate=1.0, other=1.0,
    )  # fmt: skip
    judged = judged.model_copy(update={"decision": judged.decision.model_copy(update={"gates": (gate,)})})
    assert move_champion(judged).promoted
    client = Tracking(open_workplace().settings, "fuseline").client
    assert version_by_alias(client, NAME, "champion") == versions[0]
    version = client.get_model_version(NAME, versions[0])
    key = "promotion.must_not_drop_more_than.nats_per_byte/c__.pivot a"
    assert version.tags[key] == client.get_run(version.run_id).data.tags[key] == "1.0000 | 1.0000 | passed"

"""What a promotion leaves with a version and its run, for candidacies as the gates would give them."""

from __future__ import annotations

from fusion_core.evaluation.decision import GateResult
from tasks.registry.promotion import leave_champion, move_champion
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


def test_who_decided_before_is_not_credited_with_what_is_forced(versions: list[str]) -> None:
    judged = candidacy(NAME, versions[0], None)
    gate = judged.decision.gates[0].model_copy(update={"metric": "mt_bench"})
    before = judged.model_copy(update={"decision": judged.decision.model_copy(update={"gates": (gate,)})})
    client = Tracking(open_workplace().settings, "fuseline").client

    def tags() -> list[dict[str, str]]:
        version = client.get_model_version(NAME, versions[0])
        return [version.tags, client.get_run(version.run_id).data.tags]

    others = [{key for key in there if not key.startswith("promotion.")} for there in tags()]
    leave_champion(before, "declined", "not today", "alice")
    for there in tags():
        assert there["promotion.decided_by"] == "alice" and "promotion.required.mt_bench" in there
    move_champion(judged, force_reason="it must go out")
    for there, other in zip(tags(), others, strict=True):
        assert set(there) - other == {
            f"promotion.{key}" for key in ("outcome", "reason", "at", "required.nats_per_byte")
        }
        assert there["promotion.outcome"] == "forced"

"""The gates between a candidate and the champion: scores in, a decision with every number out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist

from fusion_core.config import MustBeat, MustNotDrop, PromotionConfig
from fusion_core.errors import EvaluationError
from fusion_core.evaluation.bootstrap import CONFIDENCE
from fusion_core.evaluation.decision import Contender, Decision, GateResult
from fusion_core.evaluation.judged_scores import SUMMARIES
from fusion_core.evaluation.score_table import ScoreTable, compare
from fusion_core.record import Record

HELD_OUT = "nats_per_byte"
MEAN_OF_DOMAINS = "mean_of_domains"


class _UnansweredError(Exception):
    """A comparison that cannot be made; says why."""


class _Comparison(Record):
    candidate: float
    other: float
    gain: float
    low: float | None
    high: float | None
    dialogues: int | None = None


def decide(
    config: PromotionConfig,
    candidate: Contender,
    rivals: Mapping[str, Contender],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Decision:
    """Hold a candidate against every gate.

    Held-out scores are compared by a paired bootstrap over the dialogues that both models were scored on. Other scores
    come with an interval each; the difference's follows from both, taken as independent and normal, which is wider than
    a paired one would be.

    Parameters
    ----------
    config : PromotionConfig
    candidate : Contender
    rivals : mapping from 'champion', 'pivot', 'plain_sft' to Contender
        Those that there are. Without a champion its gates are held against the pivot.
    resamples, seed : int
        Draws of the bootstrap, and their seed.

    Returns
    -------
    Decision
        A gate whose numbers are missing is not passed, and says which.
    """
    table = _HeldOut(candidate, resamples, seed)
    results = [_required(candidate, metric) for metric in config.required]
    for gate in config.must_beat:
        results.append(_beat(gate, candidate, _rival(rivals, gate.rival), table))
    for limit in config.must_not_drop_more_than:
        results += _drops(limit, candidate, _rival(rivals, limit.rival), table)
    champion = rivals.get("champion")
    return Decision(
        candidate=candidate.name, champion=None if champion is None else champion.name, gates=tuple(results)
    )


def _rival(rivals: Mapping[str, Contender], name: str) -> Contender | None:
    return rivals.get(name, rivals.get("pivot") if name == "champion" else None)


def _required(candidate: Contender, metric: str) -> GateResult:
    present = [name for name in _names(candidate) if name == metric or name.startswith(f"{metric}/")]
    return GateResult(
        gate="required",
        metric=metric,
        passed=bool(present),
        reason=f"{candidate.name} was scored on {metric}"
        if present
        else f"{candidate.name} was not scored on {metric}; evaluate it first",
    )


def _names(contender: Contender) -> list[str]:
    held_out = [HELD_OUT] if contender.held_out is not None else []
    return [*held_out, *(name for name, measure in contender.measures.items() if math.isfinite(measure.mean))]


def _beat(gate: MustBeat, candidate: Contender, rival: Contender | None, table: _HeldOut) -> GateResult:
    name = rival.name if rival is not None else gate.rival
    unanswered = GateResult(
        gate="must_beat",
        metric=gate.metric,
        rival=name,
        passed=False,
        reason="",
        threshold=gate.margin,
        confidence=gate.confidence,
    )
    try:
        found = _compare(gate.metric, candidate, rival, gate.rival, gate.confidence or CONFIDENCE, table)
        if gate.confidence is not None and found.low is None:
            raise _UnansweredError(
                f"the difference in {gate.metric} to {name} has no interval (fewer than five dialogues in a domain, or "
                "none was computed); score more, or set `confidence: null`"
            )
    except _UnansweredError as reason:
        return unanswered.model_copy(update={"reason": str(reason)})
    floor = found.gain if gate.confidence is None or found.low is None else found.low
    passed = floor > gate.margin
    if gate.confidence is None:
        # The interval had no say, and has no share to be shown with.
        found = found.model_copy(update={"low": None, "high": None})
    margin = f" by more than {gate.margin:g}" if gate.margin else ""
    interval = f" (at least {floor:+.4g} at {gate.confidence:.0%})" if gate.confidence is not None else ""
    return unanswered.model_copy(
        update={
            **found.model_dump(),
            "passed": passed,
            "reason": f"{candidate.name} {'beats' if passed else 'does not beat'} {name}{margin} on {gate.metric}: "
            f"{found.candidate:.4f} against {found.other:.4f}, better by {found.gain:+.4g}{interval}",
        }
    )


def _drops(gate: MustNotDrop, candidate: Contender, rival: Contender | None, table: _HeldOut) -> list[GateResult]:
    name = rival.name if rival is not None else gate.rival
    unanswered = GateResult(
        gate="must_not_drop_more_than",
        metric=gate.metric,
        rival=name,
        passed=False,
        reason="",
        threshold=gate.limit,
    )
    try:
        metrics = _parts(gate.metric, candidate, rival, gate.rival, table)
    except _UnansweredError as reason:
        return [unanswered.model_copy(update={"reason": str(reason)})]
    results = []
    for metric in metrics:
        try:
            found = _compare(metric, candidate, rival, gate.rival, CONFIDENCE, table)
        except _UnansweredError as reason:
            results.append(unanswered.model_copy(update={"metric": metric, "reason": str(reason)}))
            continue
        passed = found.gain >= -gate.limit
        verb = "stays within" if passed else "drops more than"
        said = (
            f"{candidate.name} {verb} {gate.limit:g} of {name} on {metric}: {found.candidate:.4f} against "
            f"{found.other:.4f}, better by {found.gain:+.4g}"
        )
        results.append(
            unanswered.model_copy(
                update={**found.model_dump(), "metric": metric, "passed": passed, "reason": said}
                | {"confidence": CONFIDENCE if found.low is not None else None}
            )
        )
    return results


def _parts(metric: str, candidate: Contender, rival: Contender | None, role: str, table: _HeldOut) -> list[str]:
    if rival is None:
        raise _UnansweredError(f"there is no {role} to compare with on {metric}")
    if metric == HELD_OUT:
        return [f"{HELD_OUT}/{domain}" for domain in table.against(rival, CONFIDENCE).domains]
    prefix = f"{metric}/"
    # What the rival has and the candidate lacks is a drop that nobody measured, so it is asked for too.
    names = {name for one in (candidate, rival) for name in one.measures if name.startswith(prefix)}
    parts = sorted(name for name in names if name.removeprefix(prefix) not in SUMMARIES)
    if not parts:
        raise _UnansweredError(f"neither {candidate.name} nor {rival.name} has scores in parts of {metric}")
    return parts


def _compare(
    metric: str, candidate: Contender, rival: Contender | None, role: str, confidence: float, table: _HeldOut
) -> _Comparison:
    if rival is None:
        raise _UnansweredError(f"there is no {role} to compare with on {metric}")
    if metric.partition("/")[0] == HELD_OUT:
        return table.comparison(metric, rival, confidence)
    for contender in (candidate, rival):
        if metric not in contender.measures:
            raise _UnansweredError(f"{contender.name} was not scored on {metric}; evaluate it")
        if not math.isfinite(contender.measures[metric].mean):
            raise _UnansweredError(
                f"the score of {contender.name} on {metric} is {contender.measures[metric].mean}; evaluate it again"
            )
    ours, theirs = candidate.measures[metric], rival.measures[metric]
    if ours.scale != theirs.scale:
        raise _UnansweredError(
            f"{candidate.name} and {rival.name} were scored on {metric} in different ways ({ours.scale or 'unknown'} "
            f"and {theirs.scale or 'unknown'}); score both alike"
        )
    if ours.higher_is_better is None:
        raise _UnansweredError(f"more or less of {metric} is neither better nor worse; name another metric")
    gain = (ours.mean - theirs.mean) * (1.0 if ours.higher_is_better else -1.0)
    low = high = None
    widths = [(one.high - one.low) / 2 for one in (ours, theirs) if one.low is not None and one.high is not None]
    if len(widths) == 2:
        quantiles = [NormalDist().inv_cdf((1 + share) / 2) for share in (confidence, CONFIDENCE)]
        half = math.hypot(*widths) * quantiles[0] / quantiles[1]
        low, high = gain - half, gain + half
    return _Comparison(candidate=ours.mean, other=theirs.mean, gain=gain, low=low, high=high)


class _HeldOut:
    """Held-out comparisons with one candidate, each computed once."""

    def __init__(self, candidate: Contender, resamples: int, seed: int) -> None:
        self._candidate = candidate
        self._resamples, self._seed = resamples, seed
        self._tables: dict[tuple[str, float], ScoreTable] = {}

    def against(self, rival: Contender, confidence: float) -> ScoreTable:
        for contender in (self._candidate, rival):
            if contender.held_out is None:
                raise _UnansweredError(f"{contender.name} has no held-out scores in the store; run its recipe again")
        assert self._candidate.held_out is not None and rival.held_out is not None
        key = (rival.name, confidence)
        if key not in self._tables:
            try:
                self._tables[key] = compare(
                    {"candidate": self._candidate.held_out, "rival": rival.held_out},
                    "rival",
                    resamples=self._resamples,
                    seed=self._seed,
                    confidence=confidence,
                )
            except EvaluationError as error:
                raise _UnansweredError(
                    f"{self._candidate.name} and {rival.name} share no held-out dialogues ({error})"
                ) from None
        return self._tables[key]

    def comparison(self, metric: str, rival: Contender, confidence: float) -> _Comparison:
        table = self.against(rival, confidence)
        ours, theirs = table.row("candidate"), table.row("rival")
        part = metric.partition("/")[2]
        if part and part != MEAN_OF_DOMAINS and part not in table.domains:
            raise _UnansweredError(f"there is no held-out domain {part!r}; there are {', '.join(table.domains)}")
        if part == "":
            score, other = ours.overall, theirs.overall
        elif part == MEAN_OF_DOMAINS:
            score, other = ours.mean_of_domains, theirs.mean_of_domains
        else:
            score, other = ours.domains[part], theirs.domains[part]
        assert score.difference is not None
        return _Comparison(
            candidate=score.nats_per_byte,
            other=other.nats_per_byte,
            # Fewer nats are better, so the gain's interval is the difference's, turned round.
            gain=-score.difference,
            low=None if score.high is None else -score.high,
            high=None if score.low is None else -score.low,
            dialogues=table.dialogues.get(part, sum(table.dialogues.values())),
        )

"""The held-out part is decided by content, keeps its share of every domain, and never moves."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_core.dialogues.held_out_split import Part, choose, first_occurrences, scores, split


def make_ids(names: list[int]) -> np.ndarray:
    digests = b"".join(hashlib.sha256(str(name).encode()).digest()[:16] for name in names)
    return np.frombuffer(digests, np.uint8).reshape(-1, 16)


def test_score_is_a_salted_hash_of_the_id() -> None:
    ids = make_ids([1, 2])
    expected = [
        int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8, person=b"held-out").digest(), "big") for row in ids
    ]
    assert scores(ids, b"held-out").tolist() == expected
    many = make_ids(list(range(20_000)))
    held_out, choice = (scores(many, purpose) / 2.0**64 for purpose in (b"held-out", b"choice"))
    assert abs(np.corrcoef(held_out, choice)[0, 1]) < 0.03
    assert abs(held_out.mean() - 0.5) < 0.01 and abs(held_out.std() - 12**-0.5) < 0.01


def test_every_domain_keeps_its_share() -> None:
    ids = make_ids(list(range(60_000)))
    domains = np.repeat([0, 1, 2], [40_000, 15_000, 5_000]).astype(np.int32)
    parts = split(ids, ids, domains, 0.05, None)
    for domain in range(3):
        share = np.mean(parts[domains == domain] == Part.HELD_OUT)
        assert abs(share - 0.05) < 4 * (0.05 * 0.95 / np.sum(domains == domain)) ** 0.5


@settings(max_examples=150, deadline=None)
@given(
    names=st.lists(st.integers(0, 400), unique=True, min_size=1, max_size=120),
    kept=st.floats(0.1, 1.0),
    share=st.floats(0.05, 0.6),
    limit=st.none() | st.integers(1, 5),
    branches=st.integers(1, 4),
)
def test_rule_and_that_no_dialogue_moves(names, kept, share, limit, branches) -> None:
    # Dialogue n belongs to domain n % 3 and opens as the others of its domain with the same n // (3 * branches).
    def opening(name: int) -> int:
        return name % 3 + 3 * (name // (3 * branches))

    def divide(population: list[int]) -> dict[int, int]:
        domains = np.array([name % 3 for name in population], np.int32)
        openings = make_ids([opening(name) for name in population])
        return dict(zip(population, split(make_ids(population), openings, domains, share, limit), strict=True))

    fewer = names[: max(1, int(len(names) * kept))]
    score = {name: int(scores(make_ids([opening(name)]), b"held-out")[0]) for name in names}
    ids = {name: make_ids([name]).tobytes() for name in names}
    sides = []
    for population in (names, fewer):
        parts = divide(population)
        for domain in range(3):
            members = sorted((n for n in population if n % 3 == domain), key=lambda n: (score[n], ids[n]))
            values = sorted({score[name] for name in members})
            below = [value for value in values if value < share * 2.0**64]
            if len(values) > 1:
                below = (below or values[:1])[: len(values) - 1]
            held_out = [name for name in members if score[name] in below]
            assert {parts[name] for name in members if score[name] not in below} <= {Part.TRAIN}
            assert [parts[name] for name in held_out[:limit]] == [Part.HELD_OUT] * len(held_out[:limit])
            assert {parts[name] for name in held_out[len(held_out[:limit]) :]} <= {Part.SET_ASIDE}
            sides.append((domain, len(below), len(values), held_out))
    # Where the share alone decides for both populations, as in all but tiny domains, no dialogue changes sides.
    for (domain, *whole), (_, *part) in zip(sides[:3], sides[3:], strict=True):
        decided = all(
            0
            < sum(score[n] < share * 2.0**64 for n in population if n % 3 == domain)
            < sum(n % 3 == domain for n in population)
            for population in (names, fewer)
        )
        if decided:
            assert set(part[2]) == set(whole[2]) & set(fewer)


def test_other_domains_change_nothing() -> None:
    few, many = make_ids([1, 2, 3]), make_ids([1, 2, 3, *range(100, 900)])
    alone = split(few, few, np.zeros(3, np.int32), 0.001, 5)
    beside = split(many, many, np.repeat([0, 1], [3, 800]).astype(np.int32), 0.001, 5)
    assert alone.tolist() == beside[:3].tolist()
    assert sorted(alone.tolist()) == [Part.TRAIN, Part.TRAIN, Part.HELD_OUT]


def test_domain_wholly_below_the_share_still_trains_on_one() -> None:
    ids = make_ids([1, 2, 3])
    parts = split(ids, ids, np.zeros(3, np.int32), 1 - 1e-12, None)
    assert sorted(parts.tolist()) == [Part.TRAIN, Part.HELD_OUT, Part.HELD_OUT]
    assert np.argmax(scores(ids, b"held-out")) == parts.tolist().index(Part.TRAIN)


def test_dialogues_of_one_opening_stay_together() -> None:
    ids, openings = make_ids(list(range(900))), make_ids([name // 9 for name in range(900)])
    parts = split(ids, openings, np.zeros(900, np.int32), 0.3, None).reshape(100, 9)
    assert np.all(parts == parts[:, :1])
    assert 15 < np.sum(parts[:, 0] == Part.HELD_OUT) < 45


def test_first_occurrences_against_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    names, groups = rng.integers(0, 50, 400).tolist(), rng.integers(0, 3, 400).astype(np.int32)
    seen: set = set()
    seen_in_group: set = set()
    for marked, marked_in_group, name, group in zip(
        first_occurrences(make_ids(names)), first_occurrences(make_ids(names), groups), names, groups, strict=True
    ):
        assert marked == (name not in seen) and marked_in_group == ((name, group) not in seen_in_group)
        seen.add(name)
        seen_in_group.add((name, group))


@pytest.mark.parametrize("limit", [1, 7, 40, None])
def test_limit_takes_the_smallest_scores_of_the_distinct(limit: int | None) -> None:
    names = [*range(30), *range(10)]
    ids = make_ids(names)
    parts = choose(ids, np.zeros(40, np.int32), [limit])
    order = np.argsort(scores(ids[:30], b"choice"))
    expected = np.full(40, Part.DUPLICATE)
    expected[:30] = Part.NOT_CHOSEN
    expected[order[:limit]] = Part.TRAIN
    assert parts.tolist() == expected.tolist()


def test_dialogue_beyond_one_files_limit_is_kept_through_another() -> None:
    ids = make_ids([*range(10), *range(10)])
    parts = choose(ids, np.repeat([0, 1], 10).astype(np.int32), [3, None])
    assert np.sum(parts[:10] == Part.TRAIN) == 3 and np.sum(parts[:10] == Part.NOT_CHOSEN) == 7
    assert np.sum(parts[10:] == Part.TRAIN) == 7 and np.sum(parts[10:] == Part.DUPLICATE) == 3

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
    parts = split(ids, domains, 0.05, None)
    for domain in range(3):
        share = np.mean(parts[domains == domain] == Part.HELD_OUT)
        assert abs(share - 0.05) < 4 * (0.05 * 0.95 / np.sum(domains == domain)) ** 0.5


@settings(max_examples=80, deadline=None)
@given(
    names=st.lists(st.integers(0, 400), unique=True, min_size=1, max_size=120),
    kept=st.floats(0.1, 1.0),
    share=st.floats(0.05, 0.6),
    limit=st.none() | st.integers(1, 5),
)
def test_data_added_or_removed_never_moves_a_dialogue_into_or_out_of_training(names, kept, share, limit) -> None:
    domains = np.array([name % 3 for name in names], np.int32)
    whole = dict(zip(names, split(make_ids(names), domains, share, limit), strict=True))
    fewer = names[: max(1, int(len(names) * kept))]
    part = dict(zip(fewer, split(make_ids(fewer), domains[: len(fewer)], share, limit), strict=True))
    score = dict(zip(names, scores(make_ids(names), b"held-out") / 2.0**64, strict=True))
    for domain in range(3):
        for population, parts in ((names, whole), (fewer, part)):
            members = sorted((name for name in population if name % 3 == domain), key=score.__getitem__)
            below = sum(score[name] < share for name in members)
            held_out = min(max(below, 1), len(members) - 1) if len(members) > 1 else below
            scored = held_out if limit is None else min(held_out, limit)
            # The rule, member by member.
            expected = [Part.HELD_OUT] * scored + [Part.SET_ASIDE] * (held_out - scored)
            expected += [Part.TRAIN] * (len(members) - held_out)
            assert [parts[name] for name in members] == expected
        # Where the share decides for both populations, as in all but tiny domains, no dialogue changes sides.
        counts = [
            (len(members), sum(score[name] < share for name in members))
            for members in ([name for name in population if name % 3 == domain] for population in (names, fewer))
        ]
        if all(0 < below < size for size, below in counts):
            for name in fewer:
                if name % 3 == domain:
                    assert (whole[name] == Part.TRAIN) == (part[name] == Part.TRAIN)


def test_other_domains_change_nothing() -> None:
    alone = split(make_ids([1, 2, 3]), np.zeros(3, np.int32), 0.001, 5)
    beside = split(make_ids([1, 2, 3, *range(100, 900)]), np.repeat([0, 1], [3, 800]).astype(np.int32), 0.001, 5)
    assert alone.tolist() == beside[:3].tolist()
    assert sorted(alone.tolist()) == [Part.TRAIN, Part.TRAIN, Part.HELD_OUT]


def test_domain_wholly_below_the_share_still_trains_on_one() -> None:
    parts = split(make_ids([1, 2, 3]), np.zeros(3, np.int32), 1 - 1e-12, None)
    assert sorted(parts.tolist()) == [Part.TRAIN, Part.HELD_OUT, Part.HELD_OUT]
    assert np.argmax(scores(make_ids([1, 2, 3]), b"held-out")) == parts.tolist().index(Part.TRAIN)


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

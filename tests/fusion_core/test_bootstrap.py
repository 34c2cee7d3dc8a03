"""Paired bootstrap: reproducible, stratified, and close to what theory says."""

import numpy as np
import pytest

from fusion_core.errors import EvaluationError
from fusion_core.evaluation.bootstrap import percentile_interval, resampled_sums


def test_each_stratum_is_drawn_as_often_as_it_has_dialogues():
    strata = np.array([0, 0, 0, 1, 1])
    ones = np.ones((5, 1))
    sums = resampled_sums(ones, strata, resamples=300, seed=0)
    assert sums.shape == (300, 2, 1)
    assert (sums[:, 0, 0] == 3).all()
    assert (sums[:, 1, 0] == 2).all()


def test_one_draw_serves_all_columns():
    generator = np.random.default_rng(0)
    column = generator.normal(size=40)
    sums = resampled_sums(np.column_stack([column, 2 * column]), np.zeros(40, np.int64), resamples=100, seed=3)
    np.testing.assert_allclose(sums[:, 0, 1], 2 * sums[:, 0, 0])


def test_the_seed_decides_the_draws():
    values, strata = np.arange(10.0)[:, None], np.zeros(10, np.int64)
    first, again, other = (resampled_sums(values, strata, resamples=600, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_interval_of_a_mean_is_as_wide_as_its_standard_error_says():
    values = np.random.default_rng(5).normal(size=(400, 1))
    means = resampled_sums(values, np.zeros(400, np.int64), resamples=4000, seed=0)[:, 0, 0] / 400
    low, high = percentile_interval(means)
    standard_error = values.std() / 20
    assert high - low == pytest.approx(2 * 1.96 * standard_error, rel=0.06)
    assert low < values.mean() < high


def test_nothing_to_draw_from_is_an_error():
    with pytest.raises(EvaluationError, match="no dialogue"):
        resampled_sums(np.empty((0, 2)), np.empty(0, np.int64), resamples=10, seed=0)

"""A run's summary refuses parts that contradict each other."""

import pytest
from pydantic import ValidationError

from fusion_core.report.run_summary import CoverageRow, MergeSummary, TrainingCurve


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (
            TrainingCurve,
            {
                "target": "t",
                "lm_weight": 1,
                "steps": (1, 2),
                "lm_loss": (1,),
                "fusion_loss": (1,),
                "learning_rate": (1,),
            },
        ),
        (MergeSummary, {"method": "varm", "granularity": "matrix", "targets": ("a", "b"), "weights": {"x": (1.0,)}}),
        (
            CoverageRow,
            {
                "source": "s",
                "domain": "d",
                "positions": 10,
                "at_boundary": 5,
                "conditioned": 1,
                "fallen_back": 1,
                "mass_kept": 1,
                "source_won": 0,
            },
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(record, fields):
    with pytest.raises(ValidationError):
        record(**fields)

"""Numbers as people read them."""

from fusion_core.report.formats import format_bytes, format_count, format_seconds, format_share


def test_numbers_read_well():
    assert format_count(999_999) == "999,999"
    assert format_count(1_230_000) == "1.23 M"
    assert format_count(4.567e13) == "45.7 T"
    assert (format_count(5, "FLOPs"), format_count(5e12, "FLOPs")) == ("5 FLOPs", "5.00 TFLOPs")
    assert format_bytes(999) == "999 B"
    assert format_bytes(1.5e9) == "1.50 GB"
    assert [format_seconds(value) for value in (0.05, 3.21, 75, 702, 3 * 3600 + 120, 9e6)] == [
        "50 ms",
        "3.2 s",
        "75 s",
        "11 min 42 s",
        "3 h 02 min",
        "104.2 days",
    ]
    assert format_share(1, 3) == "33.3 %"
    assert format_share(0, 0) == "–"

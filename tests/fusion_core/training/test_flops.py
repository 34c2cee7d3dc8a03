"""The share of a device's peak."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig

from fusion_core.training.flops import FlopsMeter, peak_flops


def test_share_is_useful_flops_over_the_peak_of_all_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    config = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    meter = FlopsMeter(config, torch.device("cuda", 0), torch.bfloat16, processes=2)
    # Per layer 4 x 32 x 32 attention, 3 x 32 x 48 feed-forward, 2 x 32 norms; a last norm. Three passes' worth.
    parameters = 2 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32
    forward = 2 * parameters * 50 + 4 * 2 * 32 * 700 + 2 * 100 * 32 * 20
    assert meter.share(50, 700, 20, seconds=0.5) == pytest.approx(3 * forward / (0.5 * 2 * 989e12))


def test_share_is_left_out_where_the_peak_is_not_known():
    meter = FlopsMeter(LlamaConfig(), torch.device("cpu"), torch.bfloat16, processes=1)
    assert meter.share(50, 700, 20, seconds=0.5) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA L40", 181e12), ("Tesla T4", None)],
)
def test_peaks_by_name(name, peak):
    assert peak_flops(name) == peak

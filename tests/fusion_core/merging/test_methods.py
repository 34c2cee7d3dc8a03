"""Each method against a dense float64 reference, on tensors and on checkpoints of real model classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from fusion_core.merging import MergeSpec, merge_checkpoints
from tests.fusion_core.merging import references
from tests.fusion_core.merging.checkpoints import load, random_pivot, save_all, trained_from

SPECS = [
    *(MergeSpec(granularity=granularity) for granularity in ("model", "layer", "module", "matrix", "parameter")),
    MergeSpec(variation="abs"),
    MergeSpec(variation="abs", granularity="parameter"),
    MergeSpec(weighting="softmax", temperature=0.5),
    MergeSpec(method="linear"),
    MergeSpec(method="linear", weights=(3.0, 1.0, 2.0)),
    MergeSpec(method="task_arithmetic", scaling_coefficient=0.4),
    MergeSpec(method="task_arithmetic", weights=(0.5, -0.2, 1.0)),
    MergeSpec(method="slerp"),
    MergeSpec(method="slerp", weights=(0.2, 0.0, 0.8)),
    MergeSpec(method="ties", density=0.2),
    MergeSpec(method="ties", density=0.7, weights=(1.0, 0.5, 2.0), scaling_coefficient=0.8),
    MergeSpec(method="sce"),
    MergeSpec(method="sce", select_top_k=0.1),
]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 99,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
    "mistral": MistralConfig(**SIZES, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "gpt_neox": GPTNeoXConfig(**SIZES),
}


def identifier(spec: MergeSpec) -> str:
    settings = spec.model_dump(exclude_defaults=True)
    return "-".join([spec.method, *(f"{name}={value}" for name, value in settings.items() if name != "method")])


def in_float64(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def assert_near(merged: dict[str, torch.Tensor], expected: dict[str, np.ndarray], tolerance: float) -> None:
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        scale = max(np.abs(expected[name]).max(), 1e-3)
        error = np.abs(tensor.double().numpy() - expected[name]).max() / scale
        assert error <= tolerance, f"{name}: {error}"


@pytest.mark.parametrize("spec", SPECS, ids=identifier)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_merged_tensors_are_those_of_the_reference(tmp_path: Path, spec: MergeSpec, dtype: torch.dtype) -> None:
    pivot = random_pivot(dtype=dtype)
    targets = [trained_from(pivot, seed) for seed in (1, 2, 3)]
    folders = save_all(tmp_path, pivot, targets)
    merge_checkpoints(*folders, tmp_path / "merged", spec.model_copy(update={"dtype": "float32"}))
    expected = references.METHODS[spec.method](spec, in_float64(pivot), [in_float64(target) for target in targets])
    assert_near(load(tmp_path / "merged"), expected, 2e-6)


@pytest.mark.parametrize("name", MODELS)
def test_merged_models_of_real_classes_load_and_are_those_of_the_reference(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[name], dtype=torch.bfloat16)
    folders = [tmp_path / folder for folder in ("pivot", "target-0", "target-1", "target-2")]
    for number, folder in enumerate(folders):
        if number:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.02 * number)
        model.save_pretrained(folder)
    arrays = [in_float64(load(folder)) for folder in folders]
    for spec in SPECS:
        merge_checkpoints(folders[0], folders[1:], tmp_path / "merged", spec)
        tensors = load(tmp_path / "merged")
        # One rounding to bf16.
        assert_near(tensors, references.METHODS[spec.method](spec, arrays[0], arrays[1:]), 2**-8)
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    merged, report = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    logits = merged(torch.arange(10)[None]).logits
    assert torch.isfinite(logits).all()


def test_varm_by_hand(tmp_path: Path) -> None:
    pivot = {"w": torch.tensor([1.0, 1.0])}
    # Mean squared changes 1 and 3: weights 1/4 and 3/4.
    targets = [{"w": torch.tensor([2.0, 2.0])}, {"w": torch.tensor([1.0, 1.0 + 6.0**0.5])}]
    report = merge_checkpoints(*save_all(tmp_path, pivot, targets), tmp_path / "merged", MergeSpec())
    assert report.weights["w"] == pytest.approx([0.25, 0.75], rel=1e-6)
    torch.testing.assert_close(load(tmp_path / "merged")["w"], torch.tensor([1.25, 0.25 * 2 + 0.75 * (1 + 6.0**0.5)]))


def test_varm_weighs_equally_where_nothing_changed_and_only_there(tmp_path: Path) -> None:
    pivot = random_pivot()
    targets = [trained_from(pivot, seed) for seed in (1, 2)]
    for target in targets:
        target["model.norm.weight"] = pivot["model.norm.weight"]
    report = merge_checkpoints(*save_all(tmp_path, pivot, targets), tmp_path / "merged", MergeSpec())
    assert report.weights["model.norm.weight"] == [0.5, 0.5]
    assert all(weights != [0.5, 0.5] for name, weights in report.weights.items() if name != "model.norm.weight")
    assert torch.equal(load(tmp_path / "merged")["model.norm.weight"], pivot["model.norm.weight"])


def test_varm_by_parameter_keeps_entries_that_nobody_changed(tmp_path: Path) -> None:
    pivot = {"w": torch.tensor([0.5, 0.25, 3.0])}
    targets = [{"w": torch.tensor([0.5, 0.75, 3.0])}, {"w": torch.tensor([0.5, 0.25, 4.0])}]
    spec = MergeSpec(granularity="parameter")
    report = merge_checkpoints(*save_all(tmp_path, pivot, targets), tmp_path / "merged", spec)
    assert load(tmp_path / "merged")["w"].tolist() == [0.5, 0.75, 4.0]
    # Weights (1/2, 1/2), (1, 0) and (0, 1).
    assert report.weights["w"] == pytest.approx([0.5, 0.5])


def test_ties_by_hand(tmp_path: Path) -> None:
    pivot = {"w": torch.zeros(5)}
    targets = [{"w": torch.tensor([3.0, -2.0, 1.0, 5.0, 0.5])}, {"w": torch.tensor([1.0, 4.0, -3.0, -5.0, 0.1])}]
    spec = MergeSpec(method="ties", density=0.8)
    merge_checkpoints(*save_all(tmp_path, pivot, targets), tmp_path / "merged", spec)
    # The smallest entry of each is trimmed; the signs agree, clash, clash, draw; the last entry is trimmed in both.
    assert load(tmp_path / "merged")["w"].tolist() == [2.0, 4.0, -3.0, 0.0, 0.0]


def test_sce_by_hand(tmp_path: Path) -> None:
    pivot = {"w": torch.zeros(4)}
    targets = [{"w": torch.tensor([3.0, 1.0, 1.0, 0.0])}, {"w": torch.tensor([-1.0, 1.0, 1.5, 2.0])}]
    spec = MergeSpec(method="sce", select_top_k=0.5)
    report = merge_checkpoints(*save_all(tmp_path, pivot, targets), tmp_path / "merged", spec)
    # Variances 4, 0, 1/16, 1 select the first and the last: squares 9 and 5; -1 is the minority of the first.
    assert report.weights["w"] == pytest.approx([9 / 14, 5 / 14])
    torch.testing.assert_close(load(tmp_path / "merged")["w"], torch.tensor([3.0, 0.0, 0.0, 2.0]))


def test_sce_moves_no_more_than_it_selects(tmp_path: Path) -> None:
    pivot = random_pivot(dtype=torch.bfloat16)
    targets = [trained_from(pivot, seed, scale=0.01) for seed in (1, 2, 3)]
    spec = MergeSpec(method="sce", select_top_k=0.1)
    merge_checkpoints(*save_all(tmp_path, pivot, targets), tmp_path / "merged", spec)
    merged = load(tmp_path / "merged")
    for name, tensor in pivot.items():
        moved = (merged[name] != tensor).sum().item()
        assert moved <= max(1, int(0.1 * tensor.numel())), name
    assert (merged["model.embed_tokens.weight"] != pivot["model.embed_tokens.weight"]).any()


def test_sce_takes_the_first_of_entries_that_differ_by_as_much(tmp_path: Path) -> None:
    # Every entry holds the same deltas in another order: equal variances, although a fifth is no binary number.
    orders = torch.stack([torch.roll(torch.tensor([-2.0, 1.0, 0.0, 2.0, 7.0]), shift) for shift in range(5)])
    deltas = orders.repeat(200, 1).T * 2.0**-8
    pivot = {"w": torch.zeros(1000).bfloat16()}
    targets = [{"w": delta.contiguous().bfloat16()} for delta in deltas]
    spec = MergeSpec(method="sce", select_top_k=0.5)
    merge_checkpoints(*save_all(tmp_path, pivot, targets), tmp_path / "merged", spec)
    assert torch.nonzero(load(tmp_path / "merged")["w"])[:, 0].tolist() == list(range(500))


def test_dare_keeps_the_share_and_the_mean(tmp_path: Path) -> None:
    pivot = {"w": torch.zeros(200_000), "v": torch.zeros(200_000)}
    targets = [{"w": torch.ones(200_000), "v": torch.ones(200_000)}] * 2
    spec = MergeSpec(method="dare", density=0.25, weights=(1.0, 16.0), seed=3)
    merge_checkpoints(*save_all(tmp_path, pivot, targets), tmp_path / "merged", spec)
    merged = load(tmp_path / "merged")
    for tensor in merged.values():
        # Kept entries are rescaled by four: the sum tells which of the two targets kept the entry.
        values, counts = tensor.unique(return_counts=True)
        assert values.tolist() == [0.0, 4.0, 64.0, 68.0]
        shares = [0.75 * 0.75, 0.25 * 0.75, 0.75 * 0.25, 0.25 * 0.25]
        assert (counts / tensor.numel()).tolist() == pytest.approx(shares, abs=0.005)
    assert not torch.equal(merged["w"], merged["v"])


def test_dare_depends_on_the_seed_alone(tmp_path: Path) -> None:
    pivot = random_pivot()
    folders = save_all(tmp_path, pivot, [trained_from(pivot, seed) for seed in (1, 2)])
    outputs = []
    for number, seed in enumerate((5, 5, 6)):
        spec = MergeSpec(method="dare", density=0.5, seed=seed, dare_variant="ties")
        merge_checkpoints(*folders, tmp_path / f"merged-{number}", spec)
        outputs.append((tmp_path / f"merged-{number}" / "model.safetensors").read_bytes())
    assert outputs[0] == outputs[1] != outputs[2]


def test_dare_that_drops_nothing_is_task_arithmetic_or_ties(tmp_path: Path) -> None:
    pivot = random_pivot()
    folders = save_all(tmp_path, pivot, [trained_from(pivot, seed) for seed in (1, 2, 3)])
    for variant, method in (("linear", "task_arithmetic"), ("ties", "ties")):
        merge_checkpoints(*folders, tmp_path / "dare", MergeSpec(method="dare", dare_variant=variant))
        merge_checkpoints(*folders, tmp_path / "plain", MergeSpec(method=method))
        torch.testing.assert_close(load(tmp_path / "dare"), load(tmp_path / "plain"), atol=1e-6, rtol=1e-6)

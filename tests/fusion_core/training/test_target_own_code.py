"""A pivot with code of its own: trained with it, and published with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from fusion_core.config import FusionConfig, ModelConfig
from fusion_core.errors import ModelError
from fusion_core.merge_spec import MergeSpec
from fusion_core.merging import merge_checkpoints
from fusion_core.models.checks import check_own_code
from fusion_core.models.identity import resolve_model
from tests.fusion_core.training.test_processes import assert_same_weights
from tests.fusion_core.training_fixtures import settings, train, weights

CONFIGURATION = """
from transformers import LlamaConfig


class OwnConfig(LlamaConfig):
    model_type = "own"

    def __init__(self, logit_scale=1.0, **others):
        super().__init__(**others)
        self.logit_scale = logit_scale
"""
MODEL = """
from transformers import LlamaForCausalLM

from .configuration_own import OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *arguments, **options):
        output = super().forward(*arguments, **options)
        output.logits = output.logits * self.config.logit_scale
        return output
"""


@pytest.fixture
def own_pivot(pivot, tmp_path, monkeypatch) -> Path:
    """The tiny pivot, with a model class that transformers does not know."""
    # Code is copied into a cache and imported from there.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)
    folder = tmp_path / "own-pivot"
    folder.mkdir()
    for path in pivot.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "own",
        "architectures": ["OwnForCausalLM"],
        "logit_scale": 0.5,
        "auto_map": {
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_own.py").write_text(CONFIGURATION)
    (folder / "modeling_own.py").write_text(MODEL)
    return folder


def test_the_code_is_trusted_only_when_told_and_goes_with_the_target(own_pivot, shards, tmp_path):
    with pytest.raises(ModelError, match="trust_remote_code"):
        train(own_pivot, shards, tmp_path / "refused", settings())
    train(own_pivot, shards, tmp_path, settings(), trust_remote_code=True)
    target = tmp_path / "target"
    for name in ("config.json", "configuration_own.py", "modeling_own.py"):
        assert (target / name).read_bytes() == (own_pivot / name).read_bytes()
    model = AutoModelForCausalLM.from_pretrained(target, trust_remote_code=True)
    assert type(model).__name__ == "OwnForCausalLM"
    ids = torch.arange(10)[None]
    torch.testing.assert_close(model(ids).logits, 0.5 * model.lm_head(model.model(ids).last_hidden_state))
    # The loss has seen the model's own logits: as its plain class, another model is trained.
    config = json.loads((own_pivot / "config.json").read_text())
    plain = {name: value for name, value in config.items() if name not in ("auto_map", "logit_scale")}
    (own_pivot / "config.json").write_text(
        json.dumps(plain | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    )
    train(own_pivot, shards, tmp_path / "plain", settings())
    assert not torch.equal(weights(target)["lm_head.weight"], weights(tmp_path / "plain/target")["lm_head.weight"])


def test_the_code_goes_with_the_merged_model(own_pivot, shards, tmp_path):
    for seed in (0, 1):
        train(own_pivot, shards, tmp_path / str(seed), settings(seed=seed, epochs=1), trust_remote_code=True)
    targets = [tmp_path / str(seed) / "target" for seed in (0, 1)]
    merge_checkpoints(own_pivot, targets, tmp_path / "merged", MergeSpec())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", trust_remote_code=True)
    assert type(model).__name__ == "OwnForCausalLM" and model.config.logit_scale == 0.5


@pytest.mark.slow
def test_spread_weights_of_a_model_with_own_code(own_pivot, shards, tmp_path):
    train(own_pivot, shards, tmp_path / "one", settings(), trust_remote_code=True)
    config = settings(processes=2, strategy="fsdp")
    train(own_pivot, shards, tmp_path / "two", config, trust_remote_code=True)
    assert_same_weights(tmp_path / "one", tmp_path / "two")


def test_a_recipe_may_trust_its_pivot_but_no_other_repository(own_pivot):
    recipe = {
        "name": "recipe",
        "pivot": {"name": "pivot", "path": own_pivot, "trust_remote_code": True},
        "sources": [{"name": "a", "path": "a"}],
        "dialogues": {"files": [{"path": "data.jsonl"}]},
    }
    trusted = FusionConfig.model_validate(recipe).pivot
    check_own_code(resolve_model(trusted))
    path = own_pivot / "config.json"
    path.write_text(path.read_text().replace("modeling_own.Own", "somebody/else--modeling_own.Own"))
    with pytest.raises(ModelError, match=r"another repository \(somebody/else--modeling_own.OwnForCausalLM\)"):
        check_own_code(resolve_model(trusted))
    check_own_code(resolve_model(ModelConfig(name="untrusted", path=own_pivot)))

"""The target as one module from tokens to loss, and its way back to a plain checkpoint folder.

Legend: B dialogues, T tokens of the longest, N response positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from fusion_core.config import TrainingConfig
from fusion_core.errors import ModelError
from fusion_core.losses import FusionLoss, fusion_cross_entropy
from fusion_core.losses_mixture import Tail
from fusion_core.training_data import MicroBatch

STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.gguf")


class TargetModel(nn.Module):
    """The language model with the fusion loss on top; logits exist only inside the loss.

    Parameters
    ----------
    language_model : PreTrainedModel
        A causal model with a body (``base_model``) and output embeddings.
    lm_weight : float
    temperature : float
    tail : {"renormalise", "bucket", "weights"}
    """

    def __init__(self, language_model: PreTrainedModel, *, lm_weight: float, temperature: float, tail: Tail) -> None:
        super().__init__()
        self.language_model = language_model
        self._lm_weight = lm_weight
        self._temperature = temperature
        self._tail: Tail = tail

    def forward(self, batch: MicroBatch, normaliser: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, lm loss and fusion loss: sums over the positions, divided by `normaliser`."""
        body = self.language_model.base_model
        hidden_BTH = body(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        hidden_NH = hidden_BTH.flatten(0, 1)[batch.rows]
        if not len(batch.rows):
            # Keeps the backward pass of a process without data in step with the others.
            nothing = hidden_BTH.sum() * 0.0
            return nothing, nothing.detach(), nothing.detach()
        head = self.language_model.get_output_embeddings()
        loss: FusionLoss = fusion_cross_entropy(
            hidden_NH,
            head.weight,
            batch.labels,
            batch.token_ids,
            batch.log_probs,
            lm_weight=self._lm_weight,
            bias=getattr(head, "bias", None),
            temperature=self._temperature,
            tail=self._tail,
            logit_scale=_logit_scale(self.language_model.config),
            soft_cap=getattr(self.language_model.config, "final_logit_softcapping", None),
            normaliser=normaliser,
        )
        return loss.loss, loss.lm_loss, loss.fusion_loss


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Split the parameters that are trained into those with weight decay and, norms and biases, without."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the floating dtype that most tensors of a checkpoint folder are stored in.

    Raises
    ------
    ModelError
        If the folder has no safetensors in a plain floating dtype.
    """
    counts: Counter[str] = Counter()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        counts.update(entry["dtype"] for name, entry in header.items() if name != "__metadata__")
    known = [name for name, _ in counts.most_common() if name in STORED_DTYPES]
    if not known:
        raise ModelError(
            f"{folder} stores its weights as {sorted(counts) or 'no safetensors'}; a pivot needs safetensors in "
            "float32, bfloat16 or float16, so convert quantised weights first."
        )
    return STORED_DTYPES[known[0]]


def write_target(language_model: PreTrainedModel, state: dict[str, Tensor], pivot_folder: Path, output: Path) -> None:
    """Write a checkpoint folder: these weights in the pivot's stored dtype, everything else copied from the pivot.

    The folder appears whole: it is written beside `output` and renamed.

    Parameters
    ----------
    language_model : PreTrainedModel
        Knows the architecture and its tied weights.
    state : dict
        Its weights in float32, by name.
    pivot_folder : Path
        Gives config, generation config, tokenizer and chat template.
    output : Path
        Must not exist, or is replaced.
    """
    dtype = stored_dtype(pivot_folder)
    output.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        language_model.save_pretrained(building, state_dict=_rounded(state, dtype))
        for path in sorted(pivot_folder.iterdir()):
            if path.is_file() and not any(path.match(pattern) for pattern in WEIGHT_FILES):
                shutil.copyfile(path, building / path.name)
        _check_written(building, pivot_folder)
        building.chmod(0o755)
        if output.exists():
            shutil.rmtree(output)
        building.rename(output)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def tensor_names(folder: Path) -> set[str]:
    """Return the names of all tensors in a folder's safetensors."""
    names: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return names


def _rounded(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    # Tied weights share memory before and must after, or they would be written twice.
    rounded: dict[int, Tensor] = {}
    for tensor in state.values():
        rounded.setdefault(tensor.data_ptr(), tensor.to(dtype) if tensor.is_floating_point() else tensor)
    return {name: rounded[tensor.data_ptr()] for name, tensor in state.items()}


def _check_written(written: Path, pivot_folder: Path) -> None:
    # Merging pairs tensors by name, so a target has all of the pivot's; only a tied copy of the embedding may be missing.
    absent = sorted(tensor_names(pivot_folder) - tensor_names(written))
    tied = json.loads((pivot_folder / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings", False)
    if [name for name in absent if not (tied and name == "lm_head.weight")]:
        raise ModelError(
            f"The target lacks {len(absent)} tensors that {pivot_folder} has, such as {absent[0]!r}; this architecture "
            "renames its weights when saved and cannot be a pivot yet."
        )


def _logit_scale(config) -> float:
    if (scale := getattr(config, "logit_scale", None)) is not None:
        return float(scale)
    return 1.0 / float(getattr(config, "logits_scaling", None) or 1.0)


def target_model(language_model: PreTrainedModel, config: TrainingConfig, lm_weight: float, tail: Tail) -> TargetModel:
    """Return the module that is trained, in training mode."""
    if config.gradient_checkpointing:
        language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return TargetModel(language_model, lm_weight=lm_weight, temperature=config.temperature, tail=tail).train()

"""The target as one module from tokens to loss, and its way back to a plain checkpoint folder.

Legend: B dialogues, T tokens of the longest, N response positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from fusion_core.errors import ModelError
from fusion_core.extraction.output_heads import find_output_head
from fusion_core.extraction.top_k_logits import LogitTransform
from fusion_core.losses.cross_entropy import fusion_cross_entropy
from fusion_core.losses.mixture import Tail
from fusion_core.models.folders import copy_non_weight_files
from fusion_core.models.stored_tensors import stored_tensors
from fusion_core.packing import PACKING_TOLERANCE, packing_error
from fusion_core.training.data import MicroBatch

STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


class LossHead(NamedTuple):
    """How a language model's logits come about: the module that gives hidden states, and what follows the product.

    The module goes by its name: a second reference to it would list every weight of the body twice.
    """

    body: str
    transform: LogitTransform


def find_loss_head(language_model: PreTrainedModel, probe: Tensor) -> LossHead:
    """Find out what a causal model does between last hidden state and logits, by trying it on some text, int64 [T].

    Raises
    ------
    ModelError
        If the logits are not a product with the output embedding.
    """
    head = find_output_head(language_model, probe)
    if head is None:
        raise ModelError(
            f"The logits of {type(language_model).__name__} are not a product of its last hidden state with its "
            "output embedding, so that it cannot be trained as a pivot."
        )
    return LossHead(
        next(name for name, module in language_model.named_modules() if module is head.body), head.transform
    )


class TargetModel(nn.Module):
    """The language model with the fusion loss on top; logits exist only inside the loss.

    One module from tokens to loss, so that what wraps it (DDP, FSDP) sees every use of a weight, the output
    embedding's too.

    Parameters
    ----------
    language_model : PreTrainedModel
        A causal model.
    head : LossHead
        What lies between its last hidden state and its logits.
    lm_weight : float
    temperature : float
    tail : {"renormalise", "bucket", "weights"}
    """

    def __init__(
        self, language_model: PreTrainedModel, head: LossHead, *, lm_weight: float, temperature: float, tail: Tail
    ) -> None:
        super().__init__()
        self.language_model = language_model
        self._head = head
        self._lm_weight = lm_weight
        self._temperature = temperature
        self._tail: Tail = tail

    def forward(self, batch: MicroBatch, normaliser: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, lm loss and fusion loss: sums over the positions, divided by `normaliser`."""
        body = self.language_model.get_submodule(self._head.body)
        packed = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
        hidden_BTH = body(input_ids=batch.input_ids, use_cache=False, **packed).last_hidden_state
        head = self.language_model.get_output_embeddings()
        loss = fusion_cross_entropy(
            hidden_BTH.flatten(0, 1)[batch.rows],
            head.weight,
            batch.labels,
            batch.token_ids,
            batch.log_probs,
            lm_weight=self._lm_weight,
            bias=getattr(head, "bias", None),
            temperature=self._temperature,
            tail=self._tail,
            logit_scale=self._head.transform.scale,
            soft_cap=self._head.transform.soft_cap,
            normaliser=normaliser,
        )
        return loss.loss, loss.lm_loss, loss.fusion_loss


@torch.inference_mode()
def check_packing(language_model: PreTrainedModel, packed: MicroBatch, alone: MicroBatch) -> None:
    """Refuse packing where a dialogue's logits change with the one packed before it.

    Parameters
    ----------
    language_model : PreTrainedModel
    packed : MicroBatch
        Two dialogues in one row.
    alone : MicroBatch
        The second of them.

    Raises
    ------
    ModelError
        If the architecture does not keep packed dialogues apart.
    """
    assert packed.position_ids is not None
    error = packing_error(language_model, packed.input_ids, packed.position_ids, alone.input_ids)
    if not error <= PACKING_TOLERANCE:
        raise ModelError(
            f"{type(language_model).__name__} does not keep packed dialogues apart (logits differ by "
            f"{error:.2g} of their size); set `packing: false`."
        )


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Split the parameters that are trained into those with weight decay and, norms and biases, without."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]


def tied_names(model: nn.Module) -> dict[str, str]:
    """Return for each further name of a parameter that has several the first one."""
    first: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first.setdefault(parameter, name)
    return {
        name: first[parameter]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if first[parameter] != name
    }


def stored_dtypes(folder: Path) -> tuple[torch.dtype, dict[str, torch.dtype]]:
    """Return the floating dtype that most tensors of a checkpoint folder are stored in, and each tensor's own.

    Raises
    ------
    ModelError
        If the folder has no safetensors in a plain floating dtype.
    """
    found = {name: tensor.dtype for name, tensor in stored_tensors(folder).items()}
    counts = Counter(found.values())
    known = [name for name, _ in counts.most_common() if name in STORED_DTYPES]
    if not known:
        raise ModelError(
            f"{folder} stores its weights as {sorted(counts) or 'no safetensors'}; a pivot needs safetensors in "
            "float32, bfloat16 or float16, so convert quantised weights first."
        )
    return STORED_DTYPES[known[0]], {
        name: STORED_DTYPES[dtype] for name, dtype in found.items() if dtype in STORED_DTYPES
    }


def write_target(language_model: PreTrainedModel, state: dict[str, Tensor], pivot_folder: Path, output: Path) -> None:
    """Write a checkpoint folder: these weights in the pivot's stored dtypes, everything else copied from the pivot.

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
    usual, dtypes = stored_dtypes(pivot_folder)
    output.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        language_model.save_pretrained(building, state_dict=_rounded(state, usual, dtypes))
        copy_non_weight_files(pivot_folder, building)
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


def _rounded(state: dict[str, Tensor], usual: torch.dtype, dtypes: dict[str, torch.dtype]) -> dict[str, Tensor]:
    # Tied weights share memory before and must after, or they would be written twice.
    rounded: dict[int, Tensor] = {}
    for name, tensor in state.items():
        dtype = dtypes.get(name, usual) if tensor.is_floating_point() else tensor.dtype
        rounded.setdefault(tensor.data_ptr(), tensor.to(dtype))
    return {name: rounded[tensor.data_ptr()] for name, tensor in state.items()}


def _check_written(written: Path, pivot_folder: Path) -> None:
    # Merging pairs tensors by name, so a target has all of the pivot's; only a tied embedding's copy may be missing.
    absent = sorted(tensor_names(pivot_folder) - tensor_names(written))
    tied = json.loads((pivot_folder / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings", False)
    if [name for name in absent if not (tied and name == "lm_head.weight")]:
        raise ModelError(
            f"The target lacks {len(absent)} tensors that {pivot_folder} has, such as {absent[0]!r}; this architecture "
            "renames its weights when saved and cannot be a pivot yet."
        )

"""Spread over processes, a model is loaded whole by the first one alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fusion_core.ports import free_ports
from tests.conftest import REPOSITORY
from tests.fusion_core.training_fixtures import random_dialogues, write_fused_shards, write_tiny_llama

LAYERS = 16


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of a process's memory")
def test_the_other_processes_never_hold_the_model(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    whole = sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(tmp_path / "pivot")
    del model
    tiny = write_tiny_llama(tmp_path / "tiny")
    shard = write_fused_shards(tmp_path / "fused", tiny, random_dialogues(4), shards=1)[0]
    launch = ["torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    launch += ["--master-port", str(free_ports(1)[0]), "-m", "tests.fusion_core.spread_loading"]
    subprocess.run(
        [sys.executable, "-m", *launch, *map(str, (tmp_path, tmp_path / "pivot", tiny, shard))],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
    )
    first, second = (json.loads((tmp_path / f"memory-{rank}.json").read_text()) for rank in range(2))
    print(f"whole {whole / 1e6:.0f} MB, processes {first} and {second}")
    assert first["held"] + second["held"] == pytest.approx(whole, rel=0.01)
    # Its share, one block, the embeddings, and what the process allocates besides; loading the model whole takes twice
    # its size, the file's mapped pages included.
    assert second["peak"] < 0.85 * whole
    assert first["peak"] < 2.2 * whole

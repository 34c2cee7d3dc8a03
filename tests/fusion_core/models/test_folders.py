"""What is copied beside the weights, and what is not."""

from __future__ import annotations

import json
from pathlib import Path

from fusion_core.models.folders import copy_non_weight_files, set_config_dtype, write_chat_template


def test_copies_what_belongs_to_the_model_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "additional_chat_templates").mkdir(parents=True)
    kept = [
        "LICENSE",
        "additional_chat_templates/tool_use.jinja",
        "chat_template.jinja",
        "config.json",
        "tokenizer.json",
        "tokenizer.model",
    ]
    left = ["model.safetensors", "model.safetensors.index.json", "README.md", "trainer_state.json", "optimizer.pt"]
    for name in [*kept, *left]:
        (source / name).write_text(name, encoding="utf-8")
    # A hub snapshot is a folder of links.
    (source / "generation_config.json").symlink_to(source / "config.json")
    assert copy_non_weight_files(source, tmp_path / "output") == sorted([*kept, "generation_config.json"])
    copied = [path for path in (tmp_path / "output").rglob("*") if path.is_file()]
    assert len(copied) == len(kept) + 1 and not any(path.is_symlink() for path in copied)
    for name in kept:
        assert (tmp_path / "output" / name).read_text(encoding="utf-8") == name


def test_dtype_is_written_under_the_name_that_the_config_uses(tmp_path: Path) -> None:
    set_config_dtype(tmp_path, "float32")
    assert not (tmp_path / "config.json").exists()
    for name in ("dtype", "torch_dtype"):
        (tmp_path / "config.json").write_text(json.dumps({name: "bfloat16", "é": 1}), encoding="utf-8")
        set_config_dtype(tmp_path, "float32")
        assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == {name: "float32", "é": 1}


def test_a_result_gets_its_template_as_it_is_written_and_none_where_there_is_none(tmp_path: Path) -> None:
    write_chat_template(tmp_path, None)
    assert list(tmp_path.iterdir()) == []
    hostile = "{{ cycler.__init__.__globals__.os.system('touch owned') }}{% for i in range(10**12) %}\n"
    write_chat_template(tmp_path, hostile)
    assert [(path.name, path.read_text(encoding="utf-8")) for path in tmp_path.iterdir()] == [
        ("chat_template.jinja", hostile)
    ]

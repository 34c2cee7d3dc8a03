"""The cost model: sizes against real counts, formulas against worked cases, gaps said plainly."""

import huggingface_hub
import pytest
import torch
from rich.console import Console
from transformers import AutoConfig, Gemma2Config, LlamaConfig, LlamaForCausalLM, MistralConfig, MixtralConfig

from fusion_core.config import FusionConfig, ModelConfig
from fusion_core.dialogues import Dialogue, Turn
from fusion_core.encoding.encoder import Encoder
from fusion_core.errors import ModelError
from fusion_core.models.identity import count_parameters
from fusion_core.planning import (
    DeviceThroughput,
    EncodedCounts,
    ModelSize,
    Plan,
    count_encoded,
    measure_throughput,
    plan_costs,
    plan_table,
    read_model_size,
    size_from_config,
)
from fusion_core.planning.costs import TRAINING_EFFICIENCY
from fusion_core.planning.model_costs import forward_flops, training_flops, training_memory

DEVICE = DeviceThroughput(
    name="a made-up device", kind="cpu", flops_per_second={"float32": 1e9, "bfloat16": 4e9}, memory_bytes=10**10
)
SIZE = ModelSize(
    name="p",
    parameters=1_000_000,
    active_parameters=800_000,
    layers=2,
    hidden_size=100,
    attention_width=100,
    intermediate_size=300,
    vocabulary=1000,
    stored_bytes_per_parameter=2.0,
)
COUNTS = EncodedCounts(
    dialogues=10, tokens=1000, squared_tokens=100_000, positions=400, longest=100, counted=10, exact=True
)


def recipe(**changes) -> FusionConfig:
    fields = {
        "name": "plan",
        "pivot": {"name": "p", "path": "p"},
        "sources": [{"name": "a", "path": "a"}, {"name": "b", "path": "b"}],
        "dialogues": {"files": [{"path": "d.jsonl"}]},
    }
    return FusionConfig.model_validate(fields | changes)


def plan(config=None, *, models=None, counts=COUNTS, **changes) -> Plan:
    config = config or recipe()
    names = (config.pivot.name, *(source.name for source in config.sources))
    known = {name: counts for name in names} if counts else {}
    sizes = {name: SIZE for name in names} if models is None else models
    return plan_costs(config, models=sizes, train=known, held_out=known, device=DEVICE, fast_bfloat16=False, **changes)


def text_of(made: Plan) -> str:
    console = Console(width=160, record=True, color_system=None)
    console.print(plan_table(made))
    return console.export_text()


def test_size_of_a_real_checkpoint_equals_its_headers(stories_folder):
    size, gap = read_model_size(ModelConfig(name="stories", path=stories_folder))
    assert gap is None
    assert size.parameters == count_parameters(stories_folder)
    config = AutoConfig.from_pretrained(stories_folder)
    model = LlamaForCausalLM(config)
    outside = model.model.embed_tokens.weight.numel() + (
        0 if config.tie_word_embeddings else model.lm_head.weight.numel()
    )
    assert size.active_parameters == sum(p.numel() for p in model.parameters()) - outside
    assert size.stored_bytes_per_parameter in (2.0, 4.0)


@pytest.mark.parametrize(
    ("config", "billions", "active_billions"),
    [
        (MistralConfig(), 7.24, 6.98),
        # 12.9 billion of Mixtral's parameters serve one token, 0.26 billion of them in the two embeddings.
        (MixtralConfig(), 46.7, 12.62),
        (Gemma2Config(), 2.61, 2.02),
    ],
)
def test_published_sizes_come_out_of_configs_alone(config, billions, active_billions):
    size = size_from_config("model", config)
    assert size.parameters / 1e9 == pytest.approx(billions, rel=0.005)
    assert size.active_parameters / 1e9 == pytest.approx(active_billions, rel=0.005)


def test_the_inner_width_is_read_back_from_the_parameters():
    config = LlamaConfig(hidden_size=64, intermediate_size=160, num_hidden_layers=3, vocab_size=99)
    size = size_from_config("tiny", config)
    assert size.intermediate_size == pytest.approx(160, abs=2)


def test_flops_worked_by_hand():
    body = 2 * 800_000 * 1000
    attention = 4 * 2 * 100 * 100_000
    head = 2 * 1000 * 100 * 400
    assert forward_flops(SIZE, COUNTS) == body + attention + head
    assert training_flops(SIZE, COUNTS, checkpointing=False) == 3 * (body + attention + head)
    assert training_flops(SIZE, COUNTS, checkpointing=True) == 4 * (body + attention + head)


def test_flops_agree_with_what_torch_counts():
    """The body's and the head's products, counted by torch over a real forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    config = LlamaConfig(
        vocab_size=211, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros((2, 50), dtype=torch.long))
    counts = COUNTS.model_copy(update={"tokens": 100, "squared_tokens": 2 * 50 * 50, "positions": 100})
    assert forward_flops(size_from_config("tiny", config), counts) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_memory_grows_with_tokens_and_checkpointing_saves_most_of_it():
    plain = [training_memory(SIZE, tokens, checkpointing=False, dtype_bytes=4) for tokens in (0, 1000, 2000)]
    saved = [training_memory(SIZE, tokens, checkpointing=True, dtype_bytes=4) for tokens in (0, 1000, 2000)]
    assert plain[2] - plain[1] == pytest.approx(plain[1] - plain[0], abs=2)
    assert saved[0] == plain[0] > 16 * SIZE.parameters
    assert saved[2] - saved[1] < plain[2] - plain[1]


def test_rows_follow_the_method():
    made = plan()
    assert [(row.stage, row.subject) for row in made.rows] == [
        ("prepare", "dialogues"),
        ("extract", "p"),
        ("extract", "a"),
        ("extract", "b"),
        ("fuse", "a"),
        ("fuse", "b"),
        ("train", "a"),
        ("train", "b"),
        ("train", "plain-sft"),
        ("merge", "fused"),
        ("evaluate", "p"),
        ("evaluate", "a"),
        ("evaluate", "b"),
        ("evaluate", "target-a"),
        ("evaluate", "target-b"),
        ("evaluate", "plain-sft"),
        ("evaluate", "fused"),
    ]
    assert made.unknown == ()
    assert Plan.model_validate_json(made.model_dump_json()) == made


def test_joint_has_one_target_and_no_merge():
    made = plan(recipe(strategy="joint", evaluation={"plain_sft_control": False}))
    rows = {(row.stage, row.subject): row for row in made.rows}
    assert ("merge", "fused") not in rows and ("train", "joint") in rows
    assert [subject for stage, subject in rows if stage == "evaluate"] == ["p", "a", "b", "fused"]
    assert rows[("fuse", "joint")].seconds == pytest.approx(2 * 400 / 300_000)


def test_settings_move_the_costs():
    once, thrice = (plan(recipe(training={"epochs": epochs})) for epochs in (1, 3))
    seconds = [next(row.seconds for row in made.rows if row.stage == "train") for made in (once, thrice)]
    assert seconds[1] == pytest.approx(3 * seconds[0])
    half = plan(recipe(training={"epochs": 1, "precision": "bfloat16"}))
    faster = 4 * TRAINING_EFFICIENCY["cpu"]["bfloat16"] / TRAINING_EFFICIENCY["cpu"]["float32"]
    assert next(row.seconds for row in half.rows if row.stage == "train") == pytest.approx(seconds[0] / faster)
    wide = plan(recipe(extraction={"top_k": 50}))
    sizes = [next(row.bytes for row in made.rows if row.stage == "extract") for made in (once, wide)]
    assert sizes == [400 * 40, 400 * 200]


def test_cached_parts_cost_nothing():
    made = plan()
    everything = {(row.stage, row.subject): "cached" for row in made.rows}
    assert made.total("flops") > 0 and made.memory_bytes > 0
    done = made.with_status(everything)
    assert done.total("flops") == done.total("seconds") == done.total("bytes") == done.memory_bytes == 0
    assert "17 of 17 parts are in the store already" in text_of(done)


def test_what_is_not_known_is_said():
    made = plan(models={"p": SIZE}, counts=None, unknown=("Model 'a': its config.json cannot be fetched.",))
    assert any("dialogues could not be read" in line for line in made.unknown)
    assert sum("'a'" in line for line in made.unknown) == 1, "not said twice"
    assert any("Model 'b'" in line for line in made.unknown)
    text = text_of(made)
    assert "Not known: Model 'a'" in text and "cannot be estimated" in text and "?" in text
    assert "at least" in text_of(plan(models={"p": SIZE}))
    training = next(row for row in made.rows if row.stage == "train")
    assert training.memory_bytes is not None and training.seconds is None


def test_a_busy_machine_is_said():
    assert "busy" not in text_of(plan())
    busy = plan().model_copy(update={"device": DEVICE.model_copy(update={"busy_with": 4.2})})
    assert "4.2 processes for each thread" in text_of(busy)


def test_too_small_a_device_is_said():
    large = SIZE.model_copy(update={"parameters": 7_000_000_000})
    assert "needs more than" in text_of(plan(models={"p": large, "a": large, "b": large}))


def test_counts_are_exact_when_small_and_scaled_when_sampled(shared_tokenizer):
    encoder = Encoder(shared_tokenizer("qwen2_5"), 64, "qwen")
    dialogues = [
        Dialogue(f"d{index}", "x", (Turn("user", "Say it."), Turn("assistant", "word " * (1 + index % 5) + "end.")))
        for index in range(200)
    ]
    exact = count_encoded(dialogues, encoder)
    encoded = [encoder.encode(dialogue) for dialogue in dialogues]
    assert exact.exact and exact.counted == exact.dialogues == 200
    assert exact.tokens == sum(len(one.input_ids) for one in encoded)
    assert exact.positions == sum(len(one.response_positions) for one in encoded)
    assert exact.squared_tokens == sum(len(one.input_ids) ** 2 for one in encoded)
    sampled = count_encoded(dialogues, encoder, sample=50)
    assert not sampled.exact and sampled.counted == 50 and sampled.dialogues == 200
    assert sampled.tokens == pytest.approx(exact.tokens, rel=0.05)
    assert sampled == count_encoded(dialogues, encoder, sample=50), "the sample is seeded"


class Answers:
    """Stands for the hub's HTTP client: gives one file's bytes, or cannot connect."""

    def __init__(self, content: bytes | None) -> None:
        self.content = content
        self.asked = []

    def get(self, url, **settings):
        self.asked.append(url)
        if self.content is None:
            raise ConnectionError("no route")
        return self

    def raise_for_status(self):
        return self


def test_an_unreachable_hub_is_a_sentence_not_a_traceback(monkeypatch):
    client = Answers(None)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: client)
    size, gap = read_model_size(ModelConfig(name="far", hub="nobody/no-such-model"))
    assert size is None
    assert "'far'" in gap and "nobody/no-such-model" in gap and "unknown" in gap
    assert len(client.asked) == 1, "a plan does not wait for retries"


def test_a_config_from_the_hub_is_enough(monkeypatch):
    client = Answers(MistralConfig(num_hidden_layers=2).to_json_string().encode())
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: client)
    size, gap = read_model_size(ModelConfig(name="far", hub="nobody/no-such-model", revision="abc"))
    assert gap is None and size.layers == 2
    assert client.asked[0].endswith("nobody/no-such-model/resolve/abc/config.json")


def test_a_local_folder_without_config_is_an_error(tmp_path):
    with pytest.raises(ModelError, match=r"'gone'.*config\.json"):
        read_model_size(ModelConfig(name="gone", path=tmp_path))


def test_the_processor_is_measured():
    measured = measure_throughput(torch.device("cpu"), seconds=0.05)
    assert measured.kind == "cpu" and measured.memory_bytes > 1e8
    assert all(1e8 < rate < 1e14 for rate in measured.flops_per_second.values())

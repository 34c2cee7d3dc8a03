"""What MLflow needs to load a registered checkpoint where it lies: an MLmodel file, and the tokenizer beside it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import yaml

from fusion_core.models.identity import TOKENIZER_FILES, TOKENIZER_SOURCES
from tasks.store.interface import Store
from tasks.store.manifest import COMPONENTS, MLMODEL

TOKENIZER_FOLDER = f"{COMPONENTS}tokenizer"


def publish_loading_files(store: Store, address: str, folder: Path) -> None:
    """Put beside a checkpoint what ``mlflow.transformers.load_model`` looks for.

    The weights stay where they are and are not written again; the tokenizer's small files are, because MLflow takes
    them from a folder of their own.

    Parameters
    ----------
    store : Store
    address : str
        Of the checkpoint.
    folder : Path
        Its verified files on this machine.
    """
    names = ("config.json", *TOKENIZER_FILES, *TOKENIZER_SOURCES)
    for path in sorted({path for name in names for path in folder.glob(name)}):
        store.upload(f"{address}/{TOKENIZER_FOLDER}/{path.name}", path)
    store.write(f"{address}/{MLMODEL}", mlmodel().encode())


def mlmodel() -> str:
    """Return the description; transformers' automatic classes read from the checkpoint itself what it is."""
    flavor = {
        "code": None,
        "components": ["tokenizer"],
        "framework": "pt",
        "instance_type": "TextGenerationPipeline",
        "model_binary": ".",
        "pipeline_model_type": "AutoModelForCausalLM",
        "source_model_name": "fused by Fuseline",
        "task": "text-generation",
        "tokenizer_type": "AutoTokenizer",
        "transformers_version": version("transformers"),
    }
    return yaml.safe_dump({"flavors": {"transformers": flavor}, "mlflow_version": version("mlflow")}, sort_keys=False)

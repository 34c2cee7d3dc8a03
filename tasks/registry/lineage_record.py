"""What a fusion is made from, pinned by content, as the JSON file that its MLflow run keeps."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from fusion_core.config import FusionConfig, ModelConfig
from fusion_core.devices import compute_dtype, default_device
from fusion_core.models.identity import ResolvedModel
from fusion_core.recipes import recipe_yaml
from tasks.addresses import ResolvedFusion, digest_of
from tasks.code_version import CodeVersion, code_version, package_versions
from tasks.plan import stage_addresses

LINEAGE = "lineage.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class ModelOrigin(_Record):
    """One model that was read: where it came from, and what identifies it."""

    name: str
    role: Literal["pivot", "source"]
    origin: str
    revision: str | None
    digest: str
    tokenizer_digest: str
    dtype: str
    chat_template: str | None


class FileOrigin(_Record):
    """One data file or hub dataset."""

    origin: str
    revision: str | None
    digest: str
    domain: str


class StageAddress(_Record):
    """Where one stage's result lies in the object store."""

    stage: str
    subject: str
    address: str


class LineageRecord(_Record):
    """Everything that decides a fused model's bytes, and where each step of it lies.

    Parameters
    ----------
    name : str
        The recipe's name.
    address : str
        Of the fused model.
    dataset_digest : str
    models : tuple of ModelOrigin
        The pivot first.
    files : tuple of FileOrigin
    stages : tuple of StageAddress
        In the order of the method.
    recipe : str
        YAML, with every revision and precision pinned.
    code : CodeVersion
    packages : dict
        Package to version.
    device : str
        Such as 'cpu'.
    """

    name: str
    address: str
    dataset_digest: str
    models: tuple[ModelOrigin, ...]
    files: tuple[FileOrigin, ...]
    stages: tuple[StageAddress, ...]
    recipe: str
    code: CodeVersion
    packages: dict[str, str]
    device: str

    def stage(self, stage: str, subject: str) -> str | None:
        """Return the address of one stage, None where there is none."""
        return next((one.address for one in self.stages if (one.stage, one.subject) == (stage, subject)), None)


def lineage_record(fusion: ResolvedFusion) -> LineageRecord:
    """Write down what a resolved fusion is made from."""
    config = fusion.config
    stages = {
        ("prepare", "train"): fusion.dialogues("train"),
        ("prepare", "held_out"): fusion.dialogues("held_out"),
        **{key: address for key, address in stage_addresses(fusion).items() if key[0] != "prepare"},
    }
    return LineageRecord(
        name=config.name,
        address=fusion.merged(),
        dataset_digest=fusion.dataset_digest,
        models=(
            _origin("pivot", fusion.pivot, config.pivot),
            *(_origin("source", model, entry) for model, entry in zip(fusion.sources, config.sources, strict=True)),
        ),
        files=tuple(
            FileOrigin(
                origin=file.file.hub or str(file.file.path),
                revision=file.revision,
                digest=file.digest,
                domain=file.file.domain,
            )
            for file in fusion.files
        ),
        stages=tuple(
            StageAddress(stage=stage, subject=subject, address=address) for (stage, subject), address in stages.items()
        ),
        recipe=recipe_yaml(pinned_recipe(fusion), with_defaults=True),
        code=code_version(),
        packages=package_versions(),
        device=default_device().type,
    )


def pinned_recipe(fusion: ResolvedFusion) -> FusionConfig:
    """Return the recipe with commits for branches, and with the precisions that 'auto' meant on this machine."""
    config = fusion.config
    values: dict[str, Any] = config.model_dump(mode="json", exclude_unset=True)
    values["pivot"] |= _pins(fusion.pivot)
    for entry, model in zip(values["sources"], fusion.sources, strict=True):
        entry |= _pins(model)
    for entry, file in zip(values["dialogues"]["files"], fusion.files, strict=True):
        entry |= {} if file.revision is None else {"revision": file.revision}
    precision = str(compute_dtype(config.training.precision, default_device())).removeprefix("torch.")
    values["training"] = {**values.get("training", {}), "precision": precision}
    return FusionConfig.model_validate(values)


def fusion_identity(fusion: ResolvedFusion) -> str:
    """Return what a run and its continuation have in common: equal settings of equal models on equal data."""
    return digest_of(
        fusion.config.model_dump(mode="json"),
        fusion.merged(),
        fusion.dataset_digest,
        [model.digest for model in (fusion.pivot, *fusion.sources)],
    )


def _pins(model: ResolvedModel) -> dict[str, str]:
    return {"dtype": model.dtype} | ({} if model.revision is None else {"revision": model.revision})


def _origin(role: Literal["pivot", "source"], model: ResolvedModel, entry: ModelConfig) -> ModelOrigin:
    return ModelOrigin(
        name=model.name,
        role=role,
        origin=entry.hub or str(entry.path),
        revision=model.revision,
        digest=model.digest,
        tokenizer_digest=model.tokenizer_digest,
        dtype=model.dtype,
        # Only a template of the recipe's own: one that the model carries comes with the model.
        chat_template=model.chat_template if entry.chat_template is not None else None,
    )

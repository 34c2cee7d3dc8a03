"""What a merge did: which target weighs how much, in which tensor.

Shape legend: T targets, L layers, X matrices of a layer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusion_core.merge_spec import MergeSpec
from fusion_core.merging.granularity import layer_of
from fusion_core.merging.statistics import DeltaStatistics

JSON_NAME = "merge_report.json"
PARQUET_NAME = "merge_report.parquet"


@dataclass(frozen=True)
class MergeReport:
    """Weights and deltas per tensor; floating-point tensors only, the others are copied.

    Parameters
    ----------
    spec : MergeSpec
    pivot : str
        What the pivot is called.
    targets : list of str
        What the targets are called; every list below is in this order.
    weights : dict
        One weight per target for each tensor. varm by parameter: the mean over the entries. task_arithmetic, ties,
        dare: the factor of the target's delta.
    statistics : dict
        DeltaStatistics for each tensor.
    """

    spec: MergeSpec
    pivot: str
    targets: list[str]
    weights: dict[str, list[float]]
    statistics: dict[str, DeltaStatistics]

    @property
    def total(self) -> DeltaStatistics:
        """Statistics over the whole model."""
        return sum(self.statistics.values(), DeltaStatistics.zeros(len(self.targets)))

    def mean_weights(self) -> list[float]:
        """Return each target's weight in the whole model: the mean over tensors, by their entries."""
        sums = np.zeros(len(self.targets))
        for name, weights in self.weights.items():
            sums += np.array(weights) * self.statistics[name].count
        return (sums / max(self.total.count, 1)).tolist()

    def summary(self) -> dict[str, Any]:
        """Return the whole model's numbers in JSON form: what a model card or a run's metrics show."""
        return {
            "method": self.spec.method,
            "settings": self.spec.model_dump(mode="json", exclude_defaults=True),
            "pivot": self.pivot,
            "targets": self.targets,
            "parameters": self.total.count,
            "mean_weights": self.mean_weights(),
            **_delta_fields(self.total),
        }

    def to_json(self) -> str:
        """Return the report as JSON: the summary, and the same numbers for each tensor."""
        tensors = {
            name: {"weights": weights, "parameters": self.statistics[name].count} | _delta_fields(self.statistics[name])
            for name, weights in self.weights.items()
        }
        return json.dumps({**self.summary(), "tensors": tensors}, indent=1, ensure_ascii=False) + "\n"

    def save(self, folder: Path) -> None:
        """Write ``merge_report.json`` and ``merge_report.parquet`` (a row per tensor and target) into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JSON_NAME).write_text(self.to_json(), encoding="utf-8")
        self._save_parquet(folder / PARQUET_NAME)

    def heat_map(self, target: int) -> tuple[list[str], list[str], np.ndarray]:
        """Return layers [L], matrices of a layer [X] and one target's weights float64 [L, X], NaN where there is none.

        Tensors outside of the layers, such as embeddings, are not in it.
        """
        places = {name: layer_of(name) for name in self.weights}
        layers = list(dict.fromkeys(layer for layer, _ in places.values() if layer))
        layers.sort(key=lambda layer: (layer.rpartition(".")[0], int(layer.rpartition(".")[2])))
        matrices = sorted({matrix for layer, matrix in places.values() if layer})
        weights_LX = np.full((len(layers), len(matrices)), np.nan)
        for name, (layer, matrix) in places.items():
            if layer:
                weights_LX[layers.index(layer), matrices.index(matrix)] = self.weights[name][target]
        return layers, matrices, weights_LX

    def _save_parquet(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows: list[dict[str, Any]] = []
        for name, weights in self.weights.items():
            layer, matrix = layer_of(name)
            fields = _delta_fields(self.statistics[name])
            for number, target in enumerate(self.targets):
                rows.append(
                    {
                        "tensor": name,
                        "layer": layer,
                        "matrix": matrix,
                        "target_number": number,
                        "target": target,
                        "parameters": self.statistics[name].count,
                        "weight": weights[number],
                        "delta_norm": fields["delta_norms"][number],
                        "changed_share": fields["changed_shares"][number],
                        "cosines": fields["delta_cosines"][number],
                    }
                )
        schema = pa.schema(
            [
                ("tensor", pa.string()),
                ("layer", pa.string()),
                ("matrix", pa.string()),
                ("target_number", pa.int32()),
                ("target", pa.string()),
                ("parameters", pa.int64()),
                ("weight", pa.float64()),
                ("delta_norm", pa.float64()),
                ("changed_share", pa.float64()),
                ("cosines", pa.list_(pa.float64())),
            ]
        )
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")


def _delta_fields(statistics: DeltaStatistics) -> dict[str, Any]:
    return {
        "delta_norms": statistics.norms.tolist(),
        "delta_cosines": statistics.cosines.tolist(),
        "changed_shares": statistics.changed_share.tolist(),
    }

"""How FastChat's own programs read these files (fastchat/llm_judge/common.py, show_result.py), in pandas as they do."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd


def load_model_answers(folder: Path) -> dict[str, dict[int, dict]]:
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.open()]
        found[path.name[:-6]] = {row["question_id"]: row for row in rows}
    return found


def show_single(path: Path) -> dict[str, pd.Series]:
    everything = pd.read_json(path, lines=True)
    rows = everything[["model", "score", "turn"]]
    rows = rows[rows["score"] != -1]
    return {
        "turn_1": rows[rows["turn"] == 1].groupby("model")["score"].mean(),
        "turn_2": rows[rows["turn"] == 2].groupby("model")["score"].mean(),
        "overall": rows.groupby("model")["score"].mean(),
    }


def show_pairwise(path: Path, baseline: str) -> pd.DataFrame:
    rows = pd.read_json(path, lines=True)
    rows = rows[(rows["g1_winner"] != "error") & (rows["g2_winner"] != "error")]
    results = []
    for _, row in rows.iterrows():
        if row["g1_winner"] == "tie" or row["g1_winner"] != row["g2_winner"]:
            results += [{"model": row[name], "win": 0, "loss": 0, "tie": 1} for name in ("model_1", "model_2")]
        else:
            won, lost = ("model_1", "model_2") if row["g1_winner"] == "model_1" else ("model_2", "model_1")
            results.append({"model": row[won], "win": 1, "loss": 0, "tie": 0})
            results.append({"model": row[lost], "win": 0, "loss": 1, "tie": 0})
    counts = pd.DataFrame(results).groupby("model").sum()
    counts = counts[counts.index != baseline]
    played = counts["win"] + counts["loss"] + counts["tie"]
    counts["win_rate_adjusted"] = (counts["win"] + 0.5 * counts["tie"]) / played
    return counts


def load_single_judgments(path: Path) -> dict[tuple, dict]:
    found: dict[tuple, dict] = {}
    for line in path.open():
        row = json.loads(line)
        found.setdefault(tuple(row["judge"]), {})[(row["question_id"], row["model"])] = {
            "score": row["score"],
            "judgment": row["judgment"],
        }
    return found

"""Picks the dialogues of the experiments. Only needed to make them anew; they are committed under `data/`.

    python -m experiments.make_data --data CORPORA

CORPORA holds the corpora that `deployments.demo.raw_data` lists. No dialogue opens like one that an adapter of the
lab models was trained on: that draw is repeated here. Which side of the split a dialogue is on is decided as the
product decides it, by `held_out_share` and the hash of its opening.
"""

import argparse
import hashlib
import json
import random
import tempfile
from pathlib import Path

from deployments.demo import raw_data
from deployments.demo.build_models import MODELS
from deployments.demo.chat_tokenizers import byte_level_tokenizer
from deployments.demo.make_adapters import SEED, draw_pool
from fusion_core.config import DialogueFile, DialoguesConfig
from fusion_core.dialogues import Dialogue, load_dialogues, prepare_dialogues

DATA = Path(__file__).parent / "data"
MAX_TOKENS = 112
HELD_OUT_SHARE = 0.75
FUSING, VALIDATION, HELD_OUT = 40, 30, 150
CANDIDATES = 320


def trained_openings(corpora: Path) -> set[str]:
    """The openings of all dialogues that the lab models' adapters were trained on."""
    pools = (draw_pool(name, corpora, model.tokenizer(), random.Random(SEED)) for name, model in MODELS.items())
    return {raw_data.opening(dialogue) for pool in pools for dialogue, _ in pool}


def shortened(dialogue: raw_data.Dialogue, tokenizer, max_tokens: int) -> raw_data.Dialogue | None:
    """As many whole exchanges from the start as fit in the pivot's template; None where none does."""
    for length in range(len(dialogue) - len(dialogue) % 2, 0, -2):
        text = tokenizer.apply_chat_template(dialogue[:length], tokenize=False)
        if len(tokenizer(text, add_special_tokens=False).input_ids) <= max_tokens:
            return dialogue[:length]
    return None


def candidates(
    dialogues: list[raw_data.Dialogue],
    seen: set[str],
    tokenizer,
    count: int = CANDIDATES,
    max_tokens: int = MAX_TOKENS,
) -> list[raw_data.Dialogue]:
    """The first short dialogues in the order of their openings' hashes, no opening twice and none that was seen."""
    by_opening = {raw_data.opening(dialogue): dialogue for dialogue in reversed(dialogues)}
    order = sorted(by_opening.keys() - seen, key=lambda opening: hashlib.sha256(opening.encode()).hexdigest())
    short = (shortened(by_opening[opening], tokenizer, max_tokens) for opening in order)
    return [dialogue for _, dialogue in zip(range(count), filter(None, short), strict=False)]


def split(dialogues: list[raw_data.Dialogue], domain: str) -> tuple[list[Dialogue], list[Dialogue]]:
    """The training and the held-out side as a recipe with `HELD_OUT_SHARE` divides them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dialogues.jsonl"
        path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in dialogues), encoding="utf-8")
        file = DialogueFile(path=path, domain=domain)
        output = Path(folder) / "out"
        prepare_dialogues([(file, path)], DialoguesConfig(files=(file,), held_out_share=HELD_OUT_SHARE), output)
        sides = [sorted((output / side).glob("*.parquet")) for side in ("train", "held_out")]
        train, held_out = ([one for path in paths for one in load_dialogues(path)] for paths in sides)
    return train, held_out


def write(part: str, domain: str, dialogues: list[Dialogue], count: int) -> None:
    """Write the first `count` dialogues of one part of a domain."""
    if len(dialogues) < count:
        raise SystemExit(f"{domain} has {len(dialogues)} dialogues for {part}, {count} are needed; raise CANDIDATES")
    path = DATA / part / f"{domain}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"messages": [{"role": t.role, "content": t.content} for t in one.turns]} for one in dialogues[:count]]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the corpora that raw_data lists")
    corpora = parser.parse_args().data
    tokenizer, seen = byte_level_tokenizer(), trained_openings(corpora)
    for domain in raw_data.DOMAINS:
        found = candidates(raw_data.read_corpus(corpora, domain), seen, tokenizer)
        train, held_out = split(found, domain)
        write("fusing", domain, train, FUSING)
        write("validation", domain, held_out, VALIDATION)
        write("held_out", domain, held_out[VALIDATION:], HELD_OUT)
        print(f"{domain}: {len(found)} candidates, {len(train)} to fuse on, {len(held_out)} held out")


if __name__ == "__main__":
    main()

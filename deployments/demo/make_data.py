"""Picks the demo's dialogues and trains the pivot's tokenizer. Only needed to make them anew.

    python -m deployments.demo.make_data --data CORPORA

The same corpora (see `raw_data`) give the same files. The tokenizer is trained on what may be trained on, never on
a picked dialogue.
"""

import argparse
import hashlib
import json
from pathlib import Path

from deployments.demo import raw_data
from deployments.demo.chat_tokenizers import BYTE_LEVEL_FOLDER, body_tokenizer, train_byte_level

ROWS_PER_DOMAIN = 110
MAX_TOKENS = 256


def pick(dialogues: list[raw_data.Dialogue], tokenizer) -> list[raw_data.Dialogue]:
    """The first short dialogues in the order of their openings' hashes, no opening twice."""
    by_opening = {raw_data.opening(dialogue): dialogue for dialogue in reversed(dialogues)}
    order = sorted(by_opening, key=lambda opening: hashlib.sha256(opening.encode()).hexdigest())
    short = (by_opening[key] for key in order if len(tokenizer(raw_data.text(by_opening[key])).input_ids) <= MAX_TOKENS)
    return [dialogue for dialogue, _ in zip(short, range(ROWS_PER_DOMAIN), strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the corpora that raw_data lists")
    corpora = parser.parse_args().data

    tokenizer = body_tokenizer()
    for domain in raw_data.DOMAINS:
        picked = pick(raw_data.read_corpus(corpora, domain), tokenizer)
        lines = [json.dumps({"messages": dialogue}, ensure_ascii=False) + "\n" for dialogue in picked]
        (raw_data.COMMITTED / f"{domain}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{domain}: {len(picked)} dialogues")

    texts = (raw_data.text(d) for domain in raw_data.DOMAINS for d in raw_data.training_dialogues(corpora, domain))
    trained = train_byte_level(texts)
    trained.save_pretrained(BYTE_LEVEL_FOLDER)
    print(f"pivot's tokenizer: {len(trained)} entries")


if __name__ == "__main__":
    main()

"""The corpora that the demo's dialogues and adapters are made from, read into one form.

A dialogue is a list of messages, `{"role": "user" | "assistant", "content": str}`, contents stripped. The corpora
are not part of this repository; a folder holds them as their makers publish them:

| domain | file | from |
|---|---|---|
| mathematics | `gsm8k/train.jsonl` | openai/grade-school-math |
| code | `gpteacher/codegen-instruct.json` | teknium1/GPTeacher |
| dialogue | `sgd/sgd_dialogues_1500.jsonl` | 1,500 of google-research-datasets/dstc8-schema-guided-dialogue |
"""

import json
from pathlib import Path

Dialogue = list[dict[str, str]]

DOMAINS = ("mathematics", "code", "dialogue")
COMMITTED = Path(__file__).parent / "data"


def read_corpus(corpora: Path, domain: str) -> list[Dialogue]:
    """All dialogues of one domain, in the corpus's order."""
    if domain == "mathematics":
        return [_pair(row["question"], row["answer"]) for row in _rows(corpora / "gsm8k/train.jsonl")]
    if domain == "code":
        rows = json.loads((corpora / "gpteacher/codegen-instruct.json").read_text(encoding="utf-8"))
        pairs = [_pair(f"{row['instruction']}\n\n{row['input']}", row["response"]) for row in rows]
        return [pair for pair in pairs if all(message["content"] for message in pair)]
    rows = _rows(corpora / "sgd/sgd_dialogues_1500.jsonl")
    return [[{"role": m["role"], "content": m["content"].strip()} for m in row["messages"]] for row in rows]


def training_dialogues(corpora: Path, domain: str) -> list[Dialogue]:
    """The dialogues of one domain that may be trained on: those that open as no committed dialogue does."""
    committed = {opening(row["messages"]) for row in _rows(COMMITTED / f"{domain}.jsonl")}
    return [dialogue for dialogue in read_corpus(corpora, domain) if opening(dialogue) not in committed]


def opening(dialogue: Dialogue) -> str:
    """The first message without case and spacing, by which two versions of one dialogue are known as the same."""
    return " ".join(dialogue[0]["content"].lower().split())


def text(dialogue: Dialogue) -> str:
    """All contents of a dialogue, a line each."""
    return "\n".join(message["content"] for message in dialogue)


def _pair(question: str, answer: str) -> Dialogue:
    return [{"role": "user", "content": question.strip()}, {"role": "assistant", "content": answer.strip()}]


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

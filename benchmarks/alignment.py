"""Alignment: positions per second, plain-Python time warping, and the memory of every vocabulary map.

    python -m benchmarks.alignment                       real tokenizers beside the checkout, else two trained here
    python -m benchmarks.alignment --pivot qwen2_5 --source gpt2
    python -m benchmarks.alignment --skip mined

bytes: alignment and projection (conditioning, chain rule, k = 10) of shards whose dialogues have the given length, in
pivot positions per second of one core; budget 300,000, flat in the length; plain is ``gold_consistent: false``. dtw:
time warping alone, against the same written in plain Python, at least 100 times. Vocabulary maps run in a process of
their own each; memory is the peak over the process with both tokenizers loaded, and beside it stands what a dense table
of all pairs would take.

Rows are drawn: the gold token in nine of ten, the others by their frequency in the text, so that lookups touch memory
as real rows do. Times are processor seconds of this process, the best of several, so that what else the machine does
falls out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from rapidfuzz.distance import Levenshtein
from scipy import sparse
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fusion_core.alignment import BytePositions, SharedText, Spans, align_by_dtw, map_vocabulary, project_with_coverage
from fusion_core.alignment.positions import align_spans
from fusion_core.alignment.vocabulary import Method
from fusion_core.distributions import TopK
from fusion_core.encoding.token_bytes import token_byte_ends, token_bytes

SHARED = Path(__file__).resolve().parents[2] / "shared"
LENGTHS = (256, 1024, 2048, 8192)
TOP_K = 10
BUDGET_POSITIONS = 300_000
BUDGET_SPEED_UP = 100
SHARD_POSITIONS = 200_000
METHODS = ("bytes", "exact", "statistics", "mined")


def load(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer beside the checkout, a folder, or train a small one (``trained-<size>``)."""
    if name.startswith("trained-"):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=int(name.removeprefix("trained-")),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator([read_text()], trainer)
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    folder = SHARED / "tokenizers" / name
    return AutoTokenizer.from_pretrained(folder if folder.is_dir() else name, local_files_only=True)


def read_text() -> str:
    """Real chat text beside the checkout, else Python's own sources."""
    file = SHARED / "data" / "gsm8k" / "train.jsonl"
    if file.is_file():
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return "\n".join(f"{row['question']}\n{row['answer']}" for row in rows)
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(Path(json.__file__).parents[1].glob("*.py")))


def read_spans(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Spans:
    """Place the tokens of texts, one dialogue of one response each."""
    known = token_bytes(tokenizer)
    starts, ends, leads, labels, splits, base = [], [], [], [], [0], 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        own = token_byte_ends(tokenizer, text, ids)
        lead = np.zeros(len(own), np.int32)
        lead[0] = len(known.values[ids[0]]) - own[0]
        starts.append(base + np.concatenate([[0], own[:-1]]))
        ends.append(base + own)
        leads.append(lead)
        labels.append(np.array(ids, np.int32))
        splits.append(splits[-1] + len(ids))
        base += len(text.encode()) + 1
    joined = np.concatenate(labels)
    return Spans(
        np.concatenate(starts),
        np.concatenate(ends),
        np.concatenate(leads),
        joined,
        np.zeros(len(joined), bool),
        np.array(splits, np.int64),
    )


def draw_rows(spans: Spans, vocabulary: int) -> TopK:
    """Draw plausible top-k rows for gold tokens."""
    random = np.random.default_rng(0)
    frequency = np.bincount(spans.labels, minlength=vocabulary) / len(spans.labels)
    ids = random.choice(vocabulary, (len(spans.labels), TOP_K), p=frequency).astype(np.int32)
    hit = random.random(len(ids)) < 0.9
    ids[hit, 0] = spans.labels[hit]
    for place in range(1, TOP_K):
        ids[(ids[:, :place] == ids[:, place : place + 1]).any(axis=1), place] = -1
    log_probs = np.log(-np.sort(-random.dirichlet(np.full(TOP_K + 1, 0.3), len(ids))[:, :TOP_K], axis=1) + 1e-9)
    log_probs = np.where(ids < 0, -np.inf, log_probs).astype(np.float32)
    order = np.argsort(-log_probs, axis=1, kind="stable")
    label_log_probs = np.where(hit, log_probs[:, 0], -5.0).astype(np.float32)
    return TopK(
        np.take_along_axis(ids, order, 1), np.take_along_axis(log_probs, order, 1), label_log_probs, spans.row_splits
    )


def best_of(runs: int, work: Callable[[], object]) -> float:
    """Least processor seconds of some runs, after one that compiles and warms up."""
    work()
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return max(min(seconds), 1e-9)


def plain_python_dtw(pivot_tokens: list[str], source_tokens: list[str]) -> list[list[int]]:
    """The published procedure as it is usually written: one cell after the other."""
    rows, columns = len(source_tokens), len(pivot_tokens)
    table = np.full((rows + 1, columns + 1), np.inf)
    table[0, 0] = 0.0
    for row, source_token in enumerate(source_tokens):
        bare = source_token.replace("▁", "").replace("Ġ", "")
        for column, pivot_token in enumerate(pivot_tokens):
            cost = Levenshtein.distance(bare, pivot_token.replace("▁", "").replace("Ġ", ""))
            table[row + 1, column + 1] = cost + min(table[row, column + 1], table[row + 1, column], table[row, column])
    matches: list[list[int]] = [[] for _ in pivot_tokens]
    row, column = rows, columns
    while True:
        matches[column - 1].insert(0, row - 1)
        if row == column == 1:
            return matches
        move = int(np.argmin([table[row - 1, column - 1], table[row, column - 1], table[row - 1, column]]))
        row, column = row - (move != 1), column - (move != 2)


def cut(tokenizer: PreTrainedTokenizerBase, text: str, tokens: int) -> list[str]:
    """Cut a text into pieces of about so many tokens."""
    letters = int(tokens * len(text) / len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return [text[start : start + letters] for start in range(0, len(text) - letters + 1, letters)]


def measure_bytes(pivot: PreTrainedTokenizerBase, source: PreTrainedTokenizerBase, text: str) -> None:
    """Print positions per second of alignment and projection."""
    vocabulary = map_vocabulary(source, pivot, "bytes")
    print(f"\nbytes, alignment + projection, k = {TOP_K}")
    print(f"{'tokens':>8}{'positions/s':>14}{'of budget':>11}{'plain':>10}   inside")
    for length in LENGTHS:
        pieces = cut(pivot, text, length)
        pieces = pieces[: max(1, SHARD_POSITIONS // length)]
        spans, own = read_spans(pivot, pieces), read_spans(source, pieces)
        buffer = np.frombuffer(b"".join(piece.encode() + b"\xff" for piece in pieces), np.uint8)
        shared = SharedText(buffer, spans, own, token_bytes(pivot), token_bytes(source))
        rows = draw_rows(own, len(token_bytes(source)))

        def work(
            consistent: bool = True,
            spans: Spans = spans,
            own: Spans = own,
            shared: SharedText = shared,
            rows: TopK = rows,
        ) -> BytePositions:
            source_rows, bytes_read = align_spans(spans.starts, spans.ends, own.starts, own.ends)
            positions = BytePositions(source_rows, bytes_read, spans.row_splits)
            project_with_coverage(rows, positions, vocabulary, text=shared, gold_consistent=consistent)
            return positions

        rate = len(spans.labels) / best_of(5, work)
        plain = len(spans.labels) / best_of(5, partial(work, consistent=False))
        inside = float(np.mean(work().bytes_read > 0))
        print(f"{length:>8}{rate:>14,.0f}{rate / BUDGET_POSITIONS:>10.2f}x{plain:>10,.0f}   {inside:.3f}", flush=True)


def measure_dtw(pivot: PreTrainedTokenizerBase, source: PreTrainedTokenizerBase, text: str, longest: int) -> None:
    """Print positions per second of time warping, and against plain Python."""
    print(f"\ndtw\n{'tokens':>8}{'positions/s':>14}{'plain Python':>14}{'faster':>9}{'of budget':>11}")
    for length in LENGTHS:
        piece = cut(pivot, text, length)[0]
        ours, theirs = pivot.tokenize(piece), source.tokenize(piece)
        rate = len(ours) / best_of(3, partial(align_by_dtw, ours, theirs))
        if length > longest:
            print(f"{length:>8}{rate:>14,.0f}{'-':>14}", flush=True)
            continue
        start = time.process_time()
        expected = plain_python_dtw(ours, theirs)
        plain = len(ours) / (time.process_time() - start)
        assert expected == align_by_dtw(ours, theirs)
        speed_up = rate / plain
        print(
            f"{length:>8}{rate:>14,.0f}{plain:>14,.0f}{speed_up:>8,.0f}x{speed_up / BUDGET_SPEED_UP:>10.2f}x",
            flush=True,
        )


def status(name: str) -> int:
    """Read a figure of this process, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def forget_peak() -> int:
    """Let the peak of resident memory start again from what is resident now, and return that in KiB (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return status("VmRSS")


def map_in_process(pivot_name: str, source_name: str, method: Method) -> None:
    """Map once and print seconds, processor seconds and peak memory as JSON."""
    pivot, source = load(pivot_name), load(source_name)
    shape = (len(token_bytes(source)), len(token_bytes(pivot)))
    counts = None
    if method == "statistics":
        random = np.random.default_rng(0)
        pairs = (random.integers(0, shape[0], 1_000_000), random.integers(0, shape[1], 1_000_000))
        counts = sparse.csr_matrix(sparse.coo_matrix((np.ones(1_000_000, np.int64), pairs), shape=shape))
    before = forget_peak()
    start, start_cpu = time.perf_counter(), time.process_time()
    vocabulary = map_vocabulary(source, pivot, method, counts=counts)
    result = {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - start_cpu,
        "mib": (status("VmHWM") - before) / 1024,
        "dense_mib": shape[0] * shape[1] / 2**20,
        "mapped": float(np.mean(vocabulary >= 0)),
    }
    print(json.dumps(result))


def measure_maps(pivot_name: str, source_name: str, skip: list[str]) -> None:
    """Print time and memory of every vocabulary map."""
    print("\nvocabulary maps (statistics: a million counted pairs)")
    print(f"{'method':>12}{'seconds':>9}{'cpu s':>7}{'peak MiB':>10}{'dense table MiB':>17}{'mapped':>8}")
    for method in METHODS:
        if method in skip:
            continue
        command = [sys.executable, "-m", "benchmarks.alignment", "--map", method]
        command += ["--pivot", pivot_name, "--source", source_name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{method:>12}{found['seconds']:>9.1f}{found['cpu']:>7.1f}{found['mib']:>10.0f}"
            f"{found['dense_mib']:>17,.0f}{found['mapped']:>8.3f}",
            flush=True,
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real = (SHARED / "tokenizers").is_dir()
    parser.add_argument("--pivot", default="openchat_like" if real else "trained-8000")
    parser.add_argument("--source", default="qwen2_5" if real else "trained-16000")
    parser.add_argument("--longest-plain", type=int, default=2048, help="tokens up to which plain Python is run")
    parser.add_argument("--skip", nargs="*", default=[], choices=["speed", *METHODS])
    parser.add_argument("--map", choices=METHODS, help="only map once, in this process")
    arguments = parser.parse_args()
    if arguments.map:
        map_in_process(arguments.pivot, arguments.source, arguments.map)
        return
    pivot, source = load(arguments.pivot), load(arguments.source)
    print(f"pivot {arguments.pivot} ({len(pivot):,}), source {arguments.source} ({len(source):,})")
    if "speed" not in arguments.skip:
        text = read_text()[:900_000]
        measure_bytes(pivot, source, text)
        measure_dtw(pivot, source, text, arguments.longest_plain)
    measure_maps(arguments.pivot, arguments.source, arguments.skip)


if __name__ == "__main__":
    main()

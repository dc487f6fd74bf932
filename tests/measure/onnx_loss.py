"""Measure what ONNX recipes lose, at which size: python -m tests.measure.onnx_loss CHECKPOINT QUESTIONS.jsonl ...

    python -m tests.measure.onnx_loss medlite/demo/checkpoint medlite/demo/questions.jsonl \\
        [--blocks 32 64 128] [--stock-python PYTHON] [--limit 500] [--sensitivity]

Each question with its right answer is a text; what all texts begin with is not counted. KL divergence (nats a token,
lower is better) of each folder's distribution from the float32 graph's, mean over the tokens with its standard error;
the share of tokens whose likeliest next one stays. --stock-python names an interpreter with onnxruntime-genai's model
builder; its folders are measured too. It leaves an untied embedding in float32, so their size is also given as if that
had 8 bits, as ours has. --sensitivity measures instead what each lift to 8 bits gains over all int4, one at a time and
on top of q4m.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.score.scoring import log_softmax
from bench.text.distance import Kept, kl_of_token, mean_of
from quantize.match import match_checkpoint
from quantize.onnx.plan import plan_onnx
from quantize.onnx.recipes import ONNX_RECIPES, OnnxRecipe
from quantize.source.checkpoint import open_checkpoint
from quantize.stream.writer import write

BATCH = 16
CATEGORIES = ("output", "embedding", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
# Name -> extra options of the builder. k_quant_mixed gives 8 bits to the head and to some value and down projections.
STOCK: dict[str, tuple[str, ...]] = {
    "default": (),
    "k_quant": ("algo_config=k_quant",),
    "k_quant_last": ("algo_config=k_quant_last",),
    "k_quant_mixed": ("algo_config=k_quant_mixed",),
}


@dataclass(frozen=True)
class Loss:
    """kl_nats and its standard error a token; agreement: share of tokens with the same likeliest next one."""

    kl_nats: float
    standard_error: float
    agreement: float
    n_tokens: int


class Scorer:
    """Next-token log-probabilities of a folder's graph in plain ONNX Runtime, ours or onnxruntime-genai's."""

    def __init__(self, folder: Path) -> None:
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
        self.width, self.n_head_kv = decoder["head_size"], decoder["num_key_value_heads"]

    def __call__(self, rows: list[list[int]], first: int) -> NDArray[np.float64]:
        """(n_tokens of all rows from index `first` on, n_vocab); the padding on the right is left out again."""
        longest = max(map(len, rows))
        ids, mask = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        empty = np.zeros((len(rows), self.n_head_kv, 0, self.width), np.float32)
        feed: dict[str, Any] = {one.name: empty for one in self.session.get_inputs() if one.name.startswith("past")}
        logits = self.session.run(["logits"], feed | {"input_ids": ids, "attention_mask": mask})[0]
        return log_softmax(logits[:, first:][mask[:, first:].astype(bool)])


def read_texts(path: Path, tokenizer: Path, limit: int) -> list[list[int]]:
    """Token ids of every question with its right answer."""
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer))
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[: limit or None]]
    return [loaded.encode(f"Question: {row['question']}\nAnswer: {row['options'][row['answer']]}").ids for row in rows]


def measure(exact: Path, folder: Path, texts: list[list[int]]) -> Loss:
    """The loss of `folder` against `exact` on `texts`."""
    reference, scorer = Scorer(exact), Scorer(folder)
    shared = next((i for i, column in enumerate(zip(*texts, strict=False)) if len(set(column)) > 1), 0)
    divergences: list[float] = []
    same: list[bool] = []
    for first in range(0, len(texts), BATCH):
        batch = texts[first : first + BATCH]
        a, b = reference(batch, shared), scorer(batch, shared)
        divergences += [kl_of_token(Kept(None, p), q)[0] for p, q in zip(a.astype(np.float32), b, strict=True)]
        same += list(a.argmax(axis=1) == b.argmax(axis=1))
    found = mean_of(np.asarray(divergences))
    return Loss(found.value, found.standard_error, float(np.mean(same)), len(divergences))


def make_ours(source: Path, target: Path, recipe: OnnxRecipe, block: int) -> Path:
    write([plan_onnx(match_checkpoint(open_checkpoint(source)), recipe, block=block).output(target)])
    return target


def lifts() -> Iterator[OnnxRecipe]:
    """All int4 with one category, or the first layer, at 8 bits; then what q4m lifts, and more."""
    q4, q4m = ONNX_RECIPES["q4"], ONNX_RECIPES["q4m"]
    yield q4
    for category in CATEGORIES:
        yield replace(q4, name=f"q4 + {category}", int8=(category,))
    yield replace(q4, name="q4 + first layer", n_int8_layers=1)
    yield replace(q4m, name="q4m - first layer", n_int8_layers=0)
    yield q4m
    for category in (one for one in CATEGORIES if one not in q4m.int8):
        yield replace(q4m, name=f"q4m + {category}", int8=(*q4m.int8, category))
    yield replace(q4m, name="q4m + second layer", n_int8_layers=2)


def make_stock(python: str, source: Path, target: Path, options: tuple[str, ...], block: int) -> Path:
    """A folder of onnxruntime-genai's builder. Its accuracy level 4 is that of our graphs."""
    command = [python, "-m", "onnxruntime_genai.models.builder", "-i", str(source.resolve()), "-o", str(target)]
    command += ["-p", "int4", "-e", "cpu", "-c", f"{target}.cache"]
    command += ["--extra_options", "accuracy_level=4", f"block_size={block}", *options]
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=target.parent, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return target


def n_bytes_of(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))


def folders(arguments: argparse.Namespace, home: Path) -> Iterator[tuple[str, Path, int]]:
    """Name, folder, and bytes that a float32 embedding takes more than ours of 8 bits."""
    config = json.loads((arguments.source / "config.json").read_text())
    extra = int(config["vocab_size"] * config["hidden_size"] * (4 - 1)) if not config["tie_word_embeddings"] else 0
    for block in arguments.blocks:
        for recipe in lifts() if arguments.sensitivity else (ONNX_RECIPES[name] for name in ("q4", "q4m", "q8")):
            target = home / f"{recipe.name}-{block}"
            yield f"{recipe.name} b{block}", make_ours(arguments.source, target, recipe, block), 0
        for name, options in STOCK.items() if arguments.stock_python else ():
            target = home / f"stock-{name}-{block}"
            lookup = config["vocab_size"] * config["hidden_size"] * 2 // block
            made = make_stock(arguments.stock_python, arguments.source, target, options, block)
            yield f"stock {name} b{block}", made, extra - lookup


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--blocks", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--stock-python", help="interpreter with onnxruntime-genai and its builder's packages")
    parser.add_argument("--limit", type=int, default=0, help="of the questions (default: all)")
    parser.add_argument("--sensitivity", action="store_true", help="lift one category after the other to 8 bits")
    arguments = parser.parse_args()
    texts = read_texts(arguments.questions, arguments.source / "tokenizer.json", arguments.limit)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        exact = make_ours(arguments.source, home / "fp32", ONNX_RECIPES["fp32"], 32)
        print(f"{arguments.source.name}, {len(texts)} texts, {date.today()}")
        print(f"{'':24} {'MB':>7} {'MB with int8 embedding':>23} {'KL nats':>10} {'+-':>9} {'same top-1':>11}")
        for label, folder, extra in folders(arguments, home):
            loss, n_bytes = measure(exact, folder, texts), n_bytes_of(folder)
            print(
                f"{label:24} {n_bytes / 1e6:7.2f} {(n_bytes - extra) / 1e6:23.2f} {loss.kl_nats:10.5f} "
                f"{loss.standard_error:9.5f} {loss.agreement:11.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

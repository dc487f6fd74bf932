"""Train the demo checkpoint: python -m medlite.demo.train [--out DIR] [--seed N] [--steps N] [--threads N].

Writes the checkpoint folder and the questions. CPU only, seeded; needs the torch extra.
"""

import argparse
import json
import math
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlite.demo import checkpoint_path
from medlite.demo.choices import LETTERS, prompt
from medlite.demo.corpus import Corpus, load_corpus, tokenizer_texts
from medlite.demo.knowledge import all_facts
from medlite.demo.questions import build_questions, write_questions
from medlite.demo.tokenizer import BOS, EOS, EOT, write_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from medlite.demo.batches import Batch
    from medlite.demo.model import Shape, Weights

N_WATCHED = 300
"""Questions scored while training, to watch it. No weights are chosen by them; what else was, the README tells."""


@dataclass(frozen=True)
class Settings:
    """What a run depends on besides the corpus. Rows are rows of a step."""

    seed: int = 0
    steps: int = 1200
    threads: int = 1
    question_rows: int = 48
    statement_rows: int = 6
    chat_rows: int = 16
    peak_rate: float = 2e-3
    last_rate: float = 2e-5
    warmup_steps: int = 150
    weight_decay: float = 0.05
    clip_norm: float = 1.0

    def rate(self, step: int) -> float:
        """Return the learning rate: linear warmup, then a cosine down to last_rate."""
        if step < self.warmup_steps:
            return self.peak_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.last_rate + (self.peak_rate - self.last_rate) * 0.5 * (1 + math.cos(math.pi * done))


def cloze_accuracy(weights: "Weights", shape: "Shape", tokenizer: "Tokenizer", records: list[dict[str, Any]]) -> float:
    """Return the share of records whose right option is the likeliest answer, per character, in 0..1.

    Source: bench/ask/prompts.py, cloze: the sum of an option's log-probabilities over its length in characters.
    """
    import torch

    from medlite.demo.batches import Row, stack
    from medlite.demo.model import hidden_states, logits_at

    n_right = 0
    with torch.no_grad():
        for start in range(0, len(records), 32):
            part = records[start : start + 32]
            rows = []
            for record in part:
                head = tokenizer.encode(prompt(record["question"])).ids
                for option in record["options"].values():
                    tail = tokenizer.encode(f" {option}", add_special_tokens=False).ids
                    rows.append(Row(head + tail, list(range(len(head) - 1, len(head) + len(tail) - 1))))
            batch = stack(rows)
            logits = logits_at(weights, hidden_states(weights, shape, batch.tokens), batch.rows, batch.columns)
            found = torch.log_softmax(logits, dim=-1).gather(1, batch.targets[:, None])[:, 0]
            sums = torch.zeros(len(rows)).index_add_(0, batch.rows, found).view(-1, 4)
            lengths = torch.tensor([[len(option) for option in record["options"].values()] for record in part])
            chosen = (sums / lengths).argmax(dim=1).tolist()
            n_right += sum(LETTERS[c] == record["answer"] for c, record in zip(chosen, part, strict=True))
    return n_right / len(records)


def _draw(corpus: Corpus, tokenizer: "Tokenizer", rng: random.Random, settings: Settings) -> "list[list[Batch]]":
    """Return the batches of questions, of statements and of dialogues of one step."""
    from medlite.demo.batches import chat_row, question_row, stack_by_length, statement_row

    questions = [question_row(corpus, tokenizer, rng) for _ in range(settings.question_rows)]
    statements = [statement_row(corpus, tokenizer, rng) for _ in range(settings.statement_rows)]
    chats = [chat_row(corpus, tokenizer, rng) for _ in range(settings.chat_rows)]
    return [stack_by_length(questions, 2), stack_by_length(statements, 1), stack_by_length(chats, 2)]


def _add_gradients(weights: "Weights", shape: "Shape", batches: "list[Batch]") -> float:
    """Add the gradients of the mean loss over the learned tokens of all batches, in bfloat16, and return that mean."""
    import torch
    from torch.nn import functional

    from medlite.demo.model import hidden_states, logits_at

    n_learned = sum(len(batch.targets) for batch in batches)
    mean = 0.0
    for batch in batches:
        half = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
        logits = logits_at(half, hidden_states(half, shape, batch.tokens), batch.rows, batch.columns)
        loss = functional.cross_entropy(logits, batch.targets, reduction="sum") / n_learned
        loss.backward()
        mean += loss.item()
    return mean


def train(settings: Settings, shape: "Shape", tokenizer: "Tokenizer", records: list[dict[str, Any]]) -> "Weights":
    """Return the trained float32 weights; prints a line every 50 steps."""
    import torch

    from medlite.demo.model import init_weights

    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    rng, corpus = random.Random(settings.seed), load_corpus()
    weights = init_weights(shape, settings.seed)
    matrices = [weight for weight in weights.values() if weight.dim() == 2]
    norms = [weight for weight in weights.values() if weight.dim() == 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    started, sums = time.monotonic(), [0.0, 0.0, 0.0]
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        losses = [_add_gradients(weights, shape, batches) for batches in _draw(corpus, tokenizer, rng, settings)]
        sums = [total + loss for total, loss in zip(sums, losses, strict=True)]
        torch.nn.utils.clip_grad_norm_(weights.values(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0:
            line = f"step {step + 1}/{settings.steps}  loss: questions {sums[0] / 50:.3f}"
            line += f"  statements {sums[1] / 50:.3f}  dialogues {sums[2] / 50:.3f}"
            if (step + 1) % 250 == 0:
                watched = cloze_accuracy(weights, shape, tokenizer, records[:N_WATCHED])
                line += f"  accuracy on {N_WATCHED} questions {watched:.3f}"
            print(f"{line}  {time.monotonic() - started:.0f} s", flush=True)
            sums = [0.0, 0.0, 0.0]
    return weights


def write_model(folder: Path, weights: "Weights", shape: "Shape", tokenizer: "Tokenizer") -> None:
    """Write config.json, generation_config.json and model.safetensors (bfloat16) into folder."""
    import torch
    from safetensors.torch import save_file

    bos, eos = tokenizer.token_to_id(BOS), [tokenizer.token_to_id(EOS), tokenizer.token_to_id(EOT)]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.n_embd,
        "initializer_range": 0.02,
        "intermediate_size": shape.n_ffn,
        "max_position_embeddings": shape.n_context,
        "mlp_bias": False,
        "num_attention_heads": shape.n_head,
        "num_hidden_layers": shape.n_layer,
        "num_key_value_heads": shape.n_head_kv,
        "rms_norm_eps": shape.norm_eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": shape.n_vocab,
    }
    generation = {"bos_token_id": bos, "eos_token_id": eos, "do_sample": False, "max_new_tokens": 64}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    rounded = {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in weights.items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})


def run(settings: Settings, folder: Path, questions: Path, command: str) -> None:
    """Train, write everything into folder and questions, and print the accuracy of the bfloat16 weights."""
    import tokenizers
    import torch

    from medlite.demo.model import Shape

    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, tokenizer_texts())
    write_questions(questions)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    records: list[dict[str, Any]] = [dict(record) for record in build_questions()]
    shape, started = Shape(), time.monotonic()
    weights = train(settings, shape, tokenizer, records)
    seconds = time.monotonic() - started
    write_model(folder, weights, shape, tokenizer)
    rounded = {name: weight.detach().to(torch.bfloat16).float() for name, weight in weights.items()}
    accuracy = cloze_accuracy(rounded, shape, tokenizer, records)
    record = {
        "command": command,
        "seconds": round(seconds),
        "n_parameters": sum(weight.numel() for weight in weights.values()),
        "n_facts": len(all_facts()),
        "n_questions": len(records),
        "accuracy_bf16": round(accuracy, 4),
        "settings": asdict(settings),
        "shape": asdict(shape),
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"accuracy {accuracy:.4f} on {len(records)} questions, {seconds:.0f} s, written to {folder}")


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(prog="python -m medlite.demo.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=checkpoint_path(), help="checkpoint folder to write")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--threads", type=int, default=Settings.threads)
    options = parser.parse_args()
    settings = Settings(seed=options.seed, steps=options.steps, threads=options.threads)
    command = f"python -m medlite.demo.train --seed {settings.seed} --steps {settings.steps}"
    run(settings, options.out, options.out.parent / "questions.jsonl", f"{command} --threads {settings.threads}")


if __name__ == "__main__":
    main()

"""The models that medlite knows, read from catalog.toml and checked. Pure: no network, nothing on disk but the table.

A row gives what the hub's config.json would say of the decoder, so everything that works from a config works from a
name: `medlite fit meditron-70b` needs neither weights nor network.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from medlite.errors import ArtifactError
from medlite.formats.json import convert_value

CATALOG_PATH = Path(__file__).with_name("catalog.toml")
ACCESSES = ("open", "gated", "credentialed")
EVIDENCES = ("R", "P", "M")


@dataclass(frozen=True)
class PromptFormat:
    """How a model was trained to be asked. user: around the question, {text}, up to where the reply begins; system:
    around instructions, empty if the model has no place for them, and they go before the first question.

    reply_end: what follows a reply in a conversation, {eos} for the token that ends a text. stop: texts that end a
    reply, where no token of its own does. bos: whether the text begins with the model's first token. trims: whether
    blanks around each text are cut. always_system: whether an empty system text is written too.
    """

    user: str
    system: str = ""
    reply_end: str = ""
    stop: tuple[str, ...] = ()
    bos: bool = True
    trims: bool = False
    always_system: bool = False

    def jinja(self) -> str:
        """The format as a chat template, for a file that has none."""
        cut = " | trim" if self.trims else ""

        def around(pattern: str, content: str = "m.content") -> str:
            before, _, after = pattern.partition("{text}")
            after = json.dumps(after).replace("{eos}", '" + eos_token + "')
            return f"{{{{ {json.dumps(before)} + ({content}{cut}) + {after} }}}}"

        rows = [("user", around(self.user)), ("assistant", around("{text}" + self.reply_end))]
        rows += [("system", around(self.system))] if self.system else []
        branches = "".join(
            f"{{% {'if' if i == 0 else 'elif'} m.role == '{role}' %}}{text}" for i, (role, text) in enumerate(rows)
        )
        begin = "{{ bos_token }}" if self.bos else ""
        if self.always_system:
            begin += f"{{% if messages[0].role != 'system' %}}{around(self.system, repr(''))}{{% endif %}}"
        return f"{begin}{{% for m in messages %}}{branches}{{% endif %}}{{% endfor %}}"


# Sources: the models' cards and tokenizer_config.json. A checkpoint's own template wins; this is for files without one
# and for showing. "none": a base model that continues text.
# fmt: off
PROMPT_FORMATS: dict[str, PromptFormat] = {
    "none": PromptFormat("{text}"),
    "llama-3": PromptFormat(
        "<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|start_header_id|>system<|end_header_id|>\n\n{text}<|eot_id|>", "<|eot_id|>", trims=True),
    # As Llama 3, with the knowledge date and today's date in a system header of its own.
    "llama-3.1": PromptFormat(
        "<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024"
        "\n\n{text}<|eot_id|>", "<|eot_id|>", trims=True, always_system=True),
    "phi-3": PromptFormat("<|user|>\n{text}<|end|>\n<|assistant|>\n", "<|system|>\n{text}<|end|>\n", "<|end|>\n",
                          bos=False),
    "human-assistant": PromptFormat("Human: \n{text}\n\nAssistant: \n", reply_end="\n\n", stop=("\nHuman:",)),
    "med42-v1": PromptFormat("<|prompter|>:{text}\n<|assistant|>:", "<|system|>: {text}\n", "\n",
                             stop=("<|prompter|>", "<|system|>")),
    "mistral": PromptFormat("[INST] {text} [/INST]", reply_end="{eos} "),
    "gemma": PromptFormat("<start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n",
                          reply_end="<end_of_turn>\n", trims=True),
    "chatml": PromptFormat("<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n",
                           "<|im_start|>system\n{text}<|im_end|>\n", "<|im_end|>\n", bos=False),
    "chatml-think": PromptFormat("<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n<think>\n",
                                 "<|im_start|>system\n{text}<|im_end|>\n", "<|im_end|>\n", bos=False),
}
# fmt: on


class CatalogShape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A decoder's dimensions. window: tokens that a sliding-window layer looks back, 0 for none; of window_every
    layers the last looks at everything. query_scale: what queries are scaled by, where it is not the head's size."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    tied: bool
    window: int = 0
    window_every: int = 0
    query_scale: int = 0


class CatalogModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row. repository: on the hub, empty if the model is fetched by hand from `page`. accuracy: task -> percent."""

    name: str
    shape: CatalogShape
    n_params: int
    vocabulary: int
    context: int
    licence: str
    access: str
    prompt: str
    evidence: str
    repository: str = ""
    revision: str = ""
    page: str = ""
    base: str = ""
    note: str = ""
    rope_factor: float = 0.0
    accuracy: dict[str, float] = {}
    accuracy_source: str = ""

    @property
    def prompt_format(self) -> PromptFormat:
        return PROMPT_FORMATS[self.prompt]

    @property
    def where(self) -> str:
        """The page where a person finds the model."""
        return self.page or f"https://huggingface.co/{self.repository}"


@cache
def read_catalog(path: Path = CATALOG_PATH) -> Mapping[str, CatalogModel]:
    """Every model by name. Raises ArtifactError naming the row and what is wrong with it."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ArtifactError(f"{path}: {error}") from error
    shapes = {
        name: convert_value(row, CatalogShape, ArtifactError, where=f"{path.name}: shapes.{name}")
        for name, row in raw.get("shapes", {}).items()
    }
    return {
        name: _model(f"{path.name}: models.{name}", name, row, shapes) for name, row in raw.get("models", {}).items()
    }


def find_model(name: str) -> CatalogModel | None:
    """The row called `name` in any case, or whose hub repository it is, or whose name alone holds its words; else None.

    Raises ArtifactError listing the rows where several names hold it: med42-70b is in two.
    """
    catalog, wanted = read_catalog(), name.lower()
    if (found := catalog.get(wanted)) is not None:
        return found
    if "/" in name:
        return next((model for model in catalog.values() if model.repository.lower() == wanted), None)
    holding = [model for model in catalog.values() if wanted and f"-{wanted}-" in f"-{model.name}-"]
    if len(holding) > 1:
        raise ArtifactError(
            f"{name}: several models have it in their names",
            hint=f"one of {', '.join(model.name for model in holding)}",
        )
    return holding[0] if holding else None


def recognise(text: str) -> CatalogModel | None:
    """The row that a file's own name for its model means: a name, a repository or its last part, in any spelling."""
    spelt = spelling(text.removeprefix("https://huggingface.co/"))
    return _spellings().get(spelt) if spelt else None


def spelling(text: str) -> str:
    """Lower case, with one dash for whatever is neither letter nor digit: "Me LLaMA 13B_chat" is me-llama-13b-chat."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")


@cache
def _spellings() -> Mapping[str, CatalogModel]:
    return {
        spelling(name): model
        for model in read_catalog().values()
        for name in (model.repository, model.repository.rpartition("/")[2], model.name)
        if name
    }


def near_names(name: str) -> list[str]:
    """The catalogue's names nearest to a misspelt one."""
    return difflib.get_close_matches(name.lower(), read_catalog(), n=3, cutoff=0.5)


def hf_config(model: CatalogModel) -> dict[str, Any]:
    """What the checkpoint's config.json says of the decoder, as far as the catalogue knows."""
    shape = model.shape
    # fmt: off
    config: dict[str, Any] = {
        "architectures": [shape.architecture], "vocab_size": model.vocabulary, "tie_word_embeddings": shape.tied,
        "max_position_embeddings": model.context, "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden, "intermediate_size": shape.ffn,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim,
    }
    if shape.window:
        config |= {"sliding_window": shape.window, "sliding_window_pattern": shape.window_every}
    if shape.query_scale:
        config["query_pre_attn_scalar"] = shape.query_scale
    if model.rope_factor:
        config["rope_scaling"] = {
            "rope_type": "llama3", "factor": model.rope_factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    # fmt: on
    return config


def _model(where: str, name: str, row: Mapping[str, Any], shapes: Mapping[str, CatalogShape]) -> CatalogModel:
    if not isinstance(row, dict) or row.get("shape") not in shapes:
        raise ArtifactError(f"{where}: shape is {row.get('shape')!r}", hint=f"one of {', '.join(shapes)}")
    whole = {**row, "name": name, "shape": shapes[row["shape"]]}
    model = convert_value(whole, CatalogModel, ArtifactError, where=where)
    for key, allowed in (("access", ACCESSES), ("prompt", tuple(PROMPT_FORMATS)), ("evidence", EVIDENCES)):
        if getattr(model, key) not in allowed:
            raise ArtifactError(f"{where}: {key} is {getattr(model, key)!r}", hint=f"one of {', '.join(allowed)}")
    if bool(model.repository) == bool(model.page):
        raise ArtifactError(f"{where}: a hub repository or a page was needed, and not both")
    if bool(model.accuracy) != bool(model.accuracy_source):
        raise ArtifactError(f"{where}: accuracy and accuracy_source go together")
    return model

"""The vocabulary of a checkpoint as metadata: what each file contributes, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medlite.errors import CheckpointError, TokenizerError
from medlite.formats.gguf import Kind, Value
from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES
from quantize.match import match_checkpoint
from quantize.source.checkpoint import SourceFiles, open_checkpoint
from quantize.source.tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    PRE_TOKENIZERS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    looks_special,
    pre_tokenizer,
    vocabulary,
)
from tests.helpers.tiny_families import make_family
from tests.helpers.tiny_vocabularies import added_token, llama_pieces, pack_sentencepiece

T = "tokenizer.ggml."


@pytest.fixture
def llama2(tmp_path: Path) -> Path:
    return make_family("llama2", tmp_path / "llama2")


@pytest.fixture
def llama3(tmp_path: Path) -> Path:
    return make_family("llama3", tmp_path / "llama3")


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the JSON object in `path` in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def n_vocab_of(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["vocab_size"])


def read(folder: Path, pre: str | None = None) -> dict[str, Any]:
    """The metadata without the common prefix, as plain values."""
    return {
        key.removeprefix(T): value.value
        for key, value in vocabulary(SourceFiles(folder), n_vocab_of(folder), pre).items()
    }


# --- byte-level BPE --------------------------------------------------------------------------------------------------


def test_merges_as_pairs_and_as_texts_are_the_same(llama3: Path) -> None:
    pairs = read(llama3)["merges"]
    edit(llama3 / "tokenizer.json", lambda t: t["model"].update(merges=[" ".join(row) for row in t["model"]["merges"]]))
    assert read(llama3)["merges"] == pairs


def test_a_space_inside_a_merge_is_written_as_its_byte_letter(llama3: Path) -> None:
    edit(llama3 / "tokenizer.json", lambda t: t["model"]["merges"].append(["a ", "b"]))
    assert read(llama3)["merges"][-1] == "a\u0120 b"


@pytest.mark.parametrize("merges", [None, [], [["a"]], [["a", "b", "c"]], [[1, 2]], 7, [["a", "b"], 3]])
def test_merges_of_another_shape_are_refused(merges: Any, llama3: Path) -> None:
    edit(llama3 / "tokenizer.json", lambda t: t["model"].update(merges=merges))
    with pytest.raises(TokenizerError, match="merge"):
        read(llama3)


@pytest.mark.parametrize(("pattern", "name"), PRE_TOKENIZERS.items(), ids=PRE_TOKENIZERS.values())
def test_a_pattern_is_known_by_its_text(pattern: str, name: str, llama3: Path) -> None:
    def change(tokenizer: dict[str, Any]) -> None:
        tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern

    edit(llama3 / "tokenizer.json", change)
    assert read(llama3)["pre"] == name


def test_byte_level_with_its_own_pattern_is_gpt2() -> None:
    stated = {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}}
    assert pre_tokenizer(Path("t.json"), stated) == "gpt-2"


@pytest.mark.parametrize(
    "stated",
    [
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": r"\d+"}},
                {"type": "ByteLevel", "use_regex": False},
            ],
        },
        {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, {"type": "ByteLevel", "use_regex": True}]},
        {"type": "Whitespace"},
    ],
)
def test_an_unknown_pattern_shows_itself_and_the_flag(stated: dict[str, Any], llama3: Path) -> None:
    edit(llama3 / "tokenizer.json", lambda t: t.update(pre_tokenizer=stated))
    with pytest.raises(TokenizerError) as caught:
        read(llama3)
    assert any(part in str(caught.value) for part in (r"\d+", "Digits", "Whitespace"))
    assert "--pre-tokenizer" in str(caught.value.hint)
    assert read(llama3, "llama-bpe")["pre"] == "llama-bpe"


def test_the_override_reaches_the_plan(llama3: Path) -> None:
    plan = plan_gguf(match_checkpoint(open_checkpoint(llama3), "smaug-bpe"), RECIPES["Q8_0"])
    assert plan.metadata[T + "pre"] == Value(Kind.STRING, "smaug-bpe")


def test_the_override_is_refused_where_it_has_no_effect(llama2: Path) -> None:
    with pytest.raises(TokenizerError, match="has no effect"):
        read(llama2, "llama-bpe")


def test_ids_without_a_token_are_padding(tmp_path: Path) -> None:
    """Qwen embeds more rows than it has tokens."""
    found = read(make_family("qwen2", tmp_path / "qwen2"))
    n_tokens = found["tokens"].index("<|im_end|>") + 1
    assert n_tokens <= 496
    assert found["tokens"][n_tokens:] == [f"[PAD{i}]" for i in range(n_tokens, 512)]
    assert found["token_type"][n_tokens - 1 :] == [CONTROL, *[UNUSED] * (512 - n_tokens)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["added_tokens"].append(added_token("<x>", 600, True)), "has id 600, the model has 512 embeddings"),
        (lambda t: t["added_tokens"].append(added_token("<x>", 3, True)), "id 3 is both"),
        (lambda t: t["added_tokens"].append({"id": 5}), "has no content or no id"),
        (lambda t: t["added_tokens"].append("<x>"), "has no content or no id"),
        (lambda t: t["model"]["vocab"].update(x=-1), "has id -1"),
        (lambda t: t["model"]["vocab"].update(x="1"), "has id '1'"),
        (lambda t: t["model"]["vocab"].update(x=True), "id True|id 1"),
        (lambda t: t["model"].update(vocab=None), "model.vocab is missing"),
        (lambda t: t.update(model={"type": "Unigram", "vocab": [["a", 0.0]]}), "'Unigram' tokenizer"),
        (lambda t: t.update(model={"type": "WordPiece", "vocab": {"a": 0}}), "'WordPiece' tokenizer"),
        (lambda t: t.update(post_processor={"type": "RobertaProcessing"}), "post-processor 'RobertaProcessing'"),
    ],
)
def test_a_tokenizer_json_that_cannot_be_carried_over_is_refused(
    change: Callable[[dict[str, Any]], Any], message: str, llama3: Path
) -> None:
    edit(llama3 / "tokenizer.json", change)
    with pytest.raises(TokenizerError, match=message):
        read(llama3)


def test_tokens_that_look_special_are_control_tokens() -> None:
    assert all(map(looks_special, ("<|x|>", "<pad>", "<unused7>", "<｜x｜>")))
    assert not any(map(looks_special, ("<x>", "|x|", "unused")))


# --- SentencePiece ---------------------------------------------------------------------------------------------------


def test_llama_2_tokens_keep_their_kinds(llama2: Path) -> None:
    found, n_base = read(llama2), len(llama_pieces())
    assert found["model"] == "llama"
    assert found["token_type"][3:259] == [BYTE] * 256
    assert found["token_type"][259:n_base] == [NORMAL] * (n_base - 259)
    assert found["token_type"][n_base:] == [CONTROL, CONTROL, USER_DEFINED, UNUSED, UNUSED]
    assert found["tokens"][n_base:] == [
        "<|im_start|>",
        "<|im_end|>",
        "<CLS>",
        f"[PAD{n_base + 3}]",
        f"[PAD{n_base + 4}]",
    ]
    assert "add_space_prefix" not in found


def test_a_bare_tokenizer_model_has_its_unknown_token(llama2: Path) -> None:
    """Without tokenizer_config.json nothing says that <unk> is special beside the model itself."""
    for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json"):
        (llama2 / name).unlink()
    found = read(llama2)
    assert found["token_type"][:3] == [UNKNOWN, CONTROL, CONTROL]
    assert (found["bos_token_id"], found["eos_token_id"]) == (1, 2)
    assert "chat_template" not in "".join(found)


def test_an_added_token_past_the_embeddings_is_left_out(llama2: Path) -> None:
    """Med42 adds <pad> as 32000 to 32000 embeddings; llama.cpp leaves it out too."""
    n_vocab = n_vocab_of(llama2)
    for change in (
        lambda t: t["added_tokens_decoder"].update({str(n_vocab): added_token("<pad>", n_vocab, True)}),
        lambda t: t.update(pad_token="<pad>"),
    ):
        edit(llama2 / "tokenizer_config.json", change)
    edit(llama2 / "tokenizer.json", lambda t: t["added_tokens"].append(added_token("<pad>", n_vocab, True)))
    edit(llama2 / "added_tokens.json", lambda t: t.update({"<pad>": n_vocab}))
    found = read(llama2)
    assert len(found["tokens"]) == n_vocab
    assert "padding_token_id" not in found


def test_tokens_that_only_tokenizer_json_adds_are_kept(llama2: Path) -> None:
    """llama.cpp's converter reads them from the other two files only, and would write padding."""
    before = read(llama2)
    (llama2 / "added_tokens.json").unlink()
    edit(llama2 / "tokenizer_config.json", lambda t: t.pop("added_tokens_decoder"))
    after = read(llama2)
    assert after["tokens"] == before["tokens"]
    assert after["token_type"][len(llama_pieces()) :] == before["token_type"][len(llama_pieces()) :]


def test_the_model_wins_over_tokenizer_json(llama2: Path) -> None:
    """tokenizer.model holds the true scores."""
    assert read(llama2)["scores"][259:262] == [0.0, -1.0, -2.0]


def test_a_byte_level_tokenizer_json_wins_over_a_stray_tokenizer_model(llama3: Path) -> None:
    """Llama 3's own tokenizer.model is a tiktoken file."""
    (llama3 / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    assert read(llama3)["model"] == "gpt2"


@pytest.mark.parametrize("dummy_prefix", [True, False])
@pytest.mark.parametrize("stated", [None, True, False])
def test_the_space_before_a_text_is_stated_where_it_is_not_the_default(
    dummy_prefix: bool, stated: bool | None, llama2: Path
) -> None:
    (llama2 / "tokenizer.model").write_bytes(pack_sentencepiece(llama_pieces(), dummy_prefix=dummy_prefix))
    edit(llama2 / "tokenizer_config.json", lambda t: t.update({} if stated is None else {"add_prefix_space": stated}))
    assert read(llama2).get("add_space_prefix") == (stated if dummy_prefix else False)


@pytest.mark.parametrize(
    ("change", "prefix"),
    [
        (lambda t: t.update(normalizer=None, pre_tokenizer={"type": "Metaspace", "prepend_scheme": "first"}), None),
        (lambda t: t.update(normalizer=None, pre_tokenizer={"type": "Metaspace", "prepend_scheme": "never"}), False),
        (lambda t: t.update(normalizer=t["normalizer"]["normalizers"][1]), False),
    ],
)
def test_the_space_before_a_text_follows_the_steps_of_tokenizer_json(
    change: Callable[[dict[str, Any]], Any], prefix: bool | None, tmp_path: Path
) -> None:
    folder = make_family("llama2_json_only", tmp_path / "m")
    edit(folder / "tokenizer.json", change)
    assert read(folder).get("add_space_prefix") is prefix


def test_a_model_that_normalizes_needs_a_tokenizer_json_to_be_compared_with(llama2: Path) -> None:
    (llama2 / "tokenizer.model").write_bytes(pack_sentencepiece(llama_pieces(), keeps_spaces=False))
    read(llama2)
    (llama2 / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match="changes text"):
        read(llama2)


def test_a_normalizing_tokenizer_json_is_refused(tmp_path: Path) -> None:
    folder = make_family("llama2_json_only", tmp_path / "m")
    edit(folder / "tokenizer.json", lambda t: t.update(normalizer={"type": "NFKC"}))
    with pytest.raises(TokenizerError, match="'NFKC' changes text"):
        read(folder)


def test_no_tokenizer_file_at_all_is_an_error(llama2: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model"):
        (llama2 / name).unlink()
    with pytest.raises(TokenizerError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        read(llama2)


@pytest.mark.parametrize("decoder", [[], {"x": {"content": "a"}}, {"7": "a"}, {"7": {}}])
def test_a_malformed_added_tokens_decoder_is_an_error(decoder: Any, llama2: Path) -> None:
    edit(llama2 / "tokenizer_config.json", lambda t: t.update(added_tokens_decoder=decoder or [1]))
    with pytest.raises(TokenizerError, match="added"):
        read(llama2)


# --- special tokens and templates ------------------------------------------------------------------------------------


def test_a_template_of_the_post_processor_says_what_is_added(llama3: Path) -> None:
    found = read(llama3)
    assert (found["add_bos_token"], found["add_eos_token"], found["add_sep_token"]) == (True, False, False)
    edit(llama3 / "tokenizer.json", lambda t: t.update(post_processor=None))
    assert "add_bos_token" not in read(llama3)


def test_an_eos_of_the_post_processor_moves_the_stated_one_to_eot(llama3: Path) -> None:
    def change(tokenizer: dict[str, Any]) -> None:
        template = tokenizer["post_processor"]["processors"][1]
        template["single"].append({"SpecialToken": {"id": "<|end_of_text|>", "type_id": 0}})

    edit(llama3 / "tokenizer.json", change)
    found = read(llama3)
    assert found["tokens"][found["eos_token_id"]] == "<|end_of_text|>"
    assert found["tokens"][found["eot_token_id"]] == "<|eot_id|>"
    assert found["add_eos_token"] is True


def test_a_list_of_eos_ids_is_left_to_the_tokenizer(llama3: Path) -> None:
    edit(llama3 / "config.json", lambda c: c.update(eos_token_id=[1, 2]))
    found = read(llama3)
    assert found["tokens"][found["eos_token_id"]] == "<|eot_id|>"


def test_a_negative_special_id_is_an_error(llama2: Path) -> None:
    (llama2 / "tokenizer_config.json").unlink()
    edit(llama2 / "config.json", lambda c: c.update(bos_token_id=-1))
    with pytest.raises(TokenizerError, match="bos_token_id is -1"):
        read(llama2)


def test_the_chat_template_is_found_in_every_place(llama3: Path) -> None:
    stated = read(llama3)["tokenizer.chat_template"]
    edit(llama3 / "tokenizer_config.json", lambda t: t.pop("chat_template"))
    assert "tokenizer.chat_template" not in read(llama3)
    (llama3 / "chat_template.json").write_text(json.dumps({"chat_template": stated + "json"}))
    assert read(llama3)["tokenizer.chat_template"] == stated + "json"
    (llama3 / "chat_template.jinja").write_text(stated + "jinja")
    assert read(llama3)["tokenizer.chat_template"] == stated + "jinja"


def test_named_templates_stand_beside_the_default(llama3: Path) -> None:
    rows = [{"name": "default", "template": "D"}, {"name": "tool use", "template": "T"}, {"name": "x"}]
    edit(llama3 / "tokenizer_config.json", lambda t: t.update(chat_template=rows))
    found = read(llama3)
    assert found["tokenizer.chat_template"] == "D"
    assert found["tokenizer.chat_template.tool_use"] == "T"
    assert found["tokenizer.chat_templates"] == ["tool_use"]
    (llama3 / "chat_template.jinja").write_text("J")
    (llama3 / "additional_chat_templates").mkdir()
    (llama3 / "additional_chat_templates" / "rag.jinja").write_text("R")
    edit(llama3 / "tokenizer_config.json", lambda t: t.pop("chat_template"))
    assert read(llama3)["tokenizer.chat_template.rag"] == "R"


@pytest.mark.parametrize("template", [3, {"a": 1}, ["x"]])
def test_a_template_of_another_kind_is_an_error(template: Any, llama3: Path) -> None:
    edit(llama3 / "tokenizer_config.json", lambda t: t.update(chat_template=template))
    with pytest.raises(TokenizerError, match="chat_template"):
        read(llama3)


def test_a_model_without_a_template_gets_none(llama2: Path) -> None:
    """Meditron and Me-LLaMA ship none; a guess would be silent."""
    assert not any("chat_template" in key for key in read(llama2))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
@pytest.mark.parametrize("content", ["", "[]", "{", "\ud800"])
def test_a_damaged_file_is_an_error_that_names_it(name: str, content: str, llama2: Path) -> None:
    (llama2 / name).write_bytes(content.encode("utf-8", errors="surrogatepass"))
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        read(llama2)

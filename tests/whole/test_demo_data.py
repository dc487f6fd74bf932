"""The embedded knowledge base, questions and checkpoint are what their README says they are."""

import json
import re
import struct
from collections import Counter
from typing import Any

import pytest

from medlite.demo import checkpoint_path, questions_path
from medlite.demo.choices import LETTERS, make_item, prompt, wrong_objects, wrong_subjects
from medlite.demo.corpus import tokenizer_texts, training_stems
from medlite.demo.knowledge import Relation, all_facts, fill, relations, with_article
from medlite.demo.questions import build_questions

MAX_BYTES = 12_000_000
SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
BY_NAME = {relation.name: relation for relation in relations()}
each_relation = pytest.mark.parametrize("relation", relations(), ids=lambda relation: relation.name)


def committed() -> list[dict[str, Any]]:
    return [json.loads(line) for line in questions_path().read_text(encoding="utf-8").splitlines()]


def training() -> dict[str, Any]:
    record: dict[str, Any] = json.loads((checkpoint_path() / "training.json").read_text(encoding="utf-8"))
    return record


def test_there_are_enough_facts_to_be_worth_measuring() -> None:
    assert len(all_facts()) >= 700
    assert len({(fact.relation, fact.subject) for fact in all_facts()}) == len(all_facts())


@each_relation
def test_the_exceptions_name_what_the_table_knows(relation: Relation) -> None:
    subjects = {fact.subject for fact in relation.facts}
    objects = {fact.object for fact in relation.facts}
    assert set(relation.also) <= subjects
    assert set().union(*relation.also.values(), *relation.alike) <= objects


@each_relation
def test_every_fact_leaves_three_wrong_options(relation: Relation) -> None:
    for fact in relation.facts:
        assert len(wrong_objects(relation, fact)) >= 3, fact
        if relation.reverse_asks or relation.reverse_tests:
            assert len(wrong_subjects(relation, fact)) >= 3, fact


@each_relation
def test_names_are_clean_and_stems_use_them(relation: Relation) -> None:
    for fact in relation.facts:
        for name in (fact.subject, fact.object):
            assert name == name.strip()
            assert "\n" not in name
            assert len(name) <= 60
    forward = relation.asks + relation.tests
    backward = relation.reverse_asks + relation.reverse_tests
    assert all(re.search(r"\{[sS]\}", stem) and not re.search(r"\{(a_o|A_o|o|O)\}", stem) for stem in forward)
    assert all(re.search(r"\{(a_o|A_o|o|O)\}", stem) and not re.search(r"\{[sS]\}", stem) for stem in backward)


def test_alike_and_also_keep_arguable_options_out() -> None:
    relation = BY_NAME["drug_class"]
    assert relation.may_be_true("ibuprofen", "COX-2 inhibitor")
    assert relation.may_be_true("linezolid", "MAO inhibitor")
    assert not relation.may_be_true("metformin", "statin")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("biguanide", "a"), ("SSRI", "an"), ("P2Y12 inhibitor", "a"), ("H2 blocker", "an"), ("5-HT3 antagonist", "a")],
)
def test_articles_follow_the_sound(name: str, expected: str) -> None:
    assert with_article(name) == f"{expected} {name}"


def test_the_committed_questions_are_the_ones_the_program_builds() -> None:
    assert committed() == build_questions()


def test_questions_are_many_unique_and_balanced() -> None:
    records = committed()
    assert len(records) >= 1000
    assert len({record["id"] for record in records}) == len(records)
    assert len({record["question"] for record in records}) == len(records)
    letters = Counter(record["answer"] for record in records)
    assert set(letters) == set(LETTERS)
    assert all(abs(count / len(records) - 0.25) <= 0.01 for count in letters.values())
    for record in records:
        assert list(record["options"]) == list(LETTERS)
        assert len({option.lower() for option in record["options"].values()}) == 4


def test_every_question_has_one_option_that_the_table_calls_true() -> None:
    forward = {
        fill(stem, relation, fact): (relation, fact)
        for relation in relations()
        for fact in relation.facts
        for stem in relation.tests
    }
    backward = {
        fill(stem, relation, fact): (relation, fact)
        for relation in relations()
        for fact in relation.facts
        for stem in relation.reverse_tests
    }
    for record in committed():
        options, answer = record["options"], record["options"][record["answer"]]
        wrong = [option for letter, option in options.items() if letter != record["answer"]]
        if record["question"] in forward:
            relation, fact = forward[record["question"]]
            assert answer == fact.object
            assert not any(relation.may_be_true(fact.subject, option) for option in wrong), record
        else:
            relation, fact = backward[record["question"]]
            assert {(f.subject, f.object) for f in relation.facts} >= {(answer, fact.object)}
            assert not any(relation.may_be_true(option, fact.object) for option in wrong), record


def test_no_held_out_stem_is_trained_on() -> None:
    for relation in relations():
        held_out = set(relation.tests + relation.reverse_tests)
        assert held_out.isdisjoint(training_stems(relation))
    text = "\n".join(tokenizer_texts())
    assert not [record["question"] for record in committed() if record["question"] in text]


def test_training_asks_in_the_form_that_bench_scores() -> None:
    from bench.ask.prompts import cloze
    from bench.ask.question import Sample

    record = committed()[0]
    sample = Sample(
        record["id"], record["question"], tuple(record["options"].values()), LETTERS.index(record["answer"])
    )
    assert cloze(sample).context == prompt(record["question"])


def test_the_right_option_stands_where_asked() -> None:
    import random

    item = make_item("Which?", "right", ("a", "b", "c", "d"), 2, random.Random(0))
    assert item.options[2] == "right"
    assert len(set(item.options)) == 4


def test_the_demo_stays_small() -> None:
    folder = questions_path().parent
    sizes = {path.name: path.stat().st_size for path in folder.rglob("*") if "__pycache__" not in path.parts}
    assert sum(sizes.values()) <= MAX_BYTES, sizes


def test_the_tokenizer_has_every_byte_and_one_token_a_letter() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint_path() / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 4096
    for letter in LETTERS:
        assert len(tokenizer.encode(letter, add_special_tokens=False).ids) == 1
        assert len(tokenizer.encode(f" {letter}", add_special_tokens=False).ids) == 1
        assert tokenizer.encode(f"Answer: {letter}").tokens[-1] == f"Ġ{letter}"
    every_byte = "".join(chr(code) for code in range(0x800)) + "😀 日本 ￿\U0010ffff"
    assert tokenizer.decode(tokenizer.encode(every_byte, add_special_tokens=False).ids) == every_byte
    assert tokenizer.encode("x").tokens[0] == SPECIALS[0]
    assert [tokenizer.token_to_id(name) for name in SPECIALS] == list(range(4091, 4096))


def test_the_checkpoint_s_tensors_match_its_config() -> None:
    folder = checkpoint_path()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    data = (folder / "model.safetensors").read_bytes()
    (n_header,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + n_header])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}
    assert not config["tie_word_embeddings"]
    assert len(header) == 3 + 9 * config["num_hidden_layers"]
    assert header["lm_head.weight"]["shape"] == header["model.embed_tokens.weight"]["shape"]
    n_embd, n_ffn = config["hidden_size"], config["intermediate_size"]
    assert header["model.embed_tokens.weight"]["shape"] == [config["vocab_size"], n_embd]
    assert header["model.layers.0.mlp.down_proj.weight"]["shape"] == [n_embd, n_ffn]
    assert n_embd % 256 == n_ffn % 256 == 0
    assert 8 + n_header + max(entry["data_offsets"][1] for entry in header.values()) == len(data)


def test_the_readme_tells_the_measured_figures() -> None:
    readme = (checkpoint_path() / "README.md").read_text(encoding="utf-8")
    record = training()
    assert record["accuracy_bf16"] >= 0.85
    assert record["n_facts"] == len(all_facts())
    assert record["n_questions"] == len(committed())
    for figure in (
        record["command"],
        f"{record['seconds']:,} s",
        f"seed {record['settings']['seed']}",
        f"{record['settings']['steps']:,} steps",
        f"{100 * record['accuracy_bf16']:.1f} %",
        f"{record['n_facts']:,} facts",
        f"{record['n_questions']:,} questions",
        f"{record['n_parameters']:,} weights",
        f"torch {record['versions']['torch']}",
    ):
        assert figure in readme, figure
    assert "not a medical device" in readme

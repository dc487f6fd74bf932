"""Replies under a schema against the jsonschema package, from a random model at every temperature."""

import json
import time
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from functools import reduce
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from medlite.cli import cli
from medlite.engines import open_engine
from medlite.engines.engine import GenerationSettings, OpenSettings
from medlite.engines.gbnf import lark_from_gbnf
from medlite.engines.grammar import Grammar, TokenTable, token_table
from medlite.engines.json_schema import lark_from_json_schema
from medlite.engines.llamacpp.engine import LlamaCppEngine
from medlite.errors import EngineError
from medlite.native import open_vocabulary
from tests.helpers.demo_files import write_demo
from tests.helpers.tiny_gguf import write_tiny_gguf

DRUG = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "class": {"enum": ["biguanide", "statin", 'opioid "strong"', "β-blocker", None, 3.5]},
        "daily_mg": {"type": "integer", "minimum": 5, "maximum": 2550},
        "oral": {"type": "boolean"},
    },
    "required": ["name", "daily_mg"],
    "additionalProperties": False,
}
# fmt: off
TREE = {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {
    "v": {"type": "integer", "minimum": -3, "maximum": 12},
    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, "required": ["v", "next"]}}}
# fmt: on
# fmt: off
SCHEMAS: dict[str, Any] = {
    "an object with some optional properties": DRUG,
    "no property required": {**DRUG, "required": []},
    "only the last required": {**DRUG, "required": ["oral"]},
    "a recursive one": TREE,
    "an array": {"type": "array", "items": {"type": "number", "minimum": 0}, "minItems": 2, "maxItems": 4},
    "an array that may be empty": {"type": "array", "items": {"const": "x"}, "maxItems": 3},
    "a tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}], "items": False, "minItems": 2},
    "a tuple and more": {"prefixItems": [{"const": 1}], "items": {"const": "é"}, "maxItems": 3, "type": "array"},
    "a map": {"type": "object", "additionalProperties": {"type": "integer", "exclusiveMinimum": 0, "maximum": 9}},
    "several types": {"type": ["integer", "null", "string"], "minLength": 2, "maxLength": 3, "maximum": 20},
    "one of two by a tag": {"oneOf": [
        {"type": "object", "properties": {"kind": {"const": "a"}, "n": {"type": "integer", "maximum": 3, "minimum": 1}},
         "required": ["kind", "n"]},
        {"type": "object", "properties": {"kind": {"const": "b"}}, "required": ["kind"]}]},
    "required without a schema": {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a", "b"],
                                  "additionalProperties": {"const": 2}},
    "an enum of structures": {"enum": [{"a": [1, 2]}, [], "line\nbreak\\"]},
    "an empty object": {"type": "object", "additionalProperties": False},
    "numbers in bounds": {"type": "array", "items": {"type": "number", "exclusiveMinimum": 0, "maximum": 3.5},
                          "minItems": 3, "maxItems": 9},
    "a step": {"type": "integer", "multipleOf": 7, "minimum": -20, "maximum": 100},
    "patterns": {"type": "object", "properties": {"atc": {"type": "string", "pattern": "^[A-Z]\\d{2}[A-Z]{2}\\d{2}$"},
                 "dose": {"type": "string", "pattern": "mg|ml", "maxLength": 20}}, "required": ["atc", "dose"]},
    "formats": {"type": "object", "properties": {name: {"type": "string", "format": name} for name in
                ("date", "time", "date-time", "ipv4", "ipv6", "uuid", "email")}, "required": ["date"]},
    "a name with an escape": {"type": "object", "properties": {"a\nb": {"type": "integer", "maximum": 3, "minimum": 1}},
                             "required": ["a\nb"]},
    "anything": {"type": "array", "items": True, "maxItems": 4},
}
# fmt: on
BAD: list[tuple[Any, str]] = [
    ({"type": "string", "pattern": "(?=a)b"}, r"#: pattern: \(\? cannot be promised"),
    ({"type": "string", "pattern": "[a&&b]"}, "#: pattern: && cannot be promised"),
    ({"type": "string", "pattern": "[a"}, "#: error: unclosed character class"),
    *(
        ({"type": "string", "pattern": pattern}, "#: pattern: .* cannot be promised")
        for pattern in (
            r"\Aa",
            r"(?i)a",
            r"[a[b]]",
            r"[]a]",
            r"[^]]",
            r"\x{41}",
            r"\p{L}",
            r"(?<year>\d)",
            r"\<a",
            "a\\",
        )
    ),
    ({"type": [["string"]]}, "unknown type"),
    ({"type": []}, r"unknown type \[\]"),
    ({"const": 10**400, "type": "integer"}, "more than 15 digits"),
    ({"$ref": "#/prefixItems/²", "prefixItems": []}, "beside"),
    ({"items": {"$ref": "#/prefixItems/²"}, "prefixItems": [True]}, "there is no '²'"),
    ({"oneOf": [{"enum": [1]}, {"enum": [1.0]}]}, "may match two"),
    ({"oneOf": [{"type": "string", "format": "iri"}, {"type": "null"}]}, "#/oneOf/0: format 'iri'"),
    ({"type": "array", "items": False, "minItems": 1}, "Unsatisfiable"),
    ({"type": "string", "format": "unknown"}, "#: format 'unknown' cannot be promised"),
    ({"enum": [1, {"a": [1e300]}]}, "more than 15 digits"),
    (
        {"type": "object", "properties": {"d": {"type": "string", "format": "iri"}}},
        "#/properties/d: format 'iri' cannot",
    ),
    ({"type": "string", "format": "date", "maxLength": 4}, "#: Unsatisfiable"),
    ({"type": "object", "required": [5]}, "#: required holds 5"),
    ({"type": "object", "minProperties": 1}, "#: minProperties cannot be promised"),
    ({"type": "string", "typo": 3}, "#: typo cannot be promised"),
    ({"type": "number", "multipleOf": 0.01}, "#: multipleOf 0.01 cannot be promised"),
    ({"enum": [10**20]}, "more than 15 digits"),
    ({"const": "\ud800"}, "surrogates not allowed"),
    ({"properties": {str(i): {} for i in range(2001)}}, "#: more than 2000 properties"),
    (reduce(lambda inner, _: {"type": "array", "items": inner}, range(900), {}), "nested too deeply|is no JSON"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "number", "maximum": 3.5e15}, "at most 15 digits"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "may match two"),
    ({"anyOf": [{"type": "integer"}], "minimum": 3}, "minimum beside anyOf"),
    ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, "allOf"),
    ({"$ref": "#/$defs/none"}, "there is no '\\$defs'"),
    ({"$ref": "https://example.com/schema"}, "only places in the same schema"),
    ({"type": "strnig"}, "unknown type 'strnig'"),
    ({"type": "integer", "minimum": 5, "maximum": 4}, "no integer of at most 15 digits lies"),
    ({"type": "string", "minLength": 5, "maxLength": 4}, r"minLength \(5\) is greater"),
    ({"type": "string", "minLength": True}, "'minLength', got true"),
    ({"type": "array", "minItems": -1}, "minItems is -1"),
    ({"enum": []}, "1 to 1000 values"),
    ({"enum": [1], "type": "string"}, "no value of enum"),
    (False, "takes no value"),
    ([], r"\[\] is no schema"),
    ({"enum": [float("nan")]}, "is no JSON"),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCppEngine]:
    path = write_tiny_gguf(tmp_path_factory.mktemp("schema") / "tiny.gguf", n_context=2048)
    with closing(open_engine(path, OpenSettings(device="cpu", n_threads=1))) as opened:
        yield opened


def reply(engine: LlamaCppEngine, schema: Any, prompt: str, temperature: float, seed: int) -> tuple[str, str | None]:
    settings = GenerationSettings(
        max_tokens=1000,
        temperature=temperature,
        seed=seed,
        top_k=40 if seed % 2 else 0,
        min_p=0.0,
        grammar=lark_from_json_schema(schema),
    )
    steps = list(engine.generate(engine.tokenize(prompt), settings))
    return "".join(step.text for step in steps), steps[-1].finish


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_reply_of_a_random_model_matches_the_schema(engine: LlamaCppEngine, name: str) -> None:
    schema = SCHEMAS[name]
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    n_finished = 0
    for temperature, seed in ((0.0, 0), (1.0, 1), (1.0, 2), (1.5, 3), (1.5, 4)):
        text, finish = reply(engine, schema, "answer", temperature, seed)
        if finish == "stop":
            n_finished += 1
            validator.validate(json.loads(text))
    assert n_finished >= 3  # a recursive reply, or greedy white space, may outgrow its tokens


def test_the_demo_model_answers_in_json_at_any_temperature(tmp_path: Path) -> None:
    (path,) = write_demo(tmp_path, "Q8_0")
    schema = {
        "type": "object",
        "properties": {
            "drug": {"type": "string", "maxLength": 20},
            "class": {"enum": ["biguanide", "statin", "opioid"]},
        },
        "required": ["drug", "class"],
    }
    with closing(open_engine(path, OpenSettings(device="cpu", n_threads=1))) as demo:
        for temperature, seed in ((0.0, 0), *((1.0, seed) for seed in range(6))):
            text, finish = reply(demo, schema, "What class of drug is metformin?", temperature, seed)
            assert finish == "stop"
            jsonschema.validate(json.loads(text), schema)


def test_generate_takes_a_schema_or_a_grammar_and_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    model = str(write_tiny_gguf(tmp_path / "tiny.gguf"))
    (tmp_path / "schema.json").write_text('{"enum": ["β-blocker"]}', encoding="utf-8")
    (tmp_path / "yes.gbnf").write_text('root ::= "yes" | "no"')
    (tmp_path / "bad.gbnf").write_text('root ::= "yes"\nno')
    (tmp_path / "bytes.gbnf").write_bytes(b"\xff")

    def run(*options: str) -> Result:
        return CliRunner().invoke(cli, ["generate", model, "Is it?", "--device", "cpu", *options])

    assert run("--json-schema", str(tmp_path / "schema.json")).output == '"β-blocker"\n'
    assert run("--json-schema", '{"const": 5}').output == "5\n"
    assert run("--grammar", str(tmp_path / "yes.gbnf")).output in ("yes\n", "no\n")
    for options, words in (
        (("--grammar", str(tmp_path / "bad.gbnf")), "line 2, column 3"),
        (("--grammar", str(tmp_path / "bytes.gbnf")), "cannot be read as text"),
        (("--json-schema", "no-such-file"), "No such file"),
        (("--json-schema", "{oops"), "--json-schema: not JSON"),
        (("--json-schema", '{"type": "string", "format": "iri"}'), "format 'iri' cannot be promised"),
        (("--json-schema", "{}", "--grammar", str(tmp_path / "yes.gbnf")), "not both"),
    ):
        done = run(*options)
        assert done.exit_code
        assert words in done.output + str(done.exception)


def test_a_reply_that_is_cut_says_so(engine: LlamaCppEngine) -> None:
    settings = GenerationSettings(max_tokens=1, grammar=lark_from_gbnf('root ::= "a patient"'))
    steps = list(engine.generate(engine.tokenize("x"), settings))
    assert steps[-1].finish == "length"
    assert "a patient".startswith("".join(step.text for step in steps))


def test_a_bad_grammar_is_an_error_before_the_prompt_is_read(engine: LlamaCppEngine) -> None:
    before = engine.n_tokens_read
    with pytest.raises(EngineError, match="does not take the grammar"):
        engine.generate([1], GenerationSettings(grammar="root ::= ("))
    assert engine.n_tokens_read == before


@pytest.mark.parametrize(("schema", "message"), BAD, ids=[message for _, message in BAD])
def test_what_a_grammar_cannot_promise_is_an_error(schema: Any, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        lark_from_json_schema(schema)


def test_a_schema_that_needs_itself_never_ends() -> None:
    schema = {"type": "object", "properties": {"again": {"$ref": "#"}}, "required": ["again"]}
    with pytest.raises(EngineError, match="never ends"):
        lark_from_json_schema(schema)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> TokenTable:
    """The tokens of the tiny model, in which every byte is the token of its number."""
    with open_vocabulary(write_tiny_gguf(tmp_path_factory.mktemp("words") / "tiny.gguf")) as words:
        pieces = [words.piece(token) for token in range(words.n_tokens)]
        ends = {token for token in range(words.n_tokens) if words.is_end(token)}
    return token_table(len(pieces), pieces.__getitem__, ends.__contains__)


def takes(table: TokenTable, schema: Any, text: str) -> bool:
    """Whether the grammar takes the whole of `text`, byte by byte."""
    grammar = Grammar(table, lark_from_json_schema(schema))
    for token in text.encode():
        if not grammar.allows(token):
            return False
        grammar.accept(token)
    return grammar.allows(min(table.ends))


@given(st.integers(-2500, 2500), st.integers(0, 2500), st.data())
def test_an_integer_grammar_takes_its_range_and_nothing_else(
    table: TokenTable, low: int, width: int, data: st.DataObject
) -> None:
    high = low + width
    schema = {"type": "integer", "minimum": low, "maximum": high}
    for value in (low, high, data.draw(st.integers(low, high))):
        assert takes(table, schema, str(value))
    for value in (low - 1, high + 1, data.draw(st.integers(-9999, 99999))):
        assert takes(table, schema, str(value)) == (low <= value <= high)
    assert not takes(table, schema, f"0{max(high, 1)}")


@given(st.decimals(-1000, 1000, places=3), st.decimals(0, 1000, places=3), st.data())
def test_a_number_grammar_takes_nothing_out_of_its_range_and_all_within(
    table: TokenTable, low: Decimal, width: Decimal, data: st.DataObject
) -> None:
    high, step = low + width, Decimal("0.001")
    schema = {"type": "number", "exclusiveMinimum": float(low), "maximum": float(high + step)}
    for value in (low, low + step, high + step, high + 2 * step, data.draw(st.decimals(-3000, 3000, places=3))):
        taken = takes(table, schema, f"{value.normalize() + 0:f}")
        assert taken <= (low < value <= high + step)
        assert taken >= (low + step < value < high)  # a bound itself may need zeros behind it: 0.10


@pytest.mark.parametrize(("schema", "text"), [
    ({"type": "integer"}, "9" * 16),
    ({"type": "number"}, "1e999"),
    ({"type": "number", "exclusiveMinimum": 0}, "0." + "0" * 400 + "1"),
    ({"type": "number", "exclusiveMaximum": 3.5}, "3.49999999999999999999"),
    ({}, "9" * 16),
    ({"type": "object", "properties": {"a": {"type": "integer"}}}, '{"\\u0061":"x"}'),
    ({"type": "object", "properties": {"a": {"type": "integer"}}}, '{"a":1,"a":2}'),
    ({"type": "string"}, '"\\ud800"'),
    ({"type": "boolean"}, "true" + " "),
    ({"type": "array"}, "[" + "\n" + " " * 21),
])  # fmt: skip
def test_what_a_reader_could_misread_is_not_written(table: TokenTable, schema: Any, text: str) -> None:
    assert not takes(table, schema, text)


def test_many_optional_properties_cost_little(engine: LlamaCppEngine) -> None:
    """400 took 8 seconds with llama.cpp's grammar."""
    started = time.process_time()
    text, _ = reply(engine, {"properties": {f"p{i}": {"type": "string"} for i in range(400)}}, "answer", 1.0, 1)
    assert text
    assert time.process_time() - started < 5

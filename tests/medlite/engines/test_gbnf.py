"""Grammars are refused with their line before llama.cpp sees them, and what passes, llama.cpp takes."""

import pytest

from medlite.engines.gbnf import MOST_NESTED, check_gbnf
from medlite.engines.llamacpp.grammar import Grammar
from medlite.engines.llamacpp.native import Model
from medlite.errors import EngineError
from tests.helpers.tiny_gguf import write_tiny_gguf

GOOD = [
    'root ::= "yes" | "no"',
    '# a comment\nroot ::= item+ # more\n\nitem ::= "- " [^\\r\\n]+ "\\n"\n',
    'root ::= ("a" |\n "b")* "end"',
    'root ::= [a-zA-Z0-9_-] [\\]\\[^"] . [\\x41-\\u0042] "\\U0001F600"',
    'root ::= "a"{3} "b"{2,} "c"{0,5} "d"? ("e" "f"){1,2}',
    'root ::= "" | "x" root',
    'root ::= list\nlist ::= "[" (root ("," root)*)? "]"',
    'root ::= a\r\na ::= "x"\r\n',
    "root ::= " + "(" * 60 + '"x"' + ")" * 60,
]
BAD = [
    ("", "no rule root"),
    ('start ::= "a"', "no rule root"),
    ('root := "a"', "line 1, column 6"),
    ('root ::= "a"\nb ::= [', "line 2, column 8"),
    ('root ::= "a', "closing quote"),
    ('root ::= "\\q"', "line 1, column 11"),
    ("root ::= b\n\n", "a rule b was needed"),
    ('root ::= "a" )', "line 1, column 14"),
    ('root ::= ("a"', r"\) was needed"),
    ("root ::= *", "an element"),
    ('root ::= "a"{2,1}', "ascend"),
    ('root ::= "a"{9999}', "at most 2000"),
    ('root ::= "a"{x}', r"\{n,m\}"),
    ("root ::= []", "at least one character"),
    ("root ::= <think>", "tokens by name"),
    ('root ::= "a"\nroot ::= "b"', "not two"),
    ('root ::= root "a" | "b"', "without passing a character"),
    # llama.cpp does not return from this one
    ('root ::= b root "z" | "x"\nb ::= c c\nc ::= d\nd ::= "" | "y"', "without passing a character"),
    ('root ::= ("a"?)*', "without passing a character"),
    ('root ::= "a" root', "never ends"),
    ('root ::= "a" b\nb ::= "c" b | "d" b', "rule b never ends|rule root never ends"),
    ("root ::= " + "(" * (MOST_NESTED + 1) + '"x"' + ")" * (MOST_NESTED + 1), "nested groups"),
    ('root ::= "a\0"', "zero byte"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(write_tiny_gguf(tmp_path_factory.mktemp("gbnf") / "tiny.gguf"), n_gpu_layers=0)


@pytest.mark.parametrize("text", GOOD)
def test_what_passes_the_check_llama_cpp_takes(model: Model, text: str) -> None:
    Grammar(model, text).free()


@pytest.mark.parametrize(("text", "message"), BAD)
def test_what_is_wrong_is_said_with_its_place(text: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        check_gbnf(text)


def test_a_control_token_is_no_text_whatever_its_name(model: Model) -> None:
    grammar = Grammar(model, "root ::= [^!]*")
    header = model.vocabulary.tokenize("<|start_header_id|>", add_special=False, parse_special=True)
    end = model.vocabulary.tokenize("<|eot_id|>", add_special=False, parse_special=True)
    letter = model.vocabulary.tokenize("a", add_special=False, parse_special=False)
    assert [grammar.allows(token) for token in (*header, *end, *letter)] == [False, True, True]
    grammar.free()

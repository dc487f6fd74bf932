"""GBNF as llguidance reads it, against llama.cpp's own grammar sampler, and refused with its line."""

import random
import time
from collections.abc import Iterator

import numpy as np
import pytest

from medlite.engines.gbnf import MOST_NESTED, lark_from_gbnf
from medlite.engines.grammar import Grammar, TokenTable, token_table
from medlite.engines.llamacpp.native import Model
from medlite.errors import EngineError
from tests.helpers.llama_grammar import LlamaGrammar
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
    ('root ::= "a" root', "never ends"),
    ('root ::= "a" b\nb ::= "c" b | "d" b', "rule b never ends|rule root never ends"),
    ("root ::= " + "(" * (MOST_NESTED + 1) + '"x"' + ")" * (MOST_NESTED + 1), "nested groups"),
    ('root ::= "a\0"', "zero byte"),
    ('root ::= "\\uD800"', "a character of Unicode"),
    ("root ::= [z-a]", "a range that ascends"),
    # llguidance ends the process on more of the first, and takes seconds for more of the second
    ("root ::= x0\n" + "".join(f'x{i} ::= "a" x{i + 1} | "b"\n' for i in range(1000)), "at most 1000 rules"),
    (f'root ::= "{"a" * 50_001}"', "at most 50000 characters"),
]
# llama.cpp refuses these, or does not return.
LEFT_RECURSIVE = [
    ('root ::= root "a" | "b"', ["b", "baa"], ["", "a", "ab"]),
    ('root ::= b root "z" | "x"\nb ::= c c\nc ::= d\nd ::= "" | "y"', ["x", "xz", "yyxz", "yxzz"], ["yx", "yyyxz"]),
    ('root ::= ("a"?)*', ["", "aaa"], ["b"]),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    opened = Model(write_tiny_gguf(tmp_path_factory.mktemp("gbnf") / "tiny.gguf"), n_gpu_layers=0)
    yield opened
    opened.free()


@pytest.fixture(scope="module")
def table(model: Model) -> TokenTable:
    return token_table(model.n_vocab, model.vocabulary.piece, model.vocabulary.is_end)


@pytest.mark.parametrize("text", GOOD)
def test_llama_cpp_allows_the_same_tokens(model: Model, table: TokenTable, text: str) -> None:
    """Along random replies, every token of the vocabulary at every step."""
    tokens = range(model.n_vocab)
    for seed in range(5):
        draw = random.Random(seed)
        ours, theirs = Grammar(table, lark_from_gbnf(text)), LlamaGrammar(model, text)
        for _ in range(30):
            mask = ours.allowed(np.arange(model.n_vocab))
            allowed = [token for token in tokens if mask[token]]
            assert allowed == [token for token in tokens if theirs.allows(token)]
            assert [token for token in tokens if ours.allows(token)] == allowed
            token = draw.choice(allowed)
            if model.vocabulary.is_end(token):
                break
            ours.accept(token)
            theirs.accept(token)
        theirs.free()


@pytest.mark.parametrize(("text", "taken", "refused"), LEFT_RECURSIVE)
def test_rules_may_begin_with_themselves(
    model: Model, table: TokenTable, text: str, taken: list[str], refused: list[str]
) -> None:
    def takes(reply: str) -> bool:
        grammar = Grammar(table, lark_from_gbnf(text))
        for letter in reply:
            (token,) = model.vocabulary.tokenize(letter, add_special=False, parse_special=False)
            if not grammar.allows(token):
                return False
            grammar.accept(token)
        return grammar.allows(min(table.ends))

    assert [reply for reply in taken + refused if takes(reply)] == taken


def test_the_longest_chain_of_rules_is_taken(table: TokenTable) -> None:
    chain = "".join(f'x{i} ::= "a" x{i + 1} | "b"\n' for i in range(998))
    assert Grammar(table, lark_from_gbnf(f'root ::= x0\n{chain}x998 ::= "c"\n'))


def test_a_long_reply_of_many_optional_parts_stays_fast(table: TokenTable) -> None:
    """llama.cpp's own grammar took 84 seconds for eight tokens of it."""
    grammar = Grammar(table, lark_from_gbnf("root ::= " + "[a-z]? " * 400))
    started = time.process_time()
    for _ in range(300):
        token = int(np.flatnonzero(grammar.allowed(np.arange(table.n_vocab)))[0])
        grammar.accept(token)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(("text", "message"), BAD)
def test_what_is_wrong_is_said_with_its_place(text: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        lark_from_gbnf(text)


def test_a_control_token_is_no_text_whatever_its_name(model: Model, table: TokenTable) -> None:
    grammar = Grammar(table, lark_from_gbnf("root ::= [^!]*"))
    header = model.vocabulary.tokenize("<|start_header_id|>", add_special=False, parse_special=True)
    end = model.vocabulary.tokenize("<|eot_id|>", add_special=False, parse_special=True)
    letter = model.vocabulary.tokenize("a", add_special=False, parse_special=False)
    assert [grammar.allows(token) for token in (*header, *end, *letter)] == [False, True, True]

"""GBNF, llama.cpp's grammar notation, as llguidance's Lark.

Every character of the GBNF text becomes a terminal of its own. llguidance cuts a reply into the longest terminals that
match, so `"a" [a-z]* "b"` with longer ones would take no reply at all; terminals of one character cut it in one way.
Syntax: llama.cpp grammars/README.md; llguidance docs/syntax.md.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from medlite.errors import EngineError

ROOT = "root"
HEADER = '%llguidance {"no_forcing": true}\n'  # else a forced text is cut into tokens by it, not by the model
MOST_REPEATED = 2000
MOST_NESTED = 64
# llguidance overflows its stack where about 3,000 rules lead to each other, and works for seconds on 100,000 terminals.
MOST_RULES, MOST_TERMINALS = 1000, 50_000

NAME = re.compile(r"[A-Za-z0-9-]+")
SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
CHARACTER = re.compile(r'\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[trn\\"\[\]-])|[^\\]', re.DOTALL)
COUNTS = re.compile(r"\{[ \t]*(\d+)[ \t]*(,[ \t]*(\d*)[ \t]*)?\}")
NAMED = {"t": "\t", "r": "\r", "n": "\n"}


@dataclass(frozen=True)
class Item:
    """A part of a sequence, in Lark. rule: the GBNF rule that must end for the item to end; None needs none."""

    lark: str
    rule: str | None = None


Rules = Mapping[str, list[list[Item]]]  # the alternatives of each rule, each a sequence


def lark_from_gbnf(text: str) -> str:
    """The grammar of the GBNF text, whose rule `root` is the whole reply.

    Raises EngineError with line and column for a text that is not GBNF, or with the rule that no reply can end.
    """
    if "\0" in text:
        raise EngineError("the grammar holds a zero byte")
    parser = _Parser(text)
    rules = parser.rules()
    if ROOT not in rules:
        raise EngineError(f"the grammar has no rule {ROOT}", hint=f"{ROOT} ::= ... says what a whole reply is")
    _check_ends(rules)
    lines = [f"start: {parser.lark_name(ROOT)}"]
    for name, alternatives in rules.items():
        bodies = (" ".join(item.lark for item in sequence) or '""' for sequence in alternatives)
        lines.append(f"{parser.lark_name(name)}: {' | '.join(bodies)}")
    return HEADER + "\n".join(lines) + "\n"


class _Parser:
    """Reads the rules of a grammar. A group becomes a rule of its own."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth, self.n_terminals = text, 0, 0, 0
        self.found: dict[str, list[list[Item]]] = {}
        self.referred: dict[str, int] = {}  # name -> where it is first used
        self._lark_names: dict[str, str] = {}

    def lark_name(self, name: str) -> str:
        return self._lark_names.setdefault(name, f"r{len(self._lark_names)}")

    def fail(self, needed: str, at: int | None = None) -> EngineError:
        at = self.at if at is None else at
        line = self.text.count("\n", 0, at) + 1
        column = at - (self.text.rfind("\n", 0, at) + 1) + 1
        found = repr(self.text[at : at + 12]) if at < len(self.text) else "its end"
        return EngineError(
            f"grammar, line {line}, column {column}: {found} found, {needed} was needed",
            hint="the notation: grammars/README.md of llama.cpp",
        )

    def rules(self) -> Rules:
        self.skip(lines=True)
        while self.at < len(self.text):
            name = self.take(NAME, "the name of a rule (letters, digits, -)")
            if name in self.found:
                raise self.fail(f"one rule {name}, not two", self.at - len(name))
            self.skip()
            if not self.text.startswith("::=", self.at):
                raise self.fail("::=")
            self.at += 3
            self.skip(lines=True)
            self.add_rule(name)
            if self.at < len(self.text) and self.text[self.at] not in "\r\n":
                raise self.fail("an element, | or the end of the line")
            self.skip(lines=True)
        for name, at in self.referred.items():
            if name not in self.found:
                raise self.fail(f"a rule {name}", at)
        return self.found

    def add_rule(self, name: str) -> None:
        if len(self.found) == MOST_RULES:
            raise self.fail(f"at most {MOST_RULES} rules and groups")
        self.found[name] = []
        self.found[name] = self.alternatives()

    def terminal(self, inside: str) -> str:
        """One character of those that the brackets hold."""
        self.n_terminals += 1
        if self.n_terminals > MOST_TERMINALS:
            raise self.fail(f"at most {MOST_TERMINALS} characters")
        return f"/[{inside}]/"

    def skip(self, *, lines: bool = False) -> None:
        match = (SPACE_AND_LINES if lines else SPACE).match(self.text, self.at)
        self.at = match.end() if match else self.at

    def take(self, pattern: re.Pattern[str], needed: str) -> str:
        match = pattern.match(self.text, self.at)
        if not match:
            raise self.fail(needed)
        self.at = match.end()
        return match[0]

    def alternatives(self) -> list[list[Item]]:
        found = [self.sequence()]
        while self.text.startswith("|", self.at):
            self.at += 1
            self.skip(lines=True)
            found.append(self.sequence())
        return found

    def sequence(self) -> list[Item]:
        sequence: list[Item] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)\r\n":
            item = self.element()
            self.skip(lines=self.depth > 0)
            while self.at < len(self.text) and self.text[self.at] in "*+?{":
                item = self.repeated(item)
                self.skip(lines=self.depth > 0)
            sequence.append(item)
        return sequence

    def element(self) -> Item:
        letter = self.text[self.at]
        if letter == '"':
            return self.literal()
        if letter == "[":
            return self.character_class()
        if letter == ".":
            self.at += 1
            return Item(self.terminal("^\\x{0}"))  # as in llama.cpp, zero is no character
        if letter == "(":
            return self.group()
        if letter in "<!":
            raise self.fail("text (tokens by name or id are not taken)")
        at = self.at
        referred = self.take(NAME, 'an element: "text", [characters], ( ), . or the name of a rule')
        self.referred.setdefault(referred, at)
        return Item(self.lark_name(referred), referred)

    def character(self, needed: str) -> str:
        """The next character, as a regular expression writes it inside brackets."""
        at = self.at
        written = self.take(CHARACTER, needed)
        if len(written) == 1:
            code = ord(written)
        elif written[1] in "xuU":
            code = int(written[2:], 16)
        else:
            code = ord(NAMED.get(written[1], written[1]))
        if not 0 < code <= 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            raise self.fail("a character of Unicode, not zero", at)
        return f"\\x{{{code:x}}}"

    def literal(self) -> Item:
        self.at += 1
        terminals = []
        while not self.text.startswith('"', self.at):
            terminals.append(self.terminal(self.character("a character, an escape or a closing quote")))
        self.at += 1
        return Item(f"({' '.join(terminals)})" if terminals else '""')

    def character_class(self) -> Item:
        begin = self.at
        self.at += 1
        negated = self.text.startswith("^", self.at)
        self.at += negated
        inside = "^\\x{0}" if negated else ""
        n = 0
        while not self.text.startswith("]", self.at):
            first_at = self.at
            inside += (first := self.character("a character, an escape or a closing bracket"))
            if self.text.startswith("-", self.at) and not self.text.startswith("-]", self.at):
                self.at += 1
                last = self.character("the last character of a range")
                if int(last[3:-1], 16) < int(first[3:-1], 16):
                    raise self.fail("a range that ascends", first_at)
                inside += f"-{last}"
            n += 1
        self.at += 1
        if not n:
            raise self.fail("at least one character between the brackets", begin)
        return Item(self.terminal(inside))

    def group(self) -> Item:
        if self.depth == MOST_NESTED:
            raise self.fail(f"at most {MOST_NESTED} nested groups")
        self.at += 1
        self.depth += 1
        self.skip(lines=True)
        name = f"group {len(self.found)}"  # no name in a grammar holds a space
        self.add_rule(name)
        if not self.text.startswith(")", self.at):
            raise self.fail(")")
        self.at += 1
        self.depth -= 1
        return Item(self.lark_name(name), name)

    def repeated(self, item: Item) -> Item:
        letter = self.text[self.at]
        if letter != "{":
            self.at += 1
            return Item(f"({item.lark}){letter}", item.rule if letter == "+" else None)
        begin = self.at
        match = COUNTS.match(self.text, self.at)
        if not match:
            raise self.fail("{n}, {n,} or {n,m}")
        self.at = match.end()
        n_least = int(match[1])
        n_most = n_least if match[2] is None else int(match[3]) if match[3] else None
        if max(n_least, n_most or 0) > MOST_REPEATED or (n_most is not None and n_most < n_least):
            raise self.fail(f"counts that ascend, at most {MOST_REPEATED}", begin)
        if n_most == 0:
            return Item('""')
        most = "" if n_most is None else n_most
        return Item(f"({item.lark}){{{n_least},{most}}}", item.rule if n_least else None)


def _check_ends(rules: Rules) -> None:
    """Raise EngineError for a rule that no text ends."""
    ending: set[str | None] = {None}
    while new := {
        name
        for name, alternatives in rules.items()
        if name not in ending and any(all(item.rule in ending for item in sequence) for sequence in alternatives)
    }:
        ending |= new
    for name in rules:
        if name not in ending:
            raise EngineError(f"the grammar's rule {name} never ends", hint="give it an alternative without itself")

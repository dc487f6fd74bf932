"""GBNF, llama.cpp's grammar notation, checked before llama.cpp reads it.

llama.cpp's parser (src/llama-grammar.cpp) prints errors to stderr without a line, does not return for {2,1} nor for
some left recursion through rules that may be empty, overflows its stack on deep nesting, and widens a repetition above
2000 to any number. What passes here is none of these. Syntax: llama.cpp grammars/README.md.
"""

import re
from collections.abc import Callable, Iterator, Mapping

from medlite.errors import EngineError

ROOT = "root"
MOST_REPEATED = 2000  # llama-grammar.cpp, MAX_REPETITION_THRESHOLD
MOST_NESTED = 64

NAME = re.compile(r"[A-Za-z0-9-]+")
SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
CHARACTER = re.compile(r'\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[trn\\"\[\]-])|[^\\]', re.DOTALL)
COUNTS = re.compile(r"\{[ \t]*(\d+)[ \t]*(,[ \t]*(\d*)[ \t]*)?\}")

# A rule is a list of alternatives, an alternative the names of rules that it passes; None stands for a character.
Alternative = list[str | None]
Passes = Callable[[str | None, set[str]], bool]


def check_gbnf(text: str) -> None:
    """Raise EngineError, with line and column, unless llama.cpp can hold a reply to the grammar `text`."""
    if "\0" in text:
        raise EngineError("the grammar holds a zero byte")
    rules = _Parser(text).rules()
    if ROOT not in rules:
        raise EngineError(f"the grammar has no rule {ROOT}", hint=f"{ROOT} ::= ... says what a whole reply is")
    nullable = _fixpoint(rules, lambda name, known: name in known)
    ending = _fixpoint(rules, lambda name, known: name is None or name in known)
    for name in rules:
        if name not in ending:
            raise EngineError(
                f"the grammar's rule {_shown(name)} never ends", hint="give it an alternative without itself"
            )
    _check_left_recursion(rules, nullable)


class _Parser:
    """Reads the rules of a grammar. Groups and repetitions become rules of their own, as in llama.cpp."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0
        self.found: dict[str, list[Alternative]] = {}
        self.referred: dict[str, int] = {}  # name -> where it is first used

    def fail(self, needed: str, at: int | None = None) -> EngineError:
        at = self.at if at is None else at
        line = self.text.count("\n", 0, at) + 1
        column = at - (self.text.rfind("\n", 0, at) + 1) + 1
        found = repr(self.text[at : at + 12]) if at < len(self.text) else "its end"
        return EngineError(
            f"grammar, line {line}, column {column}: {found} found, {needed} was needed",
            hint="the notation: grammars/README.md of llama.cpp",
        )

    def rules(self) -> Mapping[str, list[Alternative]]:
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
            self.found[name] = []
            self.found[name] = self.alternatives(name)
            if self.at < len(self.text) and self.text[self.at] not in "\r\n":
                raise self.fail("an element, | or the end of the line")
            self.skip(lines=True)
        for name, at in self.referred.items():
            if name not in self.found:
                raise self.fail(f"a rule {name}", at)
        return self.found

    def skip(self, *, lines: bool = False) -> None:
        match = (SPACE_AND_LINES if lines else SPACE).match(self.text, self.at)
        self.at = match.end() if match else self.at

    def take(self, pattern: re.Pattern[str], needed: str) -> str:
        match = pattern.match(self.text, self.at)
        if not match:
            raise self.fail(needed)
        self.at = match.end()
        return match[0]

    def alternatives(self, name: str) -> list[Alternative]:
        found = [self.sequence(name)]
        while self.text.startswith("|", self.at):
            self.at += 1
            self.skip(lines=True)
            found.append(self.sequence(name))
        return found

    def sequence(self, name: str) -> Alternative:
        sequence: Alternative = []
        while self.at < len(self.text) and self.text[self.at] not in "|)\r\n":
            item = self.item(name)
            self.skip(lines=self.depth > 0)
            while self.at < len(self.text) and self.text[self.at] in "*+?{":
                item = self.repeated(name, item)
                self.skip(lines=self.depth > 0)
            sequence += item
        return sequence

    def item(self, name: str) -> Alternative:
        """One element, as the rules and characters it passes."""
        letter = self.text[self.at]
        if letter == '"':
            return self.literal()
        if letter == "[":
            return self.character_class()
        if letter == ".":
            self.at += 1
            return [None]
        if letter == "(":
            return self.group(name)
        if letter in "<!":
            raise self.fail("text (tokens by name or id are not taken)")
        at = self.at
        referred = self.take(NAME, 'an element: "text", [characters], ( ), . or the name of a rule')
        self.referred.setdefault(referred, at)
        return [referred]

    def literal(self) -> Alternative:
        self.at += 1
        n = 0
        while not self.text.startswith('"', self.at):
            self.take(CHARACTER, "a character, an escape or a closing quote")
            n += 1
        self.at += 1
        return [None] if n else []

    def character_class(self) -> Alternative:
        begin = self.at
        self.at += 1 + self.text.startswith("^", self.at + 1)
        n = 0
        while not self.text.startswith("]", self.at):
            self.take(CHARACTER, "a character, an escape or a closing bracket")
            if self.text.startswith("-", self.at) and not self.text.startswith("-]", self.at):
                self.at += 1
                self.take(CHARACTER, "the last character of a range")
            n += 1
        self.at += 1
        if not n:
            raise self.fail("at least one character between the brackets", begin)
        return [None]

    def group(self, name: str) -> Alternative:
        if self.depth == MOST_NESTED:
            raise self.fail(f"at most {MOST_NESTED} nested groups")
        self.at += 1
        self.depth += 1
        self.skip(lines=True)
        inner = self.new_rule(name, self.alternatives(name))
        if not self.text.startswith(")", self.at):
            raise self.fail(")")
        self.at += 1
        self.depth -= 1
        return [inner]

    def repeated(self, name: str, item: Alternative) -> Alternative:
        letter = self.text[self.at]
        if letter != "{":
            self.at += 1
            n_least, n_most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[letter]
        else:
            begin = self.at
            match = COUNTS.match(self.text, self.at)
            if not match:
                raise self.fail("{n}, {n,} or {n,m}")
            self.at = match.end()
            n_least = int(match[1])
            n_most = n_least if match[2] is None else int(match[3]) if match[3] else None
            if max(n_least, n_most or 0) > MOST_REPEATED or (n_most is not None and n_most < n_least):
                raise self.fail(f"counts that ascend, at most {MOST_REPEATED}", begin)
        more = [] if n_most == n_least else [self.new_rule(name, [item, []])]
        if n_most is None:
            self.found[str(more[0])][0] = [*item, more[0]]
        return [*(item if n_least else []), *more]

    def new_rule(self, name: str, alternatives: list[Alternative]) -> str:
        inner = f"{name} {len(self.found)}"  # no name in a grammar holds a space
        self.found[inner] = alternatives
        return inner


def _shown(name: str) -> str:
    return name.split(" ")[0]


def _fixpoint(rules: Mapping[str, list[Alternative]], passes: Passes) -> set[str]:
    """The rules that have an alternative all of whose parts pass, given the rules that do."""
    known: set[str] = set()
    grew = True
    while grew:
        new = {
            name
            for name, alternatives in rules.items()
            if name not in known
            and any(all(passes(part, known) for part in alternative) for alternative in alternatives)
        }
        known |= new
        grew = bool(new)
    return known


def _check_left_recursion(rules: Mapping[str, list[Alternative]], nullable: set[str]) -> None:
    """Raise EngineError if a rule can reach itself before it has passed a character."""
    done: set[str] = set()
    for start in rules:
        path: list[str] = []
        stack: list[tuple[str, Iterator[str]]] = [(start, iter(_first_rules(rules[start], nullable)))]
        while stack and start not in done:
            name, following = stack[-1]
            if not path or path[-1] != name:
                path.append(name)
            child = next(following, None)
            if child is None:
                done.add(path.pop())
                stack.pop()
            elif child in path:
                raise EngineError(
                    f"the grammar's rule {_shown(child)} reaches itself without passing a character",
                    hint="write repetition to the right, and repeat nothing that may be empty",
                )
            elif child not in done:
                stack.append((child, iter(_first_rules(rules[child], nullable))))


def _first_rules(alternatives: list[Alternative], nullable: set[str]) -> list[str]:
    """The rules that may stand first."""
    found: list[str] = []
    for alternative in alternatives:
        for part in alternative:
            if part is None:
                break
            found.append(part)
            if part not in nullable:
                break
    return found

"""A JSON schema as a grammar: every text of the grammar is JSON that the schema takes.

llguidance compiles the schema; what stands here is what it does not promise. Keywords that it would ignore, or that
no grammar can hold (uniqueItems, not, if, ...), are errors with their place. Numbers get bounds and few enough digits
for a double. Objects hold the listed properties in their order and no others, since an escape could spell a listed name
a second time. Keywords: json-schema.org, draft 2020-12; llguidance docs/json_schema.md.
"""

import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from llguidance import LLMatcher

from medlite.engines.gbnf import HEADER
from medlite.errors import EngineError

MOST_ALTERNATIVES = 1000
MOST_PROPERTIES = 2000  # of one object; llguidance's time grows with their square
MOST_DIGITS = 15  # a double tells all numbers of 15 digits apart
MOST_DECIMALS = 10  # llguidance reads no finer multipleOf
LARGEST = 10**MOST_DIGITS - 1
WHITESPACE = "[ ]|\n[ \t]{0,20}"  # between the parts of a reply; a model may else write blanks for ever
KINDS = ("object", "array", "string", "number", "integer", "boolean", "null")
# fmt: off
ANNOTATIONS = frozenset(("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
                         "$schema", "$id", "$comment", "$anchor", "$defs", "definitions"))
NUMBER = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
# What a keyword says of one kind of value; it says nothing of the others.
KEYWORDS: dict[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": NUMBER, "integer": NUMBER, "boolean": (), "null": (),
}
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
# fmt: on
# What Rust's regular expressions read otherwise than ECMA's: set operations, "]" first or "[" in brackets, flags and
# names, and most escapes of letters.
NOT_ECMA = re.compile(
    r"&&|--|~~|\[\^?\]|\[(?:[^\]\\]|\\.)*\[|\(\?(?!:)"
    r"|\\(?![dDwWsStnrfv]|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|[^A-Za-z0-9<>])"
)
ANY = {"$ref": "#/$defs/any"}


def lark_from_json_schema(schema: Any) -> str:
    """The grammar of replies that `schema` (parsed JSON) takes.

    Raises EngineError naming the place in the schema and the keyword that a grammar cannot promise.
    """
    try:
        json.dumps(schema, ensure_ascii=False, allow_nan=False).encode()
        whole = _Checked(schema).whole
    except ValueError as error:
        raise _fail("#", f"is no JSON: {error}") from None
    except RecursionError:
        raise _fail("#", "nested too deeply") from None
    checked = {**whole, "x-guidance": {"whitespace_pattern": WHITESPACE}}
    text = f"{HEADER}start: %json {json.dumps(checked)}\n"
    if reason := LLMatcher.validate_grammar(text):
        raise _fail("#", _said(reason))
    return text


def _fail(place: str, what: str, hint: str | None = None) -> EngineError:
    return EngineError(f"schema, {place}: {what}", hint=hint)


def _said(reason: str) -> str:
    """llguidance's reason without the lines that show its place; of a regular expression's error the last line."""
    lines = reason.strip().splitlines()
    in_expression = [line.strip() for line in lines if line.strip().startswith("error: ")]
    return (in_expression or lines)[0].split("failed to compile JSON schema: ")[-1]


class _Checked:
    """A schema rewritten so that llguidance writes nothing but what it takes. References become entries of $defs."""

    def __init__(self, document: Any) -> None:
        self._document = document
        self._definitions: dict[str, Any] = {"any": ANY_VALUE}
        self._name_of: dict[str, str] = {}  # of a reference, in the definitions
        root = self.schema(document, "#")
        ending: set[str] = set()
        while new := {n for n, s in self._definitions.items() if n not in ending and _ends(s, ending)}:
            ending |= new
        for target, name in self._name_of.items():
            if name not in ending:
                raise _fail(target, "what it takes never ends", "do not require in a value the same again")
        self.whole = {**root, "$defs": self._definitions}

    def schema(self, schema: Any, place: str) -> dict[str, Any]:
        if schema is True or schema == {}:
            return dict(ANY)
        if schema is False:
            raise _fail(place, "takes no value at all")
        if not isinstance(schema, Mapping):
            raise _fail(place, f"{schema!r} is no schema, an object was needed")
        for keyword, build in (
            ("$ref", self._reference),
            ("enum", _enum),
            ("const", _enum),
            ("anyOf", self._union),
            ("oneOf", self._union),
            ("allOf", self._all),
        ):
            if keyword in schema:
                _check_alone(schema, keyword, place)
                return build(schema, place)
        kinds = _stated_kinds(schema, place) if "type" in schema else _implied_kinds(schema)
        _check_keywords(schema, place)
        if not kinds:
            return dict(ANY)
        typed = [self._typed(kind, schema, place) for kind in kinds]
        return typed[0] if len(typed) == 1 else {"anyOf": typed}

    def _typed(self, kind: str, schema: Mapping[str, Any], place: str) -> dict[str, Any]:
        if kind == "object":
            return self._object(schema, place)
        if kind == "array":
            return self._array(schema, place)
        stated = {keyword: schema[keyword] for keyword in KEYWORDS[kind] if keyword in schema}
        if kind == "string":
            _check_string(stated, place)
        found = _number(kind, stated, place) if kind in ("number", "integer") else {"type": kind, **stated}
        if stated and (reason := LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(found))):
            raise _fail(place, _said(reason))
        return found

    def _array(self, schema: Mapping[str, Any], place: str) -> dict[str, Any]:
        first = schema.get("prefixItems", [])
        if not isinstance(first, list):
            raise _fail(place, "prefixItems must be a list of schemas")
        found = {keyword: schema[keyword] for keyword in ("minItems", "maxItems") if keyword in schema}
        for keyword, value in found.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise _fail(place, f"{keyword} is {value!r}, an integer from 0 was needed")
        rest = schema.get("items", True)
        return {
            "type": "array",
            "prefixItems": [self.schema(item, f"{place}/prefixItems/{i}") for i, item in enumerate(first)],
            "items": rest is not False and self.schema(rest, f"{place}/items"),
            **found,
        }

    def _object(self, schema: Mapping[str, Any], place: str) -> dict[str, Any]:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise _fail(place, "properties must be an object, required a list")
        for name in required:
            if not isinstance(name, str):
                raise _fail(place, f"required holds {name!r}, a property's name was needed")
        others = schema.get("additionalProperties", True)
        named = {**properties, **{name: others for name in required if name not in properties}}
        if len(named) > MOST_PROPERTIES:
            raise _fail(place, f"more than {MOST_PROPERTIES} properties")
        if not named:
            rest = others is not False and self.schema(others, f"{place}/additionalProperties")
            return {"type": "object", "additionalProperties": rest}
        return {
            "type": "object",
            "properties": {name: self.schema(value, f"{place}/properties/{name}") for name, value in named.items()},
            "required": required,
            "additionalProperties": False,
        }

    def _union(self, schema: Mapping[str, Any], place: str) -> dict[str, Any]:
        keyword = "anyOf" if "anyOf" in schema else "oneOf"
        options = schema[keyword]
        if not isinstance(options, list) or not 0 < len(options) <= MOST_ALTERNATIVES:
            raise _fail(place, f"{keyword} must be a list of 1 to {MOST_ALTERNATIVES} schemas")
        union = {"anyOf": [self.schema(option, f"{place}/{keyword}/{i}") for i, option in enumerate(options)]}
        if keyword == "oneOf":  # llguidance takes it where the kinds, values or a property tell all options apart
            places = {name: self._document[name] for name in ("$defs", "definitions") if name in self._document}
            if LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema({"oneOf": options, **places})):
                raise _fail(place, "values may match two schemas of oneOf", "anyOf, if that is meant")
        return union

    def _all(self, schema: Mapping[str, Any], place: str) -> dict[str, Any]:
        options = schema["allOf"]
        if not isinstance(options, list) or len(options) != 1:
            raise _fail(place, "allOf of several schemas cannot be promised", "write one schema that says all")
        return self.schema(options[0], f"{place}/allOf/0")

    def _reference(self, schema: Mapping[str, Any], place: str) -> dict[str, Any]:
        target = schema["$ref"]
        found = self._resolve(target, place)
        if target not in self._name_of:
            name = self._name_of[target] = f"{len(self._name_of)}"
            self._definitions[name] = {}
            self._definitions[name] = self.schema(found, target)
        return {"$ref": f"#/$defs/{self._name_of[target]}"}

    def _resolve(self, target: Any, place: str) -> Any:
        if not isinstance(target, str) or not target.startswith("#"):
            raise _fail(place, f"$ref {target!r}: only places in the same schema are read", '"$ref": "#/$defs/NAME"')
        found: Any = self._document
        for step in filter(None, target[1:].split("/")):
            step = unquote(step).replace("~1", "/").replace("~0", "~")
            index = int(step) if isinstance(found, list) and step.isdecimal() else step
            try:
                found = found[index]
            except (KeyError, IndexError, TypeError):
                raise _fail(place, f"$ref {target}: there is no {step!r}") from None
        return found


def _check_alone(schema: Mapping[str, Any], keyword: str, place: str) -> None:
    others = set(schema) - ANNOTATIONS - {keyword} - ({"type"} if keyword in ("enum", "const") else set())
    if keyword == "oneOf":
        others -= {"discriminator"}  # OpenAPI's annotation of the same
    if others:
        raise _fail(
            place, f"{', '.join(sorted(others))} beside {keyword} cannot be promised", "write one schema that says both"
        )


def _check_keywords(schema: Mapping[str, Any], place: str) -> None:
    known = ANNOTATIONS | {"type"} | frozenset().union(*KEYWORDS.values())
    for keyword in schema:
        if keyword not in known and not (keyword == "uniqueItems" and schema[keyword] is False):
            raise _fail(
                place,
                f"{keyword} cannot be promised by a grammar",
                "leave it out and check the reply, or say it with enum, type and lengths",
            )


def _check_string(stated: Mapping[str, Any], place: str) -> None:
    if stated.get("format", FORMATS[0]) not in FORMATS:
        raise _fail(place, f"format {stated['format']!r} cannot be promised", f"one of {', '.join(FORMATS)}")
    pattern = stated.get("pattern", "")
    if not isinstance(pattern, str):
        raise _fail(place, f"pattern is {pattern!r}, a regular expression was needed")
    if found := NOT_ECMA.search(pattern):
        raise _fail(place, f"pattern: {found[0]} cannot be promised", "a plain regular expression without look-around")


def _number(kind: str, stated: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The kind within inclusive bounds, in steps so large that a double tells a number from what lies out of bounds.

    llguidance takes 0 for {"exclusiveMinimum": 0, "maximum": 0.001}, so it is given no exclusive bounds.
    """
    for keyword, value in stated.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST:
            raise _fail(place, f"{keyword} is {value!r}, a number of at most {MOST_DIGITS} digits was needed")
    multiple = stated.get("multipleOf", 1)
    if multiple <= 0 or multiple != int(multiple):  # validators divide doubles and do not agree on 0.07 / 0.01
        raise _fail(place, f"multipleOf {multiple!r} cannot be promised", "a positive integer")
    n_before = max((len(str(int(abs(value)))) for value in stated.values()), default=0)
    n_decimals = min(MOST_DECIMALS, MOST_DIGITS - n_before) if kind == "number" and "multipleOf" not in stated else 0
    step = Decimal(10) ** -n_decimals
    low, high = Decimal(-LARGEST), Decimal(LARGEST)
    for keyword, value in stated.items():
        n_steps = Decimal(repr(value)) / step
        if keyword == "minimum":
            low = max(low, math.ceil(n_steps) * step)
        elif keyword == "exclusiveMinimum":
            low = max(low, (math.floor(n_steps) + 1) * step)
        elif keyword == "maximum":
            high = min(high, math.floor(n_steps) * step)
        elif keyword == "exclusiveMaximum":
            high = min(high, (math.ceil(n_steps) - 1) * step)
    if low > high:
        raise _fail(place, f"no {kind} of at most {MOST_DIGITS} digits lies within its bounds")
    as_read = float if n_decimals else int
    found = {"type": kind, "minimum": as_read(low), "maximum": as_read(high)}
    if kind == "number" or multiple > 1:
        found["multipleOf"] = int(multiple) if multiple > 1 else as_read(step)
    return found


def _enum(schema: Mapping[str, Any], place: str) -> dict[str, Any]:
    values = schema["enum"] if "enum" in schema else [schema["const"]]
    if not isinstance(values, list) or not 0 < len(values) <= MOST_ALTERNATIVES:
        raise _fail(place, f"enum must be a list of 1 to {MOST_ALTERNATIVES} values")
    for value in values:
        _check_short(value, place)
    kinds = _stated_kinds(schema, place) if "type" in schema else KINDS
    fitting = [value for value in values if any(_is_kind(value, kind) for kind in kinds)]
    if not fitting:
        raise _fail(place, "no value of enum has the type")
    return {"enum": fitting}


def _check_short(value: Any, place: str) -> None:
    """Raise EngineError for a number that a reply would write otherwise than Python reads it."""
    if isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            _check_short(inner, place)
    elif isinstance(value, int | float) and abs(value) > LARGEST:
        raise _fail(place, f"{value!r} has more than {MOST_DIGITS} digits")


def _ends(schema: Mapping[str, Any], ending: set[str]) -> bool:
    """Whether a rewritten schema takes a value that ends, given the definitions that do."""
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2] in ending
    if "anyOf" in schema:
        return any(_ends(option, ending) for option in schema["anyOf"])
    needed: list[Any] = []
    if schema.get("type") == "object":
        needed = [schema["properties"][name] for name in schema.get("required", ())]
    elif schema.get("type") == "array":
        n_least = schema.get("minItems", 0)
        needed = schema["prefixItems"][:n_least]
        if n_least > len(needed) and schema["items"]:
            needed.append(schema["items"])
    return all(_ends(one, ending) for one in needed)


def _stated_kinds(schema: Mapping[str, Any], place: str) -> list[str]:
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    for kind in kinds or [[]]:
        if not isinstance(kind, str) or kind not in KINDS:
            raise _fail(place, f"unknown type {kind!r}", f"one of {', '.join(KINDS)}")
    return kinds


def _implied_kinds(schema: Mapping[str, Any]) -> list[str]:
    """Kinds of a schema without a type: those that its keywords speak of; none if it speaks of no kind."""
    return [kind for kind in ("object", "array", "string", "number") if set(KEYWORDS[kind]) & set(schema)]


def _is_kind(value: Any, kind: str) -> bool:
    if kind in ("number", "integer"):
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and (kind == "number" or float(value).is_integer())
        )
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    return isinstance(value, types.get(kind, ()))


ANY_VALUE = {
    "anyOf": [
        *({"type": kind} for kind in ("null", "boolean", "string")),
        _number("number", {}, "#"),
        {"type": "array", "prefixItems": [], "items": ANY},
        {"type": "object", "additionalProperties": ANY},
    ]
}

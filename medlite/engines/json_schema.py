"""A JSON schema as a GBNF grammar: every text of the grammar is JSON that the schema takes.

Sound, not complete: of the schema's instances the grammar writes those with the listed properties in their order,
numbers of at most 15 digits, and little white space. What it cannot promise (pattern, uniqueItems, overlapping oneOf,
format, ...) is an error, never dropped silently. Keywords: json-schema.org, draft 2020-12.
"""

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from medlite.engines.json_numbers import integer_between, number_expression
from medlite.errors import EngineError

MOST_REPEATED = 2000  # gbnf.MOST_REPEATED
MOST_ALTERNATIVES = 1000
KINDS = ("object", "array", "string", "number", "integer", "boolean", "null")
# fmt: off
ANNOTATIONS = frozenset(("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
                         "$schema", "$id", "$comment", "$anchor", "$defs", "definitions"))
# fmt: on
# What a keyword says of one kind of value; it says nothing of the others.
KEYWORDS: dict[str, frozenset[str]] = {
    "object": frozenset(("properties", "required", "additionalProperties")),
    "array": frozenset(("items", "prefixItems", "minItems", "maxItems")),
    "string": frozenset(("minLength", "maxLength")),
    "number": frozenset(("minimum",)),
    "integer": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")),
    "boolean": frozenset(),
    "null": frozenset(),
}
FIXED_RULES = {
    "ws": '( " " | "\\n" [ \\t]{0,20} )?',
    "char": r'[^"\\\x00-\x1F] | "\\" ( ["\\/bfnrt] | "u" unit )',
    "unit": "[0-9A-CEFa-cef] [0-9A-Fa-f]{3} | [Dd] [0-7] [0-9A-Fa-f]{2}",  # no half of a surrogate pair
    "string": r'"\"" char* "\""',
    "number": number_expression(negative=True),
    "value": 'object | array | string | number | "true" | "false" | "null"',
    "object": '"{" ws ( string ":" ws value ( "," ws string ":" ws value )* )? ws "}"',
    "array": '"[" ws ( value ( "," ws value )* )? ws "]"',
}


def json_schema_to_gbnf(schema: Any) -> str:
    """The grammar of replies that `schema` (parsed JSON) takes.

    Raises EngineError naming the place in the schema and the keyword that a grammar cannot promise.
    """
    builder = _Builder(schema)
    root = builder.expression(schema, "#")
    rules = {"root": root, **builder.rules, **FIXED_RULES}
    return "".join(f"{name} ::= {body}\n" for name, body in rules.items())


def _fail(place: str, what: str, hint: str | None = None) -> EngineError:
    return EngineError(f"schema, {place}: {what}", hint=hint)


def literal(value: Any, place: str) -> str:
    """The GBNF literal of a JSON value."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value)
    except ValueError:
        raise _fail(place, f"{value!r} is no JSON") from None
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\x7f", "\\x7F") + '"'


class _Builder:
    """Turns schemas into GBNF expressions; those that refer to themselves, or are long, become rules."""

    def __init__(self, document: Any) -> None:
        self.document = document
        self.rules: dict[str, str] = {}
        self._rule_of_place: dict[str, str] = {}

    def rule(self, place: str, body: str) -> str:
        name = self.new_name(place)
        self.rules[name] = body
        return name

    def new_name(self, place: str) -> str:
        stem = "at-" + re.sub("[^A-Za-z0-9]+", "-", place).strip("-")[-40:].strip("-")
        name, n = stem, 2
        while name in self.rules:
            name, n = f"{stem}-{n}", n + 1
        self.rules[name] = ""
        return name

    def expression(self, schema: Any, place: str) -> str:
        """A GBNF expression that may stand in a sequence."""
        if schema is True or schema == {}:
            return "value"
        if schema is False:
            raise _fail(place, "takes no value at all")
        if not isinstance(schema, Mapping):
            raise _fail(place, f"{schema!r} is no schema, an object was needed")
        for keyword, build in (
            ("$ref", self._reference),
            ("enum", self._enum),
            ("const", self._enum),
            ("anyOf", self._union),
            ("oneOf", self._union),
            ("allOf", self._all),
        ):
            if keyword in schema:
                self._check_alone(schema, keyword, place)
                return build(schema, place)
        kinds = schema.get("type") or _implied_kinds(schema)
        kinds = kinds if isinstance(kinds, list) else [kinds]
        for kind in kinds:
            if kind != "value" and kind not in KINDS:
                raise _fail(place, f"unknown type {kind!r}", f"one of {', '.join(KINDS)}")
        self._check_keywords(schema, place)
        return _either([self._typed(kind, schema, place) for kind in kinds])

    def _check_alone(self, schema: Mapping[str, Any], keyword: str, place: str) -> None:
        beside = set(schema) - ANNOTATIONS - {keyword} - ({"type"} if keyword in ("enum", "const") else set())
        if keyword == "oneOf":
            beside -= {"discriminator"}  # OpenAPI's annotation of the same
        if beside:
            raise _fail(
                place,
                f"{', '.join(sorted(beside))} beside {keyword} cannot be promised",
                "write one schema that says both",
            )

    def _check_keywords(self, schema: Mapping[str, Any], place: str) -> None:
        known = ANNOTATIONS | {"type"} | frozenset().union(*KEYWORDS.values())
        for keyword in schema:
            harmless = (keyword == "uniqueItems" and schema[keyword] is False) or (
                keyword == "multipleOf" and schema[keyword] == 1 and schema.get("type") == "integer"
            )
            if keyword not in known and not harmless:
                raise _fail(
                    place,
                    f"{keyword} cannot be promised by a grammar",
                    "leave it out and check the reply, or say it with enum, type and lengths",
                )

    # --- kinds -------------------------------------------------------------------------------------------------------

    def _typed(self, kind: str, schema: Mapping[str, Any], place: str) -> str:
        if kind == "object":
            return self._object(schema, place)
        if kind == "array":
            return self._array(schema, place)
        if kind == "string":
            n_least, n_most = _bounds(schema, "minLength", "maxLength", place)
            return "string" if (n_least, n_most) == (0, None) else f'"\\"" {_times("char", n_least, n_most)} "\\""'
        if kind == "integer":
            return integer_between(*_integer_bounds(schema, place))
        if kind == "number":
            return self._number(schema, place)
        return {"boolean": '( "true" | "false" )', "null": '"null"'}.get(kind, "value")

    def _number(self, schema: Mapping[str, Any], place: str) -> str:
        for keyword in ("maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if keyword in schema:
                raise _fail(place, f"{keyword} of a number cannot be promised by a grammar", 'use "type": "integer"')
        if schema.get("minimum", 0) != 0:
            raise _fail(place, "a minimum other than 0 of a number cannot be promised", 'use "type": "integer"')
        return number_expression(negative=False) if "minimum" in schema else "number"

    def _array(self, schema: Mapping[str, Any], place: str) -> str:
        n_least, n_most = _bounds(schema, "minItems", "maxItems", place)
        first = schema.get("prefixItems", [])
        if not isinstance(first, list):
            raise _fail(place, "prefixItems must be a list of schemas")
        heads = [self.expression(item, f"{place}/prefixItems/{i}") for i, item in enumerate(first[:n_most])]
        rest = schema.get("items", True)
        if len(heads) == n_most or (rest is False and n_least <= len(heads)):
            tail, n_most = None, len(heads)
        else:
            tail = self.expression(rest, f"{place}/items")
        if not heads and (tail is None or n_most == 0):
            return '"[" ws "]"'
        if heads and n_least < len(heads):
            n_least = len(heads)  # fewer would be valid too; the grammar writes whole tuples
        if heads:
            more = _times(f'( "," ws {tail} )', n_least - len(heads), None if n_most is None else n_most - len(heads))
            inside = ' "," ws '.join(heads) + (f" {more}" if tail is not None and n_most != len(heads) else "")
        else:
            more = _times(f'( "," ws {tail} )', max(n_least - 1, 0), None if n_most is None else n_most - 1)
            inside = f"{tail} {more}" if n_least else f"( {tail} {more} )?"
        return self.rule(place, f'"[" ws {inside} ws "]"')

    def _object(self, schema: Mapping[str, Any], place: str) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise _fail(place, "properties must be an object, required a list")
        others = schema.get("additionalProperties", True)
        properties = {**properties, **{name: others for name in required if name not in properties}}
        if not properties:
            if others is False:
                return '"{" ws "}"'
            if others is True or others == {}:
                return "object"
            value = self.expression(others, f"{place}/additionalProperties")
            pair = f'string ":" ws {value}'
            return self.rule(place, f'"{{" ws ( {pair} ( "," ws {pair} )* )? ws "}}"')
        pairs = [
            (f'{literal(name, place)} ":" ws {self.expression(value, f"{place}/properties/{name}")}', name in required)
            for name, value in properties.items()
        ]
        return self.rule(place, f'"{{" ws {self._members(pairs, place)} ws "}}"')

    def _members(self, pairs: list[tuple[str, bool]], place: str) -> str:
        """Properties in order, with commas between those that are there. pairs: expression, whether it is required."""
        later = '""'  # what follows once a property was written
        first = '""'  # what follows while none was
        for i in range(len(pairs) - 1, -1, -1):
            pair, is_required = pairs[i]
            pair_rule = self.rule(f"{place}-{i}", pair)
            begun = f"{pair_rule} {later}"
            first = begun if is_required else f"( {begun} | {first} )"
            if len(pairs) > 2:
                first = self.rule(f"{place}-first-{i}", first)
            later = f'"," ws {begun}' if is_required else f'( "," ws {pair_rule} )? {later}'
            if i:
                later = self.rule(f"{place}-later-{i}", later)
        return first

    # --- combinations ------------------------------------------------------------------------------------------------

    def _enum(self, schema: Mapping[str, Any], place: str) -> str:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        if not isinstance(values, list) or not values or len(values) > MOST_ALTERNATIVES:
            raise _fail(place, f"enum must be a list of 1 to {MOST_ALTERNATIVES} values")
        kinds = schema.get("type")
        kinds = kinds if isinstance(kinds, list) or kinds is None else [kinds]
        fitting = [value for value in values if kinds is None or any(_is_kind(value, kind) for kind in kinds)]
        if not fitting:
            raise _fail(place, "no value of enum has the type")
        return _either([literal(value, place) for value in fitting])

    def _union(self, schema: Mapping[str, Any], place: str) -> str:
        keyword = "anyOf" if "anyOf" in schema else "oneOf"
        options = schema[keyword]
        if not isinstance(options, list) or not 0 < len(options) <= MOST_ALTERNATIVES:
            raise _fail(place, f"{keyword} must be a list of 1 to {MOST_ALTERNATIVES} schemas")
        if keyword == "oneOf":
            for i, one in enumerate(options):
                for other in options[:i]:
                    if not self._disjoint(one, other, place):
                        raise _fail(place, "values may match two schemas of oneOf", "anyOf, if that is meant")
        return _either([self.expression(option, f"{place}/{keyword}/{i}") for i, option in enumerate(options)])

    def _all(self, schema: Mapping[str, Any], place: str) -> str:
        options = schema["allOf"]
        if not isinstance(options, list) or len(options) != 1:
            raise _fail(place, "allOf of several schemas cannot be promised", "write one schema that says all")
        return self.expression(options[0], f"{place}/allOf/0")

    def _reference(self, schema: Mapping[str, Any], place: str) -> str:
        target = schema["$ref"]
        if target not in self._rule_of_place:
            found = self._resolve(target, place)
            name = self._rule_of_place[target] = self.new_name(str(target))
            self.rules[name] = self.expression(found, str(target))
        return self._rule_of_place[target]

    def _resolve(self, target: Any, place: str) -> Any:
        if not isinstance(target, str) or not target.startswith("#"):
            raise _fail(place, f"$ref {target!r}: only places in the same schema are read", '"$ref": "#/$defs/NAME"')
        found: Any = self.document
        for step in filter(None, target[1:].split("/")):
            step = unquote(step).replace("~1", "/").replace("~0", "~")
            index = int(step) if isinstance(found, list) and step.isdigit() else step
            try:
                found = found[index]
            except (KeyError, IndexError, TypeError):
                raise _fail(place, f"$ref {target}: there is no {step!r}") from None
        return found

    def _disjoint(self, one: Any, other: Any, place: str) -> bool:
        """Whether surely no value matches both: other kinds, other values, or a property that tells them apart."""
        one, other = (
            self._resolve(s["$ref"], place) if isinstance(s, Mapping) and "$ref" in s else s for s in (one, other)
        )
        if not isinstance(one, Mapping) or not isinstance(other, Mapping):
            return False
        values = [s["enum"] if "enum" in s else [s["const"]] if "const" in s else None for s in (one, other)]
        if values[0] is not None and values[1] is not None:
            return not any(a == b for a in values[0] for b in values[1])
        kinds = [_kinds_of(s, v) for s, v in zip((one, other), values, strict=True)]
        if kinds[0] and kinds[1] and not kinds[0] & kinds[1]:
            return True
        if kinds[0] == kinds[1] == {"object"}:
            shared = set(one.get("required", ())) & set(other.get("required", ()))
            return any(
                self._disjoint(one.get("properties", {}).get(name), other.get("properties", {}).get(name), place)
                for name in shared
            )
        return False


def _implied_kinds(schema: Mapping[str, Any]) -> list[str]:
    """Kinds of a schema without a type: those that its keywords speak of, else any."""
    found = [kind for kind in ("object", "array", "string", "integer") if KEYWORDS[kind] & set(schema)]
    return found or ["value"]


def _kinds_of(schema: Mapping[str, Any], values: list[Any] | None) -> set[str]:
    """The kinds that a schema's values have, integers among the numbers; empty if they are not known."""
    kinds = schema.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if not kinds and values is not None:
        kinds = [kind for value in values for kind in KINDS if _is_kind(value, kind)]
    return {"number" if kind == "integer" else kind for kind in kinds}


def _is_kind(value: Any, kind: str) -> bool:
    if kind in ("number", "integer"):
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and (kind == "number" or float(value).is_integer())
        )
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    return isinstance(value, types.get(kind, ()))


def _bounds(schema: Mapping[str, Any], least: str, most: str, place: str) -> tuple[int, int | None]:
    n_least, n_most = schema.get(least, 0), schema.get(most)
    for keyword, value in ((least, n_least), (most, n_most)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_REPEATED
        ):
            raise _fail(place, f"{keyword} is {value!r}, an integer from 0 to {MOST_REPEATED} was needed")
    if n_most is not None and n_most < n_least:
        raise _fail(place, f"{least} {n_least} is more than {most} {n_most}")
    return n_least, n_most


def _integer_bounds(schema: Mapping[str, Any], place: str) -> tuple[int | None, int | None]:
    bounds: dict[str, int | None] = {}
    for keyword in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        value = schema.get(keyword)
        if value is not None and (not _is_kind(value, "integer") or abs(value) >= 10**15):
            raise _fail(place, f"{keyword} is {value!r}, an integer of at most 15 digits was needed")
        bounds[keyword] = None if value is None else int(value)
    over, under = bounds["exclusiveMinimum"], bounds["exclusiveMaximum"]
    least = [b for b in (bounds["minimum"], None if over is None else over + 1) if b is not None]
    most = [b for b in (bounds["maximum"], None if under is None else under - 1) if b is not None]
    low, high = max(least, default=None), min(most, default=None)
    if low is not None and high is not None and low > high:
        raise _fail(place, f"no integer lies from {low} to {high}")
    return low, high


def _times(item: str, n_least: int, n_most: int | None) -> str:
    if n_most == 0:
        return '""'
    if n_most is None:
        return f"{item}*" if n_least == 0 else f"{item}{{{n_least},}}"
    return f"{item}{{{n_least},{n_most}}}"


def _either(options: list[str]) -> str:
    return options[0] if len(options) == 1 else f"( {' | '.join(options)} )"

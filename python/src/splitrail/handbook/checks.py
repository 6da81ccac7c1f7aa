"""Every check that the suite can file, with its cure, as the code names them.

Checks are made in Python by ``check(name, subject, ...)``, ``unmade(...)`` or ``Check(name=...)``, and in
roles by a mapping with the keys ``name``, ``subject`` and ``hint``. Names and hints are read from the source:
a literal, an f-string (what varies stands in angle brackets), or a variable of the same function or module.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MAKERS = {"check", "unmade", "Check", "_check"}
FILES = (".html", ".json", ".py", ".yml", ".yaml", ".asc", ".log")
NAME = re.compile(r"[a-z_]+\.[a-z_<>.]+")
Scope = dict[str, list[ast.expr]]
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Found:
    """A check: its cures, and the files that make it."""

    hints: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    def add(self, hints: Iterable[str], place: str) -> None:
        """One more place that makes it."""
        self.hints += [hint for hint in hints if hint and hint not in self.hints]
        if place not in self.places:
            self.places.append(place)


def in_suite(root: Path) -> dict[str, Found]:
    """Of all the suite's Python, roles and playbooks: name to what was found, in order of the names."""
    found: dict[str, Found] = {}
    modules = {place: Module(text) for place, text in sources(root, ("python/src", "roles"), "*.py")}
    for place, module in modules.items():
        for name, hints in module.checks:
            found.setdefault(name, Found()).add(hints, place)
    for place, text in sources(root, ("roles", "playbooks"), "*.yml"):
        for name, hint in in_yaml(yaml.safe_load(text)):
            found.setdefault(name, Found()).add([hint], place)
    verbs = {verb(name) for name in found}
    for place, module in modules.items():
        for name, hints in module.mentioned():
            if verb(name) in verbs and not name.endswith(FILES):
                found.setdefault(name, Found()).add(hints, place)
    return dict(sorted(found.items()))


def sources(root: Path, folders: Iterable[str], pattern: str) -> Iterator[tuple[str, str]]:
    """Path and text of what may make a check: each has a hint."""
    for path in sorted(path for folder in folders for path in (root / folder).rglob(pattern)):
        text = path.read_text(encoding="utf-8")
        if "hint" in text:
            yield str(path.relative_to(root)), text


def verb(name: str) -> str:
    """What is being done when a check is made."""
    return name.partition(".")[0]


class Module:
    """A source, and the checks that it makes: names with hints, where one call or mapping holds both."""

    def __init__(self, text: str) -> None:
        tree = ast.parse(text)
        functions = [one for one in ast.walk(tree) if isinstance(one, Function)]
        outer = assigned(tree.body)
        own = {one.name: {**outer, **defaults(one), **assigned(one.body)} for one in functions}
        parts = {one.name: list(ast.walk(one)) for one in functions}
        given = arguments(functions, parts, own)
        #: Where to look: nodes, and what names stand for there.
        self.places: list[tuple[list[ast.AST], Scope]] = [
            (
                parts[name],
                {**scope, **{key: texts + scope.get(key, []) for key, texts in given[name].items()}},
            )
            for name, scope in own.items()
        ]
        self.checks = [one for nodes, scope in self.places for node in nodes for one in made(node, scope)]
        tables = [one for one in tree.body if isinstance(one, ast.Assign | ast.AnnAssign)]
        self.places += [(list(ast.walk(one)), outer) for one in tables]

    def mentioned(self) -> Iterator[tuple[str, list[str]]]:
        """Names that stand elsewhere, as in a table of names and cures, with the hints of their function."""
        exact = {name for name, _ in self.checks}
        for nodes, scope in self.places:
            for node in nodes:
                if isinstance(node, ast.Dict):
                    pairs = zip(node.keys, node.values, strict=True)
                    found = [(name, value) for key, value in pairs for name in named(key, scope)]
                elif isinstance(node, ast.Constant | ast.JoinedStr):
                    found = [(name, ast.Name("hint")) for name in named(node, scope)]
                else:
                    continue
                yield from ((name, words(value, scope)) for name, value in found if name not in exact)


def made(node: ast.AST, scope: Scope) -> Iterator[tuple[str, list[str]]]:
    """The checks that one call or mapping makes."""
    if isinstance(node, ast.Call):
        fields = {one.arg: one.value for one in node.keywords if one.arg}
        name = fields.get("name") or (node.args[0] if node.args else None)
        wanted = called(node) in MAKERS
    elif isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        fields = {str(key.value): value for key, value in pairs if isinstance(key, ast.Constant)}
        name, wanted = fields.get("name"), "subject" in fields
    else:
        return
    if wanted:
        hints = words(fields["hint"], scope) if "hint" in fields else []
        yield from ((one, hints) for one in named(name, scope))


def named(node: ast.expr | None, scope: Scope) -> list[str]:
    """The names of checks that an expression may be."""
    return [text for text in words(node, scope) if NAME.fullmatch(text)] if node is not None else []


def arguments(
    functions: Iterable[Function],
    parts: dict[str, list[ast.AST]],
    own: dict[str, Scope],
) -> dict[str, Scope]:
    """The texts that each function of a module is called with there, by parameter."""
    found: dict[str, Scope] = {name: {} for name in own}
    parameters = {one.name: [part.arg for part in one.args.args if part.arg != "self"] for one in functions}
    for caller, nodes in parts.items():
        for node in nodes:
            if isinstance(node, ast.Call) and called(node) in found:
                keys = [(one.arg, one.value) for one in node.keywords if one.arg]
                for name, value in [*zip(parameters[called(node)], node.args, strict=False), *keys]:
                    texts = [ast.Constant(text) for text in words(value, own[caller])]
                    found[called(node)].setdefault(name, []).extend(texts)
    return found


def in_yaml(value: Any) -> Iterator[tuple[str, str]]:
    """The checks that tasks make."""
    if isinstance(value, dict):
        name, hint = value.get("name"), value.get("hint")
        if isinstance(name, str) and NAME.fullmatch(name) and isinstance(hint, str):
            yield name, " ".join(re.sub(r"\{\{.*?\}\}", "<...>", hint, flags=re.DOTALL).split())
        for part in value.values():
            yield from in_yaml(part)
    elif isinstance(value, list):
        for part in value:
            yield from in_yaml(part)


def called(node: ast.Call) -> str:
    """The last part of what is called."""
    return getattr(node.func, "id", getattr(node.func, "attr", ""))


def assigned(body: Iterable[ast.stmt]) -> Scope:
    """Each name that statements set, to all that they set it to; not within functions and classes."""
    found: Scope = {}
    todo: list[ast.AST] = list(body)
    while todo:
        node = todo.pop(0)
        if isinstance(node, Function | ast.ClassDef):
            continue
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            pair(node.targets[0], node.value, found)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            pair(node.target, node.value, found)
        elif isinstance(node, ast.For | ast.comprehension):
            for row in rows(node.iter):
                pair(node.target, row, found)
        todo += ast.iter_child_nodes(node)
    return found


def rows(node: ast.expr) -> list[ast.expr]:
    """What a loop goes through, where it is written out: for name, hint in (("a", "b"), ...)."""
    if isinstance(node, ast.Tuple | ast.List):
        return node.elts
    if isinstance(node, ast.Call) and called(node) == "items" and isinstance(node.func, ast.Attribute):
        inner = node.func.value
        if isinstance(inner, ast.Dict):
            return [ast.Tuple([key, part]) for key, part in zip(inner.keys, inner.values, strict=True) if key]
    return []


def pair(target: ast.expr, value: ast.expr, found: Scope) -> None:
    """What an assignment sets."""
    if isinstance(target, ast.Name):
        found.setdefault(target.id, []).append(value)
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for one, part in zip(target.elts, value.elts, strict=False):
            pair(one, part, found)


def defaults(function: Function) -> Scope:
    """Its parameters that have a default."""
    given = function.args
    last = given.args[len(given.args) - len(given.defaults) :]
    pairs = [*zip(last, given.defaults, strict=True), *zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return {name.arg: [value] for name, value in pairs if value is not None}


def words(node: ast.expr, scope: Scope) -> list[str]:
    """Every text that an expression may be. What cannot be known stands in angle brackets within a longer
    text, and makes no text by itself."""
    found: list[str] = []
    match node:
        case ast.Constant(value=str(text)):
            found = [text]
        case ast.JoinedStr(values=parts):
            found = ["".join(one) for one in itertools.product(*(piece(part, scope) for part in parts))]
        case ast.Name(id=name):
            # Without itself, so that a name that is made of itself comes to an end.
            inner = {key: value for key, value in scope.items() if key != name}
            found = [text for value in scope.get(name, []) for text in words(value, inner)]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            both = itertools.product(words(left, scope) or ["<...>"], words(right, scope) or ["<...>"])
            found = [first + last for first, last in both]
        case ast.IfExp(body=body, orelse=other):
            found = words(body, scope) + words(other, scope)
        case ast.BoolOp(values=values) | ast.Tuple(elts=values) | ast.Dict(values=values):
            found = [text for part in values for text in words(part, scope)]
        case ast.Lambda(body=value) | ast.Subscript(value=value):
            found = words(value, scope)
        case ast.Call(func=ast.Attribute(value=value, attr="get" | "format")):
            found = words(value, scope)
    return list(dict.fromkeys(found))


def piece(part: ast.expr, scope: Scope) -> list[str]:
    """What a part of an f-string may be; where that is not known, the name of what varies."""
    if isinstance(part, ast.Constant):
        return [str(part.value)]
    value = part.value if isinstance(part, ast.FormattedValue) else part
    known = [text for text in words(value, scope) if re.fullmatch(r"[a-z0-9_]+", text)]
    return known or [f"<{getattr(value, 'id', getattr(value, 'attr', '...'))}>"]


def page(found: dict[str, Found]) -> str:
    """Markdown: a section a verb, a heading a check."""
    lines = [
        "# Checks and their cures",
        "",
        "Made from the code: every check that a verdict can hold, and what to do when it fails. A verdict",
        "gives the hint of the case at hand, with names in place of what stands in angle brackets here.",
    ]
    last = ""
    for name, one in found.items():
        if verb(name) != last:
            last = verb(name)
            lines += ["", f"## {last}"]
        lines += ["", f"### `{name}`", ""]
        lines += [f"- {escape(hint)}" for hint in one.hints]
        lines += ["", f"Made by {', '.join(f'`{place}`' for place in one.places)}."]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Angle brackets as text, outside of code."""
    parts = text.split("`")
    parts[::2] = [part.replace("<", "&lt;").replace(">", "&gt;") for part in parts[::2]]
    return "`".join(parts)

"""Write the table of variables into each role's README, from its argument specs.

``python -m splitrail.roles_doc`` rewrites what is out of date; with ``--check`` it only names it and exits
with 1. A role that cannot be read is named, and the exit code is 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

BEGIN = "<!-- variables: begin -->"
END = "<!-- variables: end -->"


def table(specs: Mapping[str, Any]) -> str:
    """The Markdown table of a role's variables, from the loaded ``meta/argument_specs.yml``."""
    rows = ["| variable | type | default | meaning |", "|---|---|---|---|"]
    for name, spec in specs["argument_specs"]["main"]["options"].items():
        default = "required" if spec.get("required") else f"`{_flow(spec['default'])}`"
        meaning = _text(spec)
        fields = "; ".join(_field(field, of) for field, of in spec.get("options", {}).items())
        meaning = f"{meaning} Fields: {fields}." if fields else meaning
        rows.append("| " + " | ".join(map(_cell, (f"`{name}`", _type(spec), default, meaning))) + " |")
    return "\n".join(rows)


def fill(readme: str, specs: Mapping[str, Any]) -> str:
    """The README's text with its table made anew. Raises ValueError unless each marker is there once."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in tail or END in tail:
        raise ValueError(f"want one {BEGIN} and, after it, one {END}")
    return f"{head}{BEGIN}\n{table(specs)}\n{END}{tail}"


def refresh(role: Path, *, write: bool) -> bool:
    """Whether the table in the role's README was out of date; where asked, it is then written anew.

    Raises ValueError naming the README that lacks its markers, OSError for a role without README or specs.
    """
    readme = role / "README.md"
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text(encoding="utf-8"))
    old = readme.read_text(encoding="utf-8")
    try:
        new = fill(old, specs)
    except ValueError as why:
        raise ValueError(f"{readme}: {why}") from why
    if write and new != old:
        readme.write_text(new, encoding="utf-8")
    return new != old


def _field(name: str, spec: Mapping[str, Any]) -> str:
    """One field of a dictionary, or of the dictionaries in a list."""
    required = ", required" if spec.get("required") else ""
    return f"`{name}` ({_type(spec)}{required}): {_text(spec).removesuffix('.')}"


def _type(spec: Mapping[str, Any]) -> str:
    return f"list of {spec['elements']}" if spec["type"] == "list" else str(spec["type"])


def _text(spec: Mapping[str, Any]) -> str:
    """The description, and the choices where there are any."""
    words = spec["description"]
    text = " ".join(words) if isinstance(words, list) else str(words).strip()
    if "choices" in spec:
        text += " One of " + ", ".join(f"`{choice}`" for choice in spec["choices"]) + "."
    return text


def _flow(value: object) -> str:
    """A default on one line, as it would be written in YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _cell(text: str) -> str:
    return text.strip().replace("|", "\\|").replace("\n", " ")


def main(
    roles: Annotated[Path, typer.Argument(help="Folder that holds the roles.")] = Path("roles"),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if something would change.")
    ] = False,
) -> None:
    """Write the table of variables into each role's README."""
    code = 0
    for role in sorted(path for path in roles.iterdir() if path.is_dir()):
        try:
            if refresh(role, write=not check):
                typer.echo(
                    f"{role}/README.md: {'out of date: run `make docs`' if check else 'written'}", err=check
                )
                code = max(code, 1 if check else 0)
        except (OSError, ValueError) as why:
            typer.echo(f"{role}: {why}", err=True)
            code = 2
    raise typer.Exit(code)


if __name__ == "__main__":
    typer.run(main)

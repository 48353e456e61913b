"""The book's reference of the code: a page per wing, made from docstrings by Sphinx, of which this is an extension."""

import ast
import copy
import inspect
import pkgutil
import pydoc
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import deeplight_core

__all__ = ["WINGS", "fields", "mark_sections", "setup", "signature", "write_pages"]

WINGS = {
    "data": "Data",
    "models": "Models",
    "training": "Training",
    "analysis": "Analysis",
    "report": "Report",
    "system": "System",
    "experiments": "Experiments",  # the modules that are in no wing
}
_NAME = re.compile(r"(?<![\w.])'?\b([A-Z]\w*)\b'?")  # of a class, perhaps in quotation marks
_ENTRY = re.compile(r"([*\w][\w*, ]*?) : (.*)")


def write_pages(folder: Path) -> None:
    """Write a page per wing, `<folder>/<wing>.rst`: the package's own words, its modules, and what they make public.

    Commands are left out: `deeplight --help` describes them.
    """
    folder.mkdir(parents=True)
    shown = ["   :members:", "   :ignore-module-all:"]  # what a module takes from another is on the other's page
    for wing, title in WINGS.items():
        package = "deeplight_core" if wing == "experiments" else f"deeplight_core.{wing}"
        modules, start = _modules(package), f"{package}."
        lines = [
            title, "=" * len(title), "", f".. automodule:: {package}", *shown, "", ".. autosummary::",
            "   :nosignatures:", "", *(f"   {module.removeprefix(start)}" for module in modules), "",
        ]  # fmt: skip
        for module in modules:
            name = module.removeprefix(start)
            lines += [name, "-" * len(name), "", f".. automodule:: {module}", *shown, ""]
        (folder / f"{wing}.rst").write_text("\n".join(lines), encoding="utf-8")


def _modules(package: str) -> list[str]:
    """The modules of a wing, those of its packages behind each; of the whole package, those that are in no wing."""
    path = Path(deeplight_core.__file__).parent.joinpath(*package.split(".")[1:])
    found = []
    for module in pkgutil.iter_modules([str(path)], f"{package}."):
        if package == "deeplight_core" and module.ispkg:
            continue
        found += [module.name, *(_modules(module.name) if module.ispkg else [])]
    return found


def mark_sections(docstring: list[str]) -> list[str]:
    """A docstring as reStructuredText.

    Underlined headings become rubrics, "name : meaning" an entry of a list, and lists get a blank line on either side.
    """
    lines: list[str] = []
    for line, underline, before in zip(docstring, [*docstring[1:], ""], ["", *docstring[:-1]], strict=True):
        if _is_line(line, before):
            continue
        entry = _ENTRY.fullmatch(line)
        in_list = bool(entry) or line.startswith("- ")
        was_in_list = bool(_ENTRY.fullmatch(before)) or before.startswith(("- ", " "))
        if line and before.strip("-") and not line.startswith(" ") and in_list != was_in_list:
            lines.append("")
        line = re.sub(r"(?<=, )\*(?=\w)", r"\\*", line)  # (B, *shape) is not emphasised
        if _is_line(underline, line):
            lines += [f".. rubric:: {line}", ""]
        elif entry:
            lines += [f"``{entry[1]}``", f"    {entry[2]}"]
        else:
            lines.append(line)
    return lines


def _is_line(line: str, heading: str) -> bool:
    return len(line) > 2 and line == "-" * len(heading)


def signature(kind: str, thing: Any) -> tuple[str, str | None] | None:
    """Arguments and result as the source has them, with their types; "" for settings, whose fields stand below.

    Returns
    -------
    None where Sphinx knows better: for tuples with names, data classes, and what has no arguments
    """
    if kind == "class" and issubclass(thing, BaseModel):
        return "", None
    function = inspect.unwrap(vars(thing).get("__init__") if kind == "class" else thing)
    if not inspect.isroutine(function) or not (node := _defined(function)):
        return None
    given = copy.deepcopy(node.args)
    if given.args and given.args[0].arg in ("self", "cls"):
        del given.args[0]

    names = vars(sys.modules[function.__module__])

    def linked(word: re.Match[str]) -> str:
        found = names.get(word[1])
        own = isinstance(found, type) and found.__module__.startswith("deeplight_core.")
        return f"~{found.__module__}.{word[1]}" if own else word[0]  # the tilde hides the module

    result = ast.unparse(node.returns) if node.returns and kind != "class" else None
    return _NAME.sub(linked, f"({ast.unparse(given)})"), result and _NAME.sub(linked, result)


def fields(settings: type) -> dict[str, str]:
    """Type and default of every field of a class, as the source has them."""
    declared = [node for node in _defined(settings).body if isinstance(node, ast.AnnAssign)]
    return {ast.unparse(node.target): ast.unparse(node).split(": ", 1)[1] for node in declared}


def _defined(thing: Any) -> Any:
    """Where the source defines a class, function or method; None if it does not."""
    return _definitions(thing.__module__).get(thing.__qualname__)


@cache
def _definitions(module: str) -> dict[str, Any]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    outer = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    inner = {f"{name}.{node.name}": node for name in outer for node in outer[name].body if hasattr(node, "name")}
    return outer | inner


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls: docstrings are read as this project writes them, and types shown as in the source."""

    def process(_app: Any, kind: str, name: str, _thing: Any, _options: Any, lines: list[str]) -> None:
        owner = pydoc.locate(name.rpartition(".")[0]) if kind == "attribute" else None
        if isinstance(owner, type) and issubclass(owner, BaseModel):
            lines[:0] = [f"``{fields(owner)[name.rpartition('.')[2]]}``", ""]
        lines[:] = mark_sections(lines)

    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-process-signature", lambda _app, kind, _name, thing, *_: signature(kind, thing))
    return {"parallel_read_safe": True}

"""Which code made a result: its commit, and a hash of what it computes."""

import ast
import hashlib
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import deeplight_core

__all__ = ["code_hash", "commit"]

_PACKAGE = Path(deeplight_core.__file__).parent
_DECIDES = ("models/*.py", "training/*.py", "trainings.py", "experiment.py", "analysis/scores.py")


@cache
def code_hash() -> str:
    """Twelve hexadecimal digits of the code that decides a training's results; comments and docstrings do not count."""
    hashed = hashlib.sha256()
    for path in sorted(file for pattern in _DECIDES for file in _PACKAGE.glob(pattern)):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                node.body = list(_without_strings(node.body))
        hashed.update(f"{path.relative_to(_PACKAGE).as_posix()} {ast.dump(tree)}\n".encode())
    return hashed.hexdigest()[:12]


def _without_strings(body: Iterable[ast.stmt]) -> Iterable[ast.stmt]:
    for statement in body:
        value = statement.value if isinstance(statement, ast.Expr) else None
        if not (isinstance(value, ast.Constant) and isinstance(value.value, str)):
            yield statement


def commit() -> str:
    """The package's commit, with ` and changes` if the tree has any; for an installed package, its version."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_PACKAGE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if git("ls-files", "--error-unmatch", "__init__.py"):  # not some other repository around an installed package
            return git("rev-parse", "HEAD") + (" and changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        pass
    return f"no commit is known; installed version {deeplight_core.__version__}"

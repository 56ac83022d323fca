"""The rules of the design that a machine can check: who imports whom, and what is committed."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

#: Each package and those that it may import.
ALLOWED = {
    "callsheet": {"callsheet"},
    "blocks": {"callsheet", "blocks"},
    "tasks": {"callsheet", "blocks", "tasks"},
    "flows": {"callsheet", "blocks", "tasks", "flows"},
    "gpu_service": {"callsheet", "gpu_service"},
}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """What a module imports, and whether it does so inside a function."""
    tree = ast.parse(path.read_text("utf-8"))
    inside = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            yield name.split(".")[0], node in inside


@pytest.mark.parametrize("path", [p for package in ALLOWED for p in (ROOT / package).rglob("*.py")], ids=str)
def test_imports_run_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for name, lazy in imports(path):
        if path.name in ("cli.py", "commands_reap.py", "commands_setup.py") and name == "flows" and lazy:
            continue  # a command imports its flow when it is called
        assert name not in ALLOWED or name in ALLOWED[package], f"{path} imports {name}"
        assert name != "prefect" or package not in ("callsheet", "gpu_service"), f"{path} imports Prefect"


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_lock_files_have_hashes_and_no_index_address(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert "://" not in text
    packages = re.findall(r"^[a-z0-9][a-z0-9._-]*==\S+", text, re.MULTILINE | re.IGNORECASE)
    assert len(packages) > 100
    assert all(
        block.count("--hash=sha256:") >= 1
        for block in re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)
        if "==" in block
    )


def test_development_lock_has_the_versions_of_the_other() -> None:
    def versions(name: str) -> set[str]:
        return set(re.findall(r"^\S+==\S+", (ROOT / name).read_text("utf-8"), re.MULTILINE))

    assert versions("requirements.lock") <= versions("requirements-dev.lock")


def test_no_path_of_a_machine_is_committed() -> None:
    for path in tracked(
        "*.py", "*.md", "*.toml", "*.json", "*.csv", "*.lock", "scripts/*", "Makefile", ".ci/*"
    ):
        text = path.read_text("utf-8")
        assert str(ROOT.parent) + "/" not in text or str(ROOT.parent) == "/", f"{path} names {ROOT.parent}"


def test_the_project_does_not_read_what_lies_beside_it() -> None:
    for path in tracked("*.py", "scripts/*", "Makefile", ".ci/*"):
        if path != Path(__file__).resolve():
            assert "../shared" not in path.read_text("utf-8"), path

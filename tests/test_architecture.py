"""The import table of the house, read from the sources with ast; and what each unit may touch."""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "metrics": {"errors"},
    "networks": {"errors"},
    "config": {"errors"},
    "losses": {"errors", "metrics"},
    "artifacts": {"errors"},
    "data": {"errors", "artifacts"},
    "engine": {"errors", "artifacts", "data"},
    "methods": {"errors", "metrics", "losses", "data", "engine"},
    "report": {"errors", "artifacts"},
    "stages": {"errors", "metrics", "networks", "config", "losses", "artifacts", "data", "engine", "methods", "report"},
    "commands": {"errors", "config", "artifacts", "stages"},
    "app": {"errors", "commands"},
    "__main__": {"app"},
    "sample_configs": set(),
}
ONLY = {
    "h5py": {"artifacts"},
    "yaml": {"config"},
    "typer": {"app", "commands"},
    "rich": {"app", "commands"},
    "tqdm": {"app", "commands"},
    "matplotlib": {"report"},
    "pydantic": {"config"},
    "transformers": {"networks"},
    "numba": {"metrics"},
    "tensorboard": {"stages"},
}
NEVER = {"torchvision", "timm", "segmentation_models_pytorch", "cv2", "albumentations", "kornia", "lightning", "pandas"}
NO_TORCH = {"errors", "artifacts", "report", "config", "app", "commands"}
WITH_TORCH = {
    *("data/dataset.py", "data/loader.py", "data/ordered.py"),
    *("data/block_masks.py", "data/mixing.py", "data/strong_augmentation.py"),
}


def sources() -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / "calseg_cli").rglob("*.py")):
        parts = path.relative_to(ROOT / "calseg_cli").parts
        unit = parts[0].removesuffix(".py")
        if unit != "__init__":
            yield unit, path
    yield from (("commands", path) for path in sorted((ROOT / "commands").rglob("*.py")))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(dotted name, at import time) of everything a file imports, type-checking imports left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the unit"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "calseg_cli" else []
            yield from ((name, id(node) not in late) for name in names or [node.module or ""])


FILES = list(sources())
NAMES = [str(path.relative_to(ROOT)) for _, path in FILES]


@pytest.mark.parametrize(("unit", "path"), FILES, ids=NAMES)
def test_units_import_only_what_the_table_allows(unit, path):
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] == "calseg_cli" and len(parts) > 1 and parts[1] != unit and parts[1] != "__version__":
            assert parts[1] in MAY_IMPORT[unit], f"{unit} may not import {parts[1]}"


@pytest.mark.parametrize(("unit", "path"), FILES, ids=NAMES)
def test_libraries_stay_in_their_unit(unit, path):
    for name, _ in imports(path):
        library = name.split(".")[0]
        assert library not in NEVER
        assert unit in ONLY.get(library, {unit}), f"{library} is only for {ONLY[library]}"


@pytest.mark.parametrize(("unit", "path"), FILES, ids=NAMES)
def test_no_torch_where_start_must_be_quick(unit, path):
    file = path.relative_to(ROOT / "calseg_cli").as_posix() if path.is_relative_to(ROOT / "calseg_cli") else ""
    if unit in NO_TORCH or (unit == "data" and file not in WITH_TORCH):
        names = {name.split(".")[0] for name, _ in imports(path)}
        assert not names & {"torch", "safetensors"}


def test_only_the_command_line_writes_to_the_terminal():
    for unit, path in FILES:
        if unit in ("app", "commands"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        assert not any(call.func.id == "print" for call in calls), path


def test_two_files_alone_talk_between_processes():
    named = [path for _, path in FILES if re.search(r"torch\.distributed|import distributed", path.read_text("utf-8"))]
    assert named == [ROOT / f"calseg_cli/engine/{name}.py" for name in ("distributed", "words")]


def test_no_cycles_between_files():
    modules = {module_name(path): path for _, path in FILES}
    graph = {
        name: {other for other, early in imports(path) if early and other in modules and other != name}
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"cycle: {' -> '.join((*above, name))}"
        if name not in done:
            for other in graph[name]:
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "calseg_cli" else ("calseg_cli", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_files_stay_readable():
    for _, path in FILES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def test_every_module_says_what_it_owns():
    for _, path in FILES:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert text.startswith(("Owns ", "calseg ")), path


def test_torchvision_is_not_needed(monkeypatch):
    """A broken or absent torchvision must not matter."""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert importlib.util.find_spec("calseg_cli.app") is not None

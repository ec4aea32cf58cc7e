"""What holds for the package as a whole: directions, weight, docstrings, typing."""

import ast
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import jaxunlearn

ROOT = Path(jaxunlearn.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))

# From the ground floor up: a place imports those on floors below its own, never others
# on its own floor or above. A place is a package, or a module at the top.
FLOORS = [
    {"checks"},
    {"tasks", "parallel", "augmentation", "serialization", "progress", "locking"},
    {"classifier"},
    {"capture"},
    {"nullspace", "datasets", "models"},
    {"descent"},
    {"metrics"},
    {"training"},
    {"inversion"},
    {"methods"},
    {"planning", "ledger"},
    {"report", "studies"},
    {"cli"},
    {"__main__"},
]

# These know of no more than this, so that unlearning and training stay apart.
ALONE = {
    "datasets": {"checks", "classifier", "parallel", "tasks"},
    "models": {"capture", "checks", "classifier", "parallel", "serialization"},
    "training": {
        *("augmentation", "capture", "checks", "classifier", "descent", "metrics"),
        *("parallel", "progress", "serialization", "tasks"),
    },
}

# Whose import takes seconds; each is imported where it is used.
HEAVY = (
    *("tensorflow", "tensorflow_datasets", "grain", "torch", "safetensors"),
    *("orbax", "matplotlib", "sklearn", "PIL"),
)

DEVICE_CALLS = {
    "devices",
    "local_devices",
    "default_backend",
    "device_count",
    "local_device_count",
    "process_index",
    "process_count",
}


def place(path):
    """The file or folder right under the package that a source belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path):
    """Dotted names of what a source imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(path):
    """The places of the package that a source imports."""
    dotted = (name.split(".") for name in imported(path))
    return {parts[1] for parts in dotted if parts[0] == "jaxunlearn"}


def library():
    return [path for path in SOURCES if path != ROOT / "__init__.py"]


def directions():
    """What each place imports, itself left out."""
    found = {}
    for path in library():
        here = place(path)
        found.setdefault(here, set()).update(own_imports(path) - {here})
    return found


def test_every_place_has_its_floor():
    assert set().union(*FLOORS) == set(directions())
    assert sum(map(len, FLOORS)) == len(directions())


def test_imports_point_to_lower_floors():
    imports = directions()
    below = set()
    for names in FLOORS:
        for here in names:
            assert imports[here] <= below, f"{here}: {imports[here] - below}"
        below |= names


def test_models_datasets_and_training_know_nothing_of_unlearning():
    for path in library():
        here = place(path)
        if here in ALONE:
            assert own_imports(path) <= ALONE[here] | {here}, here


def test_methods_get_training_handed_in():
    for path in (ROOT / "methods").glob("*.py"):
        assert not own_imports(path) & {"training", "datasets", "models"}, path


def test_nothing_but_the_command_line_knows_the_command_line():
    for path in SOURCES:
        if place(path) not in ("cli", "__main__"):
            assert not own_imports(path) & {"cli"}, path


def test_only_these_places_know_flax():
    knowing = {
        place(path)
        for path in SOURCES
        if any(name.split(".")[0] == "flax" for name in imported(path))
    }
    assert knowing <= {"classifier", "models", "training"}


def test_only_one_file_names_a_device():
    for path in library():
        if place(path) == "parallel":
            continue
        for node in ast.walk(tree(path)):
            named = (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "jax"
                and node.attr in DEVICE_CALLS
            )
            assert not named, f"{path}:{getattr(node, 'lineno', 0)}: jax.{node.attr}"
        assert not imported(path) & {f"jax.{name}" for name in DEVICE_CALLS}, path


def test_heavy_packages_are_imported_where_they_are_used():
    for path in SOURCES:
        top = [n for n in tree(path).body if isinstance(n, ast.Import | ast.ImportFrom)]
        for node in top:
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names]
            assert not {str(n).split(".")[0] for n in names} & set(HEAVY), path


@pytest.mark.core
def test_importing_is_silent_and_light():
    # The command line too, so that its help answers at once.
    code = (
        "import sys, jaxunlearn, jaxunlearn.cli, jaxunlearn.cli.plots; "
        f"sys.exit(str(sorted(set({HEAVY!r}) & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:jaxunlearn", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        check=False,
    )
    assert done.stdout == ""
    assert done.stderr.strip() == "[]"


def undocumented(node, prefix=""):
    """Public classes, functions and methods without a docstring."""
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef):
            continue
        if child.name.startswith("_"):
            continue
        if not ast.get_docstring(child):
            yield prefix + child.name
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child, f"{prefix}{child.name}.")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_names_have_docstrings(path):
    module = tree(path)
    assert ast.get_docstring(module), f"{path} has no docstring"
    assert not list(undocumented(module))


def test_only_the_command_line_prints():
    for path in library():
        if place(path) in ("cli", "__main__"):
            continue
        for node in ast.walk(tree(path)):
            printing = isinstance(node, ast.Call) and (
                getattr(node.func, "id", None) == "print"
            )
            assert not printing, f"{path}:{node.lineno} prints"


def test_types_are_shipped():
    assert files("jaxunlearn").joinpath("py.typed").is_file()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_one_idea_of_at_most_350_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350

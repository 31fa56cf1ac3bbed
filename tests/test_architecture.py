"""The layers of packages, start-up, and the public names."""

import ast
import os
import re
import resource
import subprocess
import sys

import pytest

from docs.draw_architecture import files, imports, imports_of, layers, package_of, packages
from tests.support.paths import ROOT

PACKAGE = ROOT / "growth"


FILES = files()


def module_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def test_the_table_lists_every_package():
    assert packages().keys() == {package_of(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_downward(path):
    place, own = list(packages()), package_of(path)
    for imported in imports_of(path):
        other = imported.split(".")[0]
        assert other == own or place.index(other) < place.index(own), (
            f"{own} imports {imported}, which is not above it in the table"
        )


def test_imports_make_at_most_eleven_layers():
    assert max(layers(imports()).values()) < 11


def test_few_modules_are_outside_of_packages():
    assert len(list(PACKAGE.glob("*.py"))) <= 8


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*/__init__.py")), ids=module_of)
def test_a_package_states_its_responsibility_in_a_sentence(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text
    assert text.split("\n\n")[0].endswith(".")


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_package_reaches_for_anothers_own_names(path):
    own = package_of(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("growth."):
            inside = node.module.split(".")[1] == own
            assert inside or not [alias.name for alias in node.names if re.match("_[^_]", alias.name)]


def test_no_two_classes_have_one_name():
    names = [
        node.name for path in FILES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)
    ]
    assert sorted(names) == sorted(set(names))


def mentions(path, name):
    """Whether a file imports a module or a name of one, or uses it by its dotted name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
        elif isinstance(node, ast.Call) and node.args and ast.unparse(node.func).endswith("import_module"):
            found.add(str(getattr(node.args[0], "value", "")))
    return any(f"{other}.".startswith(f"{name}.") for other in found)


@pytest.mark.parametrize(
    "module",
    ["checkpoints/tensor_reader", "engine/grow_tensor"]
    + [f"output/{path.stem}" for path in (PACKAGE / "output").glob("*.py")],
)
def test_no_collective_while_files_are_written(module):
    assert not mentions(PACKAGE / f"{module}.py", "torch.distributed")


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("pickle", {"checkpoints.inert_pickle"}),
        ("torch.load", {"training.trainer_checkpoint"}),
        ("torch.distributed", {"distributed.dcp_writer", "distributed.grow_reader", "training.scaled_updates"}),
    ],
)
def test_few_modules_know_pickles_and_other_processes(name, modules):
    assert {module_of(path) for path in PACKAGE.rglob("*.py") if mentions(path, name)} == modules


def test_what_torch_loads_is_weights_alone():
    calls = [
        ast.unparse(node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert calls
    assert all("weights_only=True" in call for call in calls)


def run(*arguments, cwd=ROOT, env=None):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env={**os.environ, **(env or {})}
    )


@pytest.mark.parametrize(
    "code",
    [
        "import growth",
        "import growth.cli.app",
        "import growth; growth.plan('phi-mini', 'examples/phi-mini')",
        "from growth.cli.app import app; app(['plan', 'phi-mini', '--tensors'], standalone_mode=False)",
        "from growth.cli.app import app; app(['recipes'], standalone_mode=False)",
        "from growth.cli.app import app; app(['schedule', 'examples/phi-mini'], standalone_mode=False)",
    ],
)
def test_start_up_needs_no_torch(code):
    result = run("-c", f"{code}\nimport sys; print({{'torch', 'transformers'}} & sys.modules.keys())")
    assert result.stdout.splitlines()[-1] == "set()", result.stderr


@pytest.mark.parametrize(("arguments", "limit"), [(["--help"], 0.3), (["plan", "phi-mini"], 1.0)])
def test_start_up_is_quick(arguments, limit):
    """In seconds of the processor, the best of five: another process on the machine must not decide."""

    def seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("-m", "growth", *arguments).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) < limit


def test_every_public_name_is_there():
    import growth

    for name in growth.__all__:
        assert getattr(growth, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'shrink'"):
        growth.shrink  # noqa: B018


def test_every_public_name_has_an_example():
    """Errors may share that of the class that they extend."""
    import growth

    for name in growth.__all__:
        value = getattr(growth, name)
        kinds = value.__mro__ if isinstance(value, type) and issubclass(value, Exception) else (value,)
        assert name == "__version__" or any(">>> " in (kind.__doc__ or "") for kind in kinds), name


# ------------------------------------------------- the tests

TESTS = sorted((ROOT / "tests").rglob("*.py"))


def place_of(path):
    return str(path.relative_to(ROOT / "tests"))


@pytest.mark.parametrize("path", TESTS, ids=place_of)
def test_tests_use_public_names(path):
    """Nothing of growth that begins with an underscore is imported, reached for or patched."""
    tree, private = ast.parse(path.read_text()), re.compile(r"(.*\.)?_[^_].*")
    ours, used = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "growth":
            ours |= {alias.asname or alias.name for alias in node.names}
            used += [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and re.fullmatch(r"growth(\.\w+)+", str(node.value)):
            used.append(node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ours:
            used.append(node.attr)
    assert not [name for name in used if private.fullmatch(name)]


@pytest.mark.parametrize("path", TESTS, ids=place_of)
def test_what_tests_share_is_in_support(path):
    modules = {node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
    assert not [module for module in modules if re.match(r"tests\.(\w+\.)?test_", module)]


def test_the_folders_of_the_tests_are_the_packages():
    folders = {path.name for path in (ROOT / "tests").iterdir() if (path / "__init__.py").is_file()}
    own = {"laws", "robustness", "benchmarks", "cases", "support"}
    assert folders - own <= packages().keys()
    assert own <= folders

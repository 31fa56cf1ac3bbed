"""The house itself: floors, start-up, and the wheel outside the repository."""

import ast
import os
import re
import subprocess
import sys
import time
import zipfile

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "growth"


def packages():
    """Package or module directly in growth/ -> its place in the table of docs/architecture.md."""
    table = re.findall(r"^\| `growth/(\w+)(?:\.py|/)` \|", (ROOT / "docs" / "architecture.md").read_text(), re.M)
    return {name: place for place, name in enumerate(table)}


def module_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path):
    """Every module of growth that a file imports, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("growth"):
            found.add(node.module.removeprefix("growth").removeprefix("."))
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("growth.") for a in node.names if a.name.startswith("growth.")}
    return found - {""}


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def edges():
    """The packages that each package imports from."""
    found = {name: set() for name in packages()}
    for path in FILES:
        own = module_of(path).split(".")[0]
        found[own] |= {imported.split(".")[0] for imported in imports_of(path)} - {own}
    return found


def test_the_table_lists_every_package():
    assert packages().keys() == {module_of(path).split(".")[0] for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_downward(path):
    place, own = packages(), module_of(path).split(".")[0]
    for imported in imports_of(path):
        other = imported.split(".")[0]
        assert other == own or place[other] < place[own], (
            f"{own} imports {imported}, which is not above it in the table"
        )


def test_imports_make_at_most_eleven_layers():
    graph = edges()

    def layer(name):
        return 1 + max((layer(other) for other in graph[name]), default=0)

    assert max(map(layer, graph)) <= 11


def test_few_modules_are_outside_of_packages():
    assert len(list(PACKAGE.glob("*.py"))) <= 8


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*/__init__.py")), ids=module_of)
def test_a_package_states_its_responsibility_in_a_sentence(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text
    assert text.split("\n\n")[0].endswith(".")


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_package_reaches_for_anothers_own_names(path):
    own = module_of(path).split(".")[0]
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
    "module", ["output/checkpoint_writer", "output/staging", "checkpoints/tensor_reader", "engine/grow_tensor"]
)
def test_no_collective_while_files_are_written(module):
    assert not mentions(PACKAGE / f"{module}.py", "torch.distributed")


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("pickle", {"checkpoints.dcp"}),
        ("torch.load", {"training.trainer_checkpoint"}),
        ("torch.distributed", {"distributed.dcp_writer", "distributed.grow_reader"}),
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
    ],
)
def test_start_up_needs_no_torch(code):
    result = run("-c", f"{code}\nimport sys; print({{'torch', 'transformers'}} & sys.modules.keys())")
    assert result.stdout.splitlines()[-1] == "set()", result.stderr


@pytest.mark.parametrize(("arguments", "limit"), [(["--help"], 0.3), (["plan", "phi-mini"], 1.0)])
def test_start_up_is_quick(arguments, limit):
    """The best of five: another process on the machine must not decide."""
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        assert run("-m", "growth", *arguments).returncode == 0
        best = min(best, time.perf_counter() - began)
    assert best < limit


def test_the_wheel_works_outside_the_repository(tmp_path):
    built = run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT), cwd=tmp_path)
    assert built.returncode == 0, built.stderr[-2000:]
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        names = archive.namelist()
    assert "growth/py.typed" in names
    assert "growth/recipes/phi-1.5-to-phi-2.yaml" in names
    assert not [name for name in names if name.startswith(("tests", "examples", "benchmarks", "recipes"))]
    env = {"PYTHONPATH": str(site)}
    where = run("-c", "import growth; print(growth.__file__)", cwd=tmp_path, env=env)
    assert str(site) in where.stdout
    model = str(ROOT / "examples" / "phi-mini")
    grown = run("-m", "growth", "grow", "phi-mini", "-s", model, "-o", "out", cwd=tmp_path, env=env)
    assert grown.returncode == 0, grown.stderr
    assert (tmp_path / "out" / "growth.json").is_file()


def test_every_public_name_is_there():
    import growth

    for name in growth.__all__:
        value = getattr(growth, name)
        assert name == "Operator" or value.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'shrink'"):
        growth.shrink  # noqa: B018


def test_the_shipped_model_is_small():
    folder = ROOT / "examples" / "phi-mini"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5e6

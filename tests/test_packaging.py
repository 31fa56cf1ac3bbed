"""What is published: sdist and wheel, every block of the docs outside the checkout, one version, the same tools."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.support.paths import PHI_MINI, ROOT
from tests.support.run_page import blocks


def run(*arguments, cwd):
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that is built from it.

    They are built in a copy of the tree: setuptools writes into the tree, and several processes may test at once.
    """
    folder, tree = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("source") / "growth"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, capture_output=True, text=True, cwd=ROOT, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():  # a file may be deleted and not committed yet
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    run("-m", "build", "--no-isolation", "--outdir", folder, tree, cwd=folder)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def site(built, tmp_path_factory):
    """The folder that holds the files of the wheel."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(built[1]) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def installed(site, tmp_path_factory):
    """Runs Python code on the wheel, in a folder outside of the checkout."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def execute(code):
        first = f"import sys; sys.path.insert(0, {str(site)!r}); import growth; assert {str(site)!r} in growth.__file__"
        return run("-c", f"{first}\n{code}", cwd=elsewhere)

    return execute


def command(*words):
    """The code that runs a command of growth."""
    return f"sys.argv = {['growth', *words]!r}; from growth.__main__ import main; main()"


def test_the_wheel_holds_every_module_the_recipes_and_the_mini_checkpoint(built):
    with zipfile.ZipFile(built[1]) as archive:
        names = archive.namelist()
    shipped = {str(path.relative_to(ROOT)) for path in (ROOT / "growth").rglob("*.py*") if path.suffix != ".pyc"}
    shipped |= {f"growth/{kind}/{path.name}" for kind in ("recipes", "schedules") for path in (ROOT / kind).iterdir()}
    shipped |= {f"growth/examples/phi-mini/{path.name}" for path in PHI_MINI.iterdir()}
    assert {"growth/py.typed", *shipped} <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"growth"}


def test_the_sdist_holds_all_that_is_committed(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    committed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT).stdout.split()
    assert {name for name in committed if not name.startswith(".")} <= names


def test_the_mini_checkpoint_is_small():
    assert sum(path.stat().st_size for path in PHI_MINI.iterdir()) < 5e6


def test_the_mini_checkpoint_grows_outside_of_the_checkout(installed):
    assert "Wrote grown" in installed(command("grow", "phi-mini", "--output", "grown"))


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "\n```" in page.read_text()]
ELSEWHERE = {"add-a-family": "tests/architectures/test_add_a_family.py"}  # pages whose blocks other tests run
PROGRAMS = {"growth": "-m growth", "python": "", "torchrun": "-m torch.distributed.run"}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_page_runs_as_it_stands_from_the_installed_wheel(page, site, tmp_path):
    if page.stem in ELSEWHERE:
        assert f"docs/{page.name}" in (ROOT / ELSEWHERE[page.stem]).read_text()
        return
    programs, here = tmp_path / "bin", tmp_path / "here"
    programs.mkdir()
    here.mkdir()
    for name, module in PROGRAMS.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -P {module} "$@"\n')
        (programs / name).chmod(0o755)
    env = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(site), "COLUMNS": "160"}
    runner = [sys.executable, "-P", ROOT / "tests" / "support" / "run_page.py", page]
    done = subprocess.run(runner, capture_output=True, text=True, cwd=here, env=env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_block_of_a_page_is_run_or_says_why_not(page):
    for block in blocks(page.read_text()):
        assert block.kind in ("python", "console", "yaml", "diff") or block.file or block.not_run, f"line {block.line}"


def test_the_version_is_stated_once():
    import growth

    assert "version = attr: growth.version.__version__" in (ROOT / "setup.cfg").read_text()
    assert f"## {growth.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_pre_commit_runs_what_ci_runs():
    hooks, pins = (ROOT / ".pre-commit-config.yaml").read_text(), (ROOT / "constraints.txt").read_text()
    ruff = re.search(r"^ruff==(\S+)$", pins, re.M)[1]
    assert f"rev: v{ruff}\n" in hooks
    assert "entry: .venv/bin/mypy\n" in hooks
    assert re.search(r"^mypy==", pins, re.M)

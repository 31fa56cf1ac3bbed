"""What is published: sdist and wheel, the README's commands outside the checkout, one version, the same tools."""

import re
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.support.paths import PHI_MINI, ROOT

README = (ROOT / "README.md").read_text()
INSTEAD = {"phi-1.5-to-phi-2": "phi-mini", "phi-1_5/": "examples/phi-mini"}  # Phi-1.5 has 2.8 GB


def run(*arguments, cwd):
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Runs Python code on the wheel, in a folder outside of the checkout."""
    site, elsewhere = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    with zipfile.ZipFile(built[1]) as archive:
        archive.extractall(site)

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


def commands():
    """The commands of growth in the README's console blocks, each with the line that is printed below it, if one is."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("$ growth "):
            yield line.partition("#")[0].split()[2:], "" if following.startswith("$") else following


def test_the_mini_checkpoint_grows_outside_of_the_checkout(installed):
    assert "Wrote grown" in installed(command("grow", "phi-mini", "--output", "grown"))


@pytest.mark.slow
def test_the_commands_of_the_readme_work_from_the_installed_wheel(installed):
    assert len(list(commands())) >= 5
    for words, following in commands():
        printed = installed(command(*(INSTEAD.get(word, word) for word in words)))
        assert printed.split()[:1] == following.split()[:1] or not following, words


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_python_of_a_page_works_from_the_installed_wheel(page, installed):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    assert blocks
    folder = re.search(r"growth grow phi-mini --output (\S+)/", (ROOT / page).read_text())[1]
    installed(
        f"import shutil; shutil.rmtree({folder!r}, ignore_errors=True); {command('grow', 'phi-mini', '-o', folder)}"
    )
    installed("\n".join(blocks))


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

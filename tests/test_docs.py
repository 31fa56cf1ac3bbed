"""What the documentation says of the code: the picture of the packages, and every name."""

import ast
import re
from functools import cache
from pathlib import Path
from pkgutil import resolve_name

import pytest

import growth
from docs import json_schema, write_tables
from docs.draw_architecture import PICTURE, picture
from growth.architectures import registry as families
from growth.operators import registry as operators
from growth.verification import metrics
from tests.support import families_table

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "docs/study/README")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def test_the_picture_of_the_packages_is_up_to_date():
    assert PICTURE.read_text() == picture(), "run: make picture"


PAGES_WITH_TABLES = sorted({name for name, _ in write_tables.TABLES} - {"pairs.md"})


@pytest.mark.parametrize("name", [*PAGES_WITH_TABLES, pytest.param("pairs.md", marks=pytest.mark.slow)])
def test_the_tables_are_up_to_date(name):
    assert (ROOT / "docs" / name).read_text() == write_tables.page(name), "run: make tables"


def test_the_json_schema_is_up_to_date():
    assert json_schema.PATH.read_text() == json_schema.schema(), "run: make tables"


def test_one_row_of_the_table_of_families_can_be_written_alone():
    text = families_table.PATH.read_text()
    table = families_table.parse(text)
    assert families_table.page(table) == text
    seen = families_table.rows([("llama", "tied", "ffn", "too wide"), ("llama", "untied", "ffn", "exact")])
    changed = families_table.parse(families_table.page(table | seen))
    assert changed["llama"]["ffn"] == ("exact", ("`tie_word_embeddings: true`: too wide",))
    assert {family: row for family, row in changed.items() if row != table[family]}.keys() == {"llama"}


@cache
def definitions(path):
    """Every class, function and top-level name that a file defines; methods as Class.method."""
    found = set()

    def visit(body, prefix):
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found.add(f"{prefix}{node.name}")
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update(f"{prefix}{target.id}" for target in targets if isinstance(target, ast.Name))

    visit(ast.parse((ROOT / path).read_text()).body, "")
    return found


def named():
    """(page, file, definition) wherever a page names a file and, behind it in a table or in parentheses, a name."""
    for page in PAGES:
        for file, name in re.findall(r"`((?:growth|tests|docs)/[\w/]+\.py)`(?: \| | \()`([\w.]+)`", page.read_text()):
            yield pytest.param(file, name, id=f"{page.name}:{file}:{name}")


@pytest.mark.parametrize(("file", "name"), list(named()))
def test_a_definition_that_a_page_names_is_there(file, name):
    assert name in definitions(file)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page):
    text = page.read_text()
    paths = re.findall(r"`((?:growth|tests|docs|examples|benchmarks|recipes)/[\w./-]*)`", text)
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if not link.startswith("http")]
    for path in [ROOT / path for path in paths] + [page.parent / link for link in links]:
        assert path.exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_has_marks_of_a_merge(page):
    assert not re.search(r"^(<<<<<<<|>>>>>>>)", page.read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_the_library_that_a_page_uses_are_there(page):
    for name in re.findall(r"`(growth\.[\w.]+)(?:\(|`)", page.read_text()):
        assert (
            name in ("growth.json", *(of.GROUP for of in (families, operators, metrics)))
            or resolve_name(name) is not None
        )


@pytest.mark.parametrize(
    "page", sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]), ids=lambda page: page.name
)
def test_python_in_a_page_is_python(page):
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)):
        ast.parse(block, f"{page.name}, block {number}")


def test_the_page_on_python_has_every_public_name():
    named = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    shown = [resolve_name(name) for name in named]
    missing = {name for name in growth.__all__ if not any(getattr(growth, name) is one for one in shown)}
    assert missing == {"__version__"}

"""Draw docs/architecture.svg from the imports in growth/ and the table in docs/architecture.md: `make picture`."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from itertools import combinations, permutations
from pathlib import Path

ROOT = Path(__file__).parent.parent
TABLE, PICTURE = ROOT / "docs" / "architecture.md", ROOT / "docs" / "architecture.svg"
WIDTH, BOX_WIDTH, BOX_HEIGHT, GAP, ROW, MARGIN = 860, 250, 58, 30, 96, 12  # pixels
CHARACTERS = 40  # of a line of text in a box
SWEEPS = 4  # over all rows, to find an order with few crossings

Graph = Mapping[str, frozenset[str]]


# ------------------------------------------------- what the code says


def packages() -> dict[str, str]:
    """Return the responsibility of each package and module directly in growth/, the foundation first."""
    rows = re.findall(r"^\| `growth/(\w+)(?:\.py|/)` \| (.+) \|$", TABLE.read_text(), re.M)
    return dict(rows)


def files() -> list[Path]:
    """Return the files of growth/ but for its `__init__`, which only names what others define."""
    package = ROOT / "growth"
    return [path for path in sorted(package.rglob("*.py")) if path != package / "__init__.py"]


def package_of(path: Path) -> str:
    """Return the package that a file is in, or the module directly in growth/ that it is."""
    return path.relative_to(ROOT / "growth").with_suffix("").parts[0]


def imports_of(path: Path) -> set[str]:
    """Return the modules of growth, without the prefix, that a file imports at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("growth.") for name in found if name.startswith("growth.")}


def imports() -> dict[str, frozenset[str]]:
    """Return the packages that each package imports from."""
    found: dict[str, set[str]] = {name: set() for name in packages()}
    for path in files():
        own = package_of(path)
        found[own] |= {module.split(".")[0] for module in imports_of(path)} - {own}
    return {name: frozenset(others) for name, others in found.items()}


def layers(graph: Graph) -> dict[str, int]:
    """Return the layer of each package: 0 if it imports from no other, else one above the highest it imports from.

    >>> layers({"a": frozenset(), "b": frozenset("a"), "c": frozenset("ab")})
    {'a': 0, 'b': 1, 'c': 2}
    """

    @cache
    def layer(name: str) -> int:
        return 1 + max((layer(other) for other in graph[name]), default=-1)

    return {name: layer(name) for name in graph}


def reduced(graph: Graph) -> dict[str, frozenset[str]]:
    """Return the graph without the edges that follow from the others.

    >>> reduced({"a": frozenset(), "b": frozenset("a"), "c": frozenset("ab")})["c"]
    frozenset({'b'})
    """

    @cache
    def below(name: str) -> frozenset[str]:
        return graph[name].union(*map(below, graph[name]))

    return {
        name: frozenset(o for o in others if not any(o in below(p) for p in others)) for name, others in graph.items()
    }


# ------------------------------------------------- the picture


def picture() -> str:
    """Return docs/architecture.svg as it should be: an arrow leads from a package to one that it imports from."""
    graph = reduced(imports())
    rows = _untangled(_rows(graph), graph)
    boxes = {
        name: (x, MARGIN + ROW * number)
        for number, row in enumerate(rows)
        for name, x in zip(row, _middles(len(row)), strict=True)
    }
    height = 2 * MARGIN + ROW * len(rows) - (ROW - BOX_HEIGHT)
    arrows = [_arrow(boxes, graph, upper, lower) for upper in graph for lower in sorted(graph[upper])]
    meaning = packages()
    body = "\n".join([*arrows, *(_box(name, meaning[name], *place) for name, place in boxes.items())])
    return f'''<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"
 font-family="Helvetica, Arial, sans-serif" text-anchor="middle">
<!-- made by docs/draw_architecture.py: make picture -->
<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0L8 4L0 8z" fill="#5a6b7f"/></marker></defs>
<rect width="{WIDTH}" height="{height}" fill="white"/>
{body}
</svg>
'''


def _rows(graph: Graph) -> list[list[str]]:
    """Each package in the row below the lowest package that imports from it, the highest row first."""
    users = {name: frozenset(other for other in graph if name in graph[other]) for name in graph}
    row = layers(users)
    return [[name for name in graph if row[name] == number] for number in range(max(row.values()) + 1)]


def _untangled(rows: list[list[str]], graph: Graph) -> list[list[str]]:
    """Order each row so that few arrows cross."""
    rows = [sorted(row) for row in rows]
    for _ in range(SWEEPS):
        for number, row in enumerate(rows):
            near = rows[max(0, number - 1) : number] + rows[number + 1 : number + 2]
            rows[number] = min(
                map(list, permutations(row)), key=lambda order: sum(_cost(order, o, graph) for o in near)
            )
    return rows


def _cost(one: Sequence[str], other: Sequence[str], graph: Graph) -> float:
    """Return how many arrows between two rows cross, plus a fraction for how far they lean."""
    x, y = (dict(zip(row, _middles(len(row)), strict=True)) for row in (one, other))
    ends = [(x[a], y[b]) for a in one for b in other if b in graph[a] or a in graph[b]]
    crossed = sum((a - c) * (b - d) < 0 for (a, b), (c, d) in combinations(ends, 2))
    return crossed + sum(abs(a - b) for a, b in ends) / (100 * WIDTH)


def _middles(count: int) -> list[float]:
    """Return the x of the middles of the boxes of a row."""
    return [WIDTH / 2 + (BOX_WIDTH + GAP) * (number - (count - 1) / 2) for number in range(count)]


def _arrow(boxes: Mapping[str, tuple[float, float]], graph: Graph, upper: str, lower: str) -> str:
    begin = _port(boxes, upper, graph[upper], lower)
    end = _port(boxes, lower, [name for name in graph if lower in graph[name]], upper)
    top, bottom = boxes[upper][1] + BOX_HEIGHT, boxes[lower][1]
    bend = (bottom - top) / 2
    path = f"M{begin:.0f} {top}C{begin:.0f} {top + bend:.0f} {end:.0f} {bottom - bend:.0f} {end:.0f} {bottom}"
    return f'<path d="{path}" fill="none" stroke="#5a6b7f" stroke-width="1.3" marker-end="url(#tip)"/>'


def _port(boxes: Mapping[str, tuple[float, float]], name: str, others: Iterable[str], other: str) -> float:
    """Return the x at which the arrow between a box and another one touches it: side by side, from left to right."""
    order = sorted(others, key=lambda each: (boxes[each][0], each))
    return boxes[name][0] + BOX_WIDTH * ((order.index(other) + 1) / (len(order) + 1) - 0.5)


def _box(name: str, meaning: str, x: float, y: float) -> str:
    title = f"growth/{name}" + ("/" if (ROOT / "growth" / name).is_dir() else ".py")
    text = re.sub(r"\[([^]]+)\]\([^)]*\)|`([^`]+)`", lambda found: found[1] or found[2], meaning)
    lines = textwrap.wrap(text, CHARACTERS, max_lines=2, placeholder=" …")
    shown = "".join(f'<tspan x="{x:.0f}" dy="14">{escape(line)}</tspan>' for line in lines)
    return (
        f'<rect x="{x - BOX_WIDTH / 2:.0f}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" fill="#eef3f8" '
        f'stroke="#5a6b7f"/>\n<text x="{x:.0f}" y="{y + 19}" font-size="14" font-weight="bold">{title}'
        f'<tspan font-size="11" font-weight="normal" fill="#333">{shown}</tspan></text>'
    )


if __name__ == "__main__":
    PICTURE.write_text(picture())

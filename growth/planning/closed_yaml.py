"""YAML 1.2 files with a closed schema: recipes and schedules. An unknown key is an error that lists the known ones."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.parser import Parser
from ruamel.yaml.scanner import Scanner

from growth.checkpoints.untrusted import DEEPEST, check_plain, read_file
from growth.errors import CheckpointError, GrowthError, did_you_mean
from growth.operators.registry import ClosedModel, alternatives, due, is_type

LARGEST_FILE = 1 << 18  # bytes; shipped files have a kilobyte, and the parser reads some 200 KB per second
LARGEST_EVENTS = 5_000  # parser events: keys, values, starts and ends; a list of all layers has 2,048
FOLDERS = ("recipes", "schedules")  # of the shipped files
MOST_ERRORS = 10  # errors that one message explains

M = TypeVar("M", bound=ClosedModel)


@dataclass(frozen=True)
class FileKind:
    """A kind of YAML file.

    name: what such a file is, for messages: "recipe".
    item, items: what it lists, and under which key: "step", "steps".
    folder: the folder of the shipped ones.
    error: the exception that its errors raise.
    members: the schemas that the items of a list can have, by the name that pydantic gives each.
    head: the key that comes first, where one is needed.
    """

    name: str
    item: str
    items: str
    folder: str
    error: type[GrowthError]
    members: Mapping[str, type[ClosedModel]]
    head: str = ""

    def shipped(self) -> list[Path]:
        """The paths of the shipped files: in an installed package, or beside it in a source tree."""
        here = Path(__file__).parents[1]
        return sorted((here / self.folder).glob("*.yaml")) or sorted((here.parent / self.folder).glob("*.yaml"))

    def find(self, name: str | Path, shipped: Callable[[], list[Path]]) -> Path:
        """The path of a file, or of a shipped file by its name.

        Raises:
            GrowthError: no such file or name.
        """
        name = os.path.expanduser(name)
        path = Path(name)
        if os.path.isfile(name):  # Path raises where a name is too long for a file system
            return path
        named = {path.stem: path for path in shipped()}
        if os.path.islink(name) and not os.path.exists(name):
            raise self.error(
                f"The {self.name} {name} is a link to {os.readlink(name)}, which does not exist. Restore that file, or "
                f"name another {self.name}."
            )
        if os.path.isdir(name) and str(name) not in named:
            source = f" If it is the source, write RECIPE --source {name}; in Python, plan(recipe, source)."
            raise self.error(
                f"{name} is a folder, and a {self.name} is a YAML file or the name of a shipped one."
                f"{source if self.members else ''}"  # only recipes have operators, and a source that they apply to
            )
        if str(name) in self.members:
            raise self.error(
                f"'{name}' is an operator, and no {self.name}: write a {self.name} with a {self.item} of it, such as "
                f"'{self.items}: [{{op: {name}, …}}]'. docs/operators.md has its arguments."
            )
        if str(name) not in named and not os.path.exists(name):
            if other := self._of_another_kind(str(name)):
                return other
            raise self.error(f"No {self.name} file or shipped {self.name} '{name}'{_instead(path, named)}")
        return named.get(str(name), path)

    def _of_another_kind(self, name: str) -> Path | None:
        """The shipped file of another kind with that name, if any: the error on its content says what it is."""
        others = (path for folder in FOLDERS for path in replace(self, folder=folder).shipped())
        return next((path for path in others if path.stem == name), None)

    def read(self, path: Path) -> str:
        """The text of a file.

        Raises:
            GrowthError: it cannot be read, or is too large.
        """
        try:
            return read_file(path, LARGEST_FILE).decode("utf-8")
        except (UnicodeDecodeError, OSError, CheckpointError) as error:
            raise self.error(f"{path} cannot be read: {error}") from None

    def parse(self, text: str, name: str) -> Any:
        """Parse YAML 1.2 text; `name` is its name in errors.

        Raises:
            GrowthError: malformed YAML, aliases, tags, or too many values.
        """
        try:
            yaml = YAML(typ="safe", pure=True)
            yaml.Scanner, yaml.Parser = (
                type(of.__name__, (of,), {"kind": self}) for of in (_PlainScanner, _PlainParser)
            )
            return yaml.load(text)
        except _Refused as refusal:  # the parser knows no name
            raise self.error(f"{name} {refusal}") from None
        except (YAMLError, ValueError, RecursionError) as error:
            raise self.error(f"{name} is not YAML 1.2: {_one_line(error)}") from None

    def mapping(self, content: Any, name: str) -> dict[str, Any]:
        """Check that parsed YAML or JSON is a mapping of plain values.

        Raises:
            GrowthError: it is anything else.
        """
        try:
            check_plain(content)
        except ValueError as error:
            raise self.error(f"{name} is not a {self.name}: {error}.") from None
        if not isinstance(content, dict):
            keys = " and ".join(f"'{key}'" for key in (self.head, self.items) if key)
            raise self.error(f"{name} holds no mapping: a {self.name} is a mapping with {keys}.")
        return content

    def validate(self, schema: type[M], content: Mapping[str, Any], name: str) -> M:
        """Validate a mapping by a schema whose field `name` is the name in errors.

        Raises:
            GrowthError: unknown or missing keys, wrong types: all that are found, and what is missing last, because a
                key with a mistyped name is both unknown and missing.
        """
        lines = [f"{name}: unknown key 'name'. Known: {_known(schema)}."] if "name" in content else []
        try:
            valid = schema.model_validate({**content, "name": name})
        except ValidationError as error:
            found = sorted(alternatives(error.errors()), key=lambda item: bool(item["type"] == "missing"))
            lines += [self._explained(schema, name, item) for item in found]
        if lines:
            more = [f"{name}: {len(lines) - MOST_ERRORS:,} more errors."] if len(lines) > MOST_ERRORS else []
            raise self.error(*lines[:MOST_ERRORS], *more)
        return valid

    def _explained(self, schema: type[BaseModel], name: str, error: Any) -> str:
        """A pydantic error as a sentence: file, item, key, what is wrong, what would be right."""
        where, location, model = name, list(error["loc"]), schema
        if location[:1] == [self.items] and len(location) > 1:
            where += f", {self.item} {location[1] + 1}"
            if len(location) > 2 and location[2] in self.members:
                where += f" ({location.pop(2)})"
            model, location = self._item_schema(schema, error["loc"]), location[2:]
        for part in location[:-1]:
            model = _schema_at(model, part)
        key = ".".join(str(part) for part in location if not is_type(str(part)))
        if error["type"] == "extra_forbidden":
            return f"{where}: unknown key '{key}'. Known: {_known(model)}.{did_you_mean(key, model.model_fields)}"
        if error["type"] == "missing":
            return f"{where}: '{key}' is missing. Known: {_known(model)}."
        if error["type"].startswith("union_tag"):
            known = ", ".join(self.members)
            named = error["input"].get("op") if isinstance(error["input"], dict) else None
            hint = did_you_mean(str(named), self.members)
            return f"{where}: every {self.item} needs an 'op', one of {known} (got {error['input']!r}).{hint}"
        given = f" (got {error['input']!r})"[:80] if key else ""
        inside = _schema_at(model, location[-1]) if location else model
        why = f"must be a mapping of {_known(inside)}" if error["type"] == "model_type" else due(error["msg"])
        near = (
            did_you_mean(str(error["input"]), re.findall(r"'([^']+)'", why)) if error["type"] == "literal_error" else ""
        )
        return f"{where}: {key + ': ' if key else ''}{why}{given}.{near}"

    def _item_schema(self, schema: type[BaseModel], location: tuple[Any, ...]) -> type[BaseModel]:
        member = location[2] if len(location) > 2 else None
        return self.members.get(str(member)) or _schema_at(schema, self.items)


class _Refused(Exception):
    """The rest of a sentence on what a parser refuses; the sentence begins with the file's name."""


class _PlainScanner(Scanner):
    """A scanner of YAML 1.2 alone: %YAML 1.1 would change the meaning of `yes` and `010`, and %TAG that of tags."""

    kind: FileKind

    def scan_directive(self) -> Any:
        directive = super().scan_directive()
        if (directive.name, directive.value) != ("YAML", (1, 2)):
            between = "." if directive.name == "YAML" else " "
            said = f"%{directive.name} {between.join(map(str, directive.value or ()))}".rstrip()
            raise _Refused(f"uses the directive {said}; a {self.kind.name} is YAML 1.2. Remove that line.")
        return directive


class _PlainParser(Parser):
    """A parser with bounded time and memory: no aliases, no tags, few levels, few values."""

    kind: FileKind
    count = depth = 0

    def get_event(self) -> Any:
        event, kind = super().get_event(), self.kind
        if isinstance(event, AliasEvent):
            raise _Refused(f"uses YAML aliases; a {kind.name} states every {kind.item} in full.")
        if getattr(event, "tag", None) is not None:
            raise _Refused(f"uses the YAML tag {event.tag}; a {kind.name} holds plain values.")
        if getattr(event, "value", None) == "<<":
            raise _Refused(f"uses a YAML merge key; a {kind.name} states every {kind.item} in full.")
        self.count += 1
        self.depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if self.depth > DEEPEST or self.count > LARGEST_EVENTS:
            raise _Refused(
                f"is too large for a {kind.name}: at most {DEEPEST} levels of nesting and about {LARGEST_EVENTS:,} "
                "values."
            )
        return event


def _instead(path: Path, shipped: Mapping[str, Path]) -> str:
    """The end of a message on a file that does not exist: one with nearly its name, or the shipped ones."""
    beside = [*path.parent.glob("*.yaml"), *path.parent.glob("*.yml")] if path.parent.is_dir() else []
    same = [str(each) for each in beside if each.with_suffix("") == path]
    near = f" Did you mean '{same[0]}'?" if same else did_you_mean(str(path), [*map(str, beside), *shipped])
    if near or path.suffix or len(path.parts) > 1:
        return f". `growth recipes` lists the shipped ones.{near}"
    return f". Shipped: {', '.join(shipped)}."


def _one_line(error: Exception) -> str:
    problem = getattr(error, "problem", None) or str(error)
    mark = getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 1})" if mark is not None else ""
    return f"{problem.splitlines()[0]}{where}."


def _known(model: type[BaseModel]) -> str:
    return ", ".join(key for key in model.model_fields if key != "name")


def _schema_at(model: type[BaseModel], key: Any) -> type[BaseModel]:
    """The schema of what a key holds, where that has one; else the schema of the key itself."""
    field = model.model_fields.get(str(key))
    inside: list[Any] = [field.annotation] if field is not None else []
    while inside:
        annotation = inside.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
        inside.extend(get_args(annotation))
    return model

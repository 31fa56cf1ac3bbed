"""Registry of growth operators: ours, and those of installed packages (entry points of the group `growth.operators`).

An operator is one function.

Its parameters are the keys of a recipe's step, their types and defaults are the step's schema, and its docstring is the
operator's section in docs/recipes.md. `growth/operators/__init__.py` imports it, which registers it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from operator import index
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)

from growth.errors import GrowthError, RecipeError, did_you_mean
from growth.extensions import Extensions, Guard
from growth.operators.base import Growth, Operator

Size = Annotated[StrictInt, Field(gt=0, lt=2**31)]
Factor = Annotated[StrictInt | StrictFloat, Field(gt=0, lt=2**31)]
Seed = Annotated[StrictInt, Field(ge=0, lt=2**63)]


class ClosedModel(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


SHOULD = "Input should be "
DUE = {  # pydantic's words for what a value should be, and ours
    "Value error, ": "",
    SHOULD: "must be ",
    "a valid dictionary or object to extract fields from": "a mapping, such as {op: deepen, factor: 2}",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a whole number or a number": "a number",
    "a valid list": "a list",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid tuple": "a list",
}


def due(message: str) -> str:
    """What a value must be, from a message of pydantic.

    >>> due("Input should be a valid integer")
    'must be a whole number'
    """
    for theirs, ours in DUE.items():
        message = message.replace(theirs, ours)
    return message


def alternatives(errors: Iterable[Any]) -> list[Any]:
    """The errors of pydantic, those of the alternatives that one key has as one."""
    found: dict[tuple[Any, ...], Any] = {}
    for error in errors:
        key = tuple(part for part in error["loc"] if not is_type(str(part)))
        if key in found and error["msg"].startswith(SHOULD):
            error = {**found[key], "msg": f"{found[key]['msg']} or {error['msg'].removeprefix(SHOULD)}"}
        found[key] = error
    return list(found.values())


def is_type(part: str) -> bool:
    """Whether a part of pydantic's location names a member of a union instead of a key."""
    return part.startswith(("constrained", "literal[", "list[", "int", "float"))


class RecipeStep(ClosedModel):
    """A step of a recipe: the name of an operator, and its arguments."""

    op: str

    def operator(self, seed: int) -> Operator:
        """Return the operator of this step.

        seed: used where the operator takes one and the step does not state it.
        """
        arguments = {key: getattr(self, key) for key in type(self).model_fields if key != "op"}
        if arguments.get("seed", seed) is None:
            arguments["seed"] = seed
        return OPERATORS[self.op].function(**arguments)


@dataclass(frozen=True)
class Summary:
    """A row of the table of operators in docs/operators.md.

    use: how a recipe names the operator, as Markdown.
    effect: what it does.
    preserves: whether it preserves the function, and on what condition.
    """

    use: str
    effect: str
    preserves: str


@dataclass(frozen=True)
class RegisteredOperator:
    """An operator as recipes and docs know it.

    schema: the model of a recipe's step.
    example: arguments of a step that every model can take.
    lossy: whether it changes the function in general.
    """

    function: Callable[..., Operator]
    schema: type[RecipeStep]
    summaries: tuple[Summary, ...]
    example: Mapping[str, Any]
    lossy: bool


def _guarded(operator: RegisteredOperator, guard: Guard[..., Any]) -> RegisteredOperator:
    """Return an operator of a package: its errors name the package, in its function and in what that returns."""

    @wraps(operator.function)
    def function(*args: Any, **kwargs: Any) -> Operator:
        return guard(guard(operator.function)(*args, **kwargs))

    return replace(operator, function=function)


GROUP = "growth.operators"
SHOWN = 2  # calls that a message suggests
OPERATORS: dict[str, RegisteredOperator] = {}
EXTENSIONS = Extensions(GROUP, "operator", "register", OPERATORS, _guarded, RecipeError, GrowthError)
F = TypeVar("F", bound=Callable[..., Operator])


def register(
    *summaries: Summary,
    example: Mapping[str, Any] = MappingProxyType({}),
    lossy: bool = False,
    check: Callable[[Any], Any] | None = None,
) -> Callable[[F], F]:
    """Register a function as the operator of its name.

    If the function has a parameter `seed`, a recipe passes its own seed, unless the step states another.

    example: arguments of a step that every model can take, for the docs and the tests: all that are required.
    check: returns the step, or raises ValueError if its arguments (the step's attributes) exclude one another.

    Raises:
        RecipeError: there is an operator of this name already.
    """

    def registered(function: F) -> F:
        if function.__name__ in OPERATORS:
            raise RecipeError(f"There is an operator {function.__name__!r} already. Remove it, or rename this one.")
        hints = get_type_hints(function, include_extras=True)
        fields: dict[str, Any] = {"op": (Literal[function.__name__], ...)}
        for key, parameter in inspect.signature(function).parameters.items():
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[key] = (Seed | None, None) if key == "seed" else (hints[key], default)
        validators: dict[str, Any] = {"check": model_validator(mode="after")(check)} if check else {}
        schema = create_model(function.__name__, __base__=RecipeStep, __validators__=validators, **fields)
        explained = _explained(function, schema)
        OPERATORS[function.__name__] = RegisteredOperator(explained, schema, summaries, example, lossy)
        return cast("F", explained)

    return registered


# what arguments of a wrong type, or out of range, lead to somewhere inside an operator
_BARE = (TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, LookupError, MemoryError)


def _explained(function: Callable[..., Operator], schema: type[RecipeStep]) -> Callable[..., Operator]:
    """Return an operator's function that explains such errors by the schema that recipes have for its arguments.

    In Python, arguments may be of more types than in a recipe (numbers and arrays of numpy), so they are not held
    against the schema before; only sizes must be whole.
    """
    signature = inspect.signature(function)
    hints = get_type_hints(function, include_extras=True)
    sizes = [key for key, hint in hints.items() if hint in (Size, Size | None)]

    @contextmanager
    def explaining(arguments: Mapping[str, Any]) -> Iterator[None]:
        try:
            yield
        except GrowthError:
            raise
        except _BARE as error:
            try:
                schema(op=function.__name__, **arguments)
            except ValidationError as found:
                first = alternatives(found.errors())[0]
                key, why = first["loc"][:1], due(first["msg"])
                where = ": ".join([function.__name__, *map(str, key)])
                given = f" (got {arguments[str(key[0])]!r})"[:80] if key else ""
                raise RecipeError(f"{where}: {why}{given}.") from error
            raise

    @wraps(function)
    def made(*args: Any, **kwargs: Any) -> Operator:
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise RecipeError(*_misnamed(function, args, kwargs)) from error
        with explaining(arguments):
            for key in sizes:
                if arguments.get(key) is not None:
                    index(arguments[key])
            operator = function(*args, **kwargs)

        def explained(growth: Growth) -> Growth:
            with explaining(arguments):
                return operator(growth)

        given = [*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())]
        explained.__qualname__ = f"{function.__name__}({', '.join(given)})"  # what repr shows
        return explained

    plain = get_type_hints(function)  # help() shows `to: int | None`, and not what a recipe's schema adds to it
    shown = [each.replace(annotation=plain[key]) for key, each in signature.parameters.items()]
    made.__signature__ = signature.replace(parameters=shown, return_annotation=Operator)  # type: ignore[attr-defined]
    return made


def _misnamed(function: Callable[..., Operator], args: Sequence[Any], given: Mapping[str, Any]) -> Iterator[str]:
    """Say which arguments of a call are without a name, unknown, given twice or missing."""
    operator, parameters = function.__name__, inspect.signature(function).parameters
    unnamed = [key for key, each in parameters.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    known = ", ".join(parameters) or "none"
    if extra := args[len(unnamed) :]:
        said = [*map(repr, args[: len(unnamed)])]
        named = [f"{operator}({', '.join([*said, f'{key}={extra[0]!r}'])})" for key in _fitting(function, extra[0])]
        such = f", such as {' or '.join(named[:SHOWN])}" if named else ""
        yield f"{operator}: {extra[0]!r} has no name: name it{such}. Known: {known}."
    for key in given.keys() - parameters.keys():
        yield f"{operator}: unknown argument '{key}'. Known: {known}.{did_you_mean(key, parameters)}"
    for key in given.keys() & set(unnamed[: len(args)]):
        yield f"{operator}: '{key}' is given twice, as {args[unnamed.index(key)]!r} and as {given[key]!r}."
    required = [key for key, each in parameters.items() if each.default is each.empty]
    for key in required:
        if key not in given and key not in unnamed[: len(args)] and not extra:
            yield f"{operator}: '{key}' is missing. Known: {known}."


def _fitting(function: Callable[..., Operator], value: Any) -> Iterator[str]:
    """The arguments that can only be given by name, and that may have a value."""
    hints = get_type_hints(function, include_extras=True)
    for key, each in inspect.signature(function).parameters.items():
        if each.kind is each.KEYWORD_ONLY and key != "seed":
            try:
                TypeAdapter(hints[key]).validate_python(value)
            except ValidationError:
                continue
            yield key


def check_choice(operator: str, **choices: tuple[str, Any]) -> None:
    """Check arguments that must be one of several words.

    choices: for each argument, its value and the Literal type that lists the words.

    Raises:
        RecipeError: the value is none of the words.
    """
    for key, (value, known) in choices.items():
        if value not in get_args(known):
            words = get_args(known)
            raise RecipeError(
                f"{operator} has no {key} '{value}': use one of {', '.join(words)}.{did_you_mean(str(value), words)}"
            )

"""What the site makes of docstrings: lists of arguments and examples become sections that mkdocstrings can lay out."""

import re

import griffe

ARGUMENT = re.compile(r"(?P<indent> *)(?P<names>\w+(?:, \w+)*): (?P<text>.*)")
INDENT = " " * 4


class Sections(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj, **_):
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = with_sections(obj.docstring.value)


def with_sections(text):
    """A docstring with its arguments under Args and its examples under Examples, each argument by itself."""
    paragraphs = re.split(r"\n{2,}", text)
    prepared = [
        examples(paragraph) if paragraph.startswith(">>>") else arguments(paragraph) for paragraph in paragraphs
    ]
    return "\n\n".join(prepared)


def examples(paragraph):
    """A paragraph of examples as a section."""
    return "Examples:\n" + "\n".join(INDENT + line for line in paragraph.split("\n"))


def arguments(paragraph):
    """A paragraph that is a list of arguments as a section, in which names that share a text have one each."""
    lines = paragraph.split("\n")
    inside = lines[0] in ("Args:", "Attributes:")
    body = lines[1:] if inside else lines
    if not inside and not (ARGUMENT.fullmatch(lines[0]) and lines[0][0].islower()):
        return paragraph
    listed = []
    for line in body:
        found = ARGUMENT.fullmatch(line if inside else INDENT + line)
        if found and len(found["indent"]) == len(INDENT):
            listed += [f"{INDENT}{name}: {found['text']}" for name in found["names"].split(", ")]
        else:
            listed.append(line if inside else INDENT + line)
    return "\n".join([lines[0] if inside else "Args:", *listed])

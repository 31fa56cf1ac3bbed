"""Text from outside as it leaves: in Markdown and in HTML. What reaches the terminal is in `growth.terminal`.

Names of folders, strings of configs and recipes, and messages of other libraries may hold anything. Each place where
text leaves has one function here that makes it harmless; JSON and YAML have the escapes of their own writers.
"""

from __future__ import annotations

import html
import re

from growth.errors import printable

# a backslash before any of them is the character itself (CommonMark 0.31, 2.4); "-", "+" and "=" matter only where
# a line begins
_SPECIAL = re.compile(r"""([\\`*_{}\[\]<>()#!|~&@:.$^"]|^[-+=])""")


def one_line(text: str) -> str:
    """A printable text on one line: its line ends are escapes too."""
    return printable(text).replace("\n", "\\n")


def markdown(text: str) -> str:
    r"""A text that Markdown renders as it is: no markup, link, HTML, cell, indent or line end of it has any effect.

    >>> print(markdown("a|b <b>*c*</b>\n---"))
    a\|b \<b\>\*c\*\</b\>\\n---
    """
    return _SPECIAL.sub(r"\\\1", one_line(text).strip(" "))


def html_text(text: str) -> str:
    """A text for the content or a quoted attribute of an HTML element.

    >>> html_text("<b title='x'>")
    '&lt;b title=&#x27;x&#x27;&gt;'
    """
    return html.escape(printable(text))

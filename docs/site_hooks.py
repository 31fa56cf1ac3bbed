"""What the site makes of pages that are also read in the repository: links out of docs/ become text."""

import re

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?!study)[^)]*\)")


def on_page_markdown(markdown, page, **_):
    """Keep the text of links to files outside of docs/, such as ../examples/plain_loop.py."""
    return OUTSIDE.sub(r"\1", markdown) if "/" not in page.file.src_uri else markdown.replace("](../../", "](../")

"""Hook of the documentation site: a link that leaves ``docs`` becomes the path that it names.

Pages link to the code, so that they can be followed in a checkout. The site contains no code, and it must not depend on
the address of a repository. A test checks that these links lead to files.
"""
# ruff: noqa: INP001 - a folder of documents with programs, not a package

from __future__ import annotations

import posixpath
import re
from typing import Final, Protocol

_LINK: Final = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>\.\.?/[^)\s#]*)(?:#[^)\s]*)?\)")
_FENCE: Final = re.compile(r"(^```.*?^```[ \t]*$)", re.MULTILINE | re.DOTALL)


class SourceFile(Protocol):
    """``src_uri``: the page's path from ``docs``."""

    src_uri: str


class SitePage(Protocol):
    file: SourceFile


def on_page_markdown(markdown: str, *, page: SitePage, **_: object) -> str:
    folder = posixpath.dirname(page.file.src_uri)

    def without_link(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, link["target"]))
        if path.startswith("docs/") and not path.endswith(".py"):
            return link[0]
        text = link["text"]
        return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(without_link, part) for part in parts)

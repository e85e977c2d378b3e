"""Headings of Markdown pages and the anchors that GitHub gives them."""

from __future__ import annotations

import re
from collections import Counter

FENCE = re.compile(r"^```.*?^```[ \t]*$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"#{1,6} +(.+?) *#* *$")


def headings(text: str) -> list[str]:
    return [line for line in FENCE.sub("", text).splitlines() if line.startswith("#")]


def anchors(text: str) -> set[str]:
    found: set[str] = set()
    seen: Counter[str] = Counter()
    for line in headings(text):
        heading = _HEADING.match(line)
        if heading is None:
            continue
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found

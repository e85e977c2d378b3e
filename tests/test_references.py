"""Nothing points nowhere: what code and documents refer to is there, down to the numbered heading.

``stripe.md 1.9, 2`` means ``docs/providers/stripe.md`` with headings 1.9 and 2. Any other ``*.md`` must be a file, and
``decision 0007`` must be one of ``docs/decisions``. A relative link of a document must lead to a file and a heading.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

from tests.support.markdown import FENCE, anchors, headings

ROOT = Path(__file__).resolve().parent.parent
TEXT = {".py", ".toml", ".md", ".yml", ".yaml", ".txt", ".html", ".mako"}
NAMES = {"Makefile", "Dockerfile"}
LEFT_BEHIND = {"build", "data", "__pycache__"}  # by builds and by runs, beside what is hidden; none of it is committed
PROVIDERS = PurePosixPath("docs/providers")
DECISIONS = PurePosixPath("docs/decisions")
HOMES = (PurePosixPath(), PurePosixPath("docs"), PROVIDERS, DECISIONS)

NUMBERED = re.compile(r"#{1,6} +(\d+(?:\.\d+)*[a-z]?)[.:]?(?:\s|$)")

# A mention can go on in the next line, behind the mark of a comment.
GAP = r"(?:[ \t]|\n[ \t]*(?:#+[ \t]*)?)+"
NUMBER = r"\d+(?:\.\d+)*[a-z]?(?![\w-])"
PLACE = rf"(?:{NUMBER}|head\b|appendix{GAP}[A-Z]\b)"
PLACES = rf"{PLACE}(?:(?:,{GAP}(?:and{GAP})?|{GAP}(?:and|to){GAP}){PLACE})*"
DOCUMENT = re.compile(rf"(?<![\w*/.{{}}-])(?P<path>[\w./-]*\w\.md)\b(?:,?{GAP}(?P<places>{PLACES}))?")
DECISION = re.compile(rf"\bdecisions?{GAP}(\d{{4}}(?:(?:,{GAP}(?:and{GAP})?|{GAP}and{GAP})\d{{4}})*)\b", re.IGNORECASE)
IN_BRACKETS = re.compile(r"\((0\d{3})\)")  # how one decision names another
ADDRESS = re.compile(r"\bhttps?://[^\s)>\"'`]+")
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?(?P<target>[^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")


class Reference(NamedTuple):
    line: int
    path: str
    places: tuple[str, ...] = ()


class Tree:
    """The files of a repository that hold text, by their path from its root."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.files = {
            PurePosixPath(path.relative_to(root).as_posix()): path.read_text(encoding="utf-8")
            for path in _texts(root)
            if path.resolve() != Path(__file__).resolve()  # its examples lead nowhere on purpose
        }

    def contains(self, path: PurePosixPath) -> bool:
        return (self._root / path).exists()

    def broken(self) -> list[str]:
        """Each reference that leads nowhere, as a sentence with its place."""
        return [
            f"{path}:{line} {why}"
            for path, text in self.files.items()
            for line, why in sorted(set(self._broken_in(path, text)))
        ]

    def _broken_in(self, path: PurePosixPath, text: str) -> Iterator[tuple[int, str]]:
        yield from self._documents(path, text)
        yield from self._decisions(path, text)
        yield from self._links(path, text)

    def _documents(self, path: PurePosixPath, text: str) -> Iterator[tuple[int, str]]:
        for line, name, places in references(text):
            found = self._find(path, name, numbered=bool(places))
            if found is None:
                yield line, f"{name}: no such document"
                continue
            there = numbers(self.files[found])
            yield from ((line, f"{name} {place}: no such heading in {found}") for place in places if place not in there)

    def _find(self, path: PurePosixPath, name: str, *, numbered: bool) -> PurePosixPath | None:
        """A bare name with numbers is a provider's page; everything else may stand in one of the usual places."""
        homes: tuple[PurePosixPath, ...] = (path.parent, *HOMES)
        if name.startswith("."):
            homes = (path.parent,)
        elif numbered and "/" not in name:
            homes = (PROVIDERS,)
        return next((found for home in homes if (found := _normal(home / name)) in self.files), None)

    def _decisions(self, path: PurePosixPath, text: str) -> Iterator[tuple[int, str]]:
        there = {each.name[:4] for each in self.files if each.parent == DECISIONS}
        for line, number in decisions(text, in_brackets=path.parent == DECISIONS):
            if number not in there:
                yield line, f"decision {number}: no such decision"

    def _links(self, path: PurePosixPath, text: str) -> Iterator[tuple[int, str]]:
        for line, target in links(text) if path.suffix == ".md" else ():
            name, _, anchor = target.partition("#")
            found = _normal(path.parent / name) if name else path
            if not self.contains(found):
                yield line, f"{target}: no such file"
            elif anchor and anchor not in anchors(self.files.get(found, "")):
                yield line, f"{target}: no such heading"


def _texts(root: Path) -> Iterator[Path]:
    for path in sorted(root.iterdir()):
        if not path.is_dir():
            if path.suffix in TEXT or path.name in NAMES:
                yield path
        elif not (path.name in LEFT_BEHIND or path.name.startswith(".") or path.suffix == ".egg-info"):
            yield from _texts(path)


def references(text: str) -> list[Reference]:
    """Documents that the text mentions, each with the numbers that follow its name."""
    plain = ADDRESS.sub(_blank, text)
    return [
        Reference(_line(plain, match.start()), match["path"], places(match["places"] or ""))
        for match in DOCUMENT.finditer(plain)
    ]


def places(listed: str) -> tuple[str, ...]:
    """``1.2 to 1.4, 9`` is 1.2, 1.3, 1.4 and 9."""
    found: list[str] = []
    until = False
    for each in re.findall(rf"\bto\b|{PLACE}", listed):
        if each == "to":
            until = True
            continue
        if until and found:
            found += _between(found[-1], each)
        found.append(re.sub(GAP, " ", each))
        until = False
    return tuple(found)


def _between(first: str, last: str) -> list[str]:
    chapter, _, low = first.rpartition(".")
    same, _, high = last.rpartition(".")
    if chapter != same or not (low.isdigit() and high.isdigit()):
        return []
    return [f"{chapter}.{number}".removeprefix(".") for number in range(int(low) + 1, int(high))]


def decisions(text: str, *, in_brackets: bool) -> list[tuple[int, str]]:
    named = [(match.start(), match[1]) for match in DECISION.finditer(text)]
    if in_brackets:
        named += [(match.start(), match[1]) for match in IN_BRACKETS.finditer(text)]
    return [(_line(text, at), number) for at, listed in named for number in re.findall(r"\d{4}", listed)]


def links(text: str) -> list[tuple[int, str]]:
    """Targets of Markdown links that lead to this repository."""
    plain = FENCE.sub(_blank, text)
    return [
        (_line(plain, match.start()), match["target"])
        for match in LINK.finditer(plain)
        if not re.match(r"[a-z]+:", match["target"])
    ]


def numbers(text: str) -> set[str]:
    """What the headings of a page are numbered with."""
    return {match[1] for line in headings(text) if (match := NUMBERED.match(line))}


def _normal(path: PurePosixPath) -> PurePosixPath:
    """Without ``..``; what would leave the repository keeps it and is not found."""
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        else:
            parts.append(part)
    return PurePosixPath(*parts)


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])


# --- the repository


def test_every_document_heading_and_decision_that_is_named_is_there() -> None:
    tree = Tree(ROOT)
    numbered = [each for text in tree.files.values() for each in references(text) if each.places]
    assert len(numbered) > 100, "references are written in a form that this test does not know"
    broken = tree.broken()
    assert not broken, "\n".join(broken)


# --- that the test can fail


PAGE = """
# Stripe

## 1. The client
### 1.7 Logs
## 2. Keys

```sh
# 3. no heading
```
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    pages = {
        "docs/providers/stripe.md": PAGE,
        "docs/decisions/0001-one.md": "# 0001 One\n",
        "README.md": "# Read me\n\n## Plans & prices\n",
    }
    for name, text in pages.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "see stripe.md 1.7, 2 and 1.",
        "MOST = 10  # stripe.md 2: at most ten",
        "# The rest (stripe.md\n# 2), and more.",
        "docs/providers/stripe.md and README.md",
        "# decision 0001, and Decisions 0001 and 0001",
        "https://example.com/nowhere.md 7 is not ours",
    ],
)
def test_what_is_there_is_found(small: Path, text: str) -> None:
    (small / "code.py").write_text(text, encoding="utf-8")
    assert Tree(small).broken() == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("see lago.md", "lago.md: no such document"),
        ("see lago.md 5.1", "lago.md: no such document"),
        ("see README.md 2", "README.md: no such document"),
        ("see docs/lago.md", "docs/lago.md: no such document"),
        ("see specs/README.md", "specs/README.md: no such document"),
        ("see ../README.md", "../README.md: no such document"),
        ("see stripe.md 1.9", "stripe.md 1.9: no such heading in docs/providers/stripe.md"),
        ("see stripe.md 1.7, 9", "stripe.md 9: no such heading in docs/providers/stripe.md"),
        ("see stripe.md 1.7 and 9", "stripe.md 9: no such heading in docs/providers/stripe.md"),
        ("see stripe.md 1 to 3", "stripe.md 3: no such heading in docs/providers/stripe.md"),
        ("see (stripe.md\n# 9)", "stripe.md 9: no such heading in docs/providers/stripe.md"),
        ("see stripe.md 2b", "stripe.md 2b: no such heading in docs/providers/stripe.md"),
        ("see stripe.md, head", "stripe.md head: no such heading in docs/providers/stripe.md"),
        ("see stripe.md 2, appendix A", "stripe.md appendix A: no such heading in docs/providers/stripe.md"),
        ("see decision 0002", "decision 0002: no such decision"),
        ("see decisions 0001 and 0002", "decision 0002: no such decision"),
    ],
)
def test_what_is_missing_is_told_with_its_place(small: Path, text: str, told: str) -> None:
    (small / "code.py").write_text(f"\n{text}\n", encoding="utf-8")
    assert Tree(small).broken() == [f"code.py:2 {told}"]


@pytest.mark.parametrize("name", ["code.py", "notes.toml", "ci.yml", "Makefile", "Dockerfile", "words.txt", "a.html"])
def test_every_kind_of_text_is_read(small: Path, name: str) -> None:
    (small / name).write_text("see stripe.md 9\n", encoding="utf-8")
    assert Tree(small).broken() == [f"{name}:1 stripe.md 9: no such heading in docs/providers/stripe.md"]


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("docs/decisions", None),
        ("README.md#plans--prices", None),
        ("#changes", None),
        ("https://example.com/x", None),
        ("docs/nothing", "docs/nothing: no such file"),
        ("README.md#prices", "README.md#prices: no such heading"),
        ("#prices", "#prices: no such heading"),
        ("docs/providers/stripe.md#3-no-heading", "docs/providers/stripe.md#3-no-heading: no such heading"),
    ],
)
def test_a_link_leads_to_a_file_and_a_heading(small: Path, target: str, told: str | None) -> None:
    (small / "CHANGELOG.md").write_text(f"# Changes\n\nSee [it]({target}).\n", encoding="utf-8")
    assert Tree(small).broken() == ([f"CHANGELOG.md:3 {told}"] if told else [])


def test_a_decision_names_another_in_brackets(small: Path) -> None:
    (small / "docs/decisions/0003-three.md").write_text("# 0003\n\nAs before (0001), not (0002).\n", encoding="utf-8")
    assert Tree(small).broken() == ["docs/decisions/0003-three.md:3 decision 0002: no such decision"]


def test_a_range_is_every_number_in_it() -> None:
    assert references("lago.md 1.2 to 1.4, 9") == [Reference(1, "lago.md", ("1.2", "1.3", "1.4", "9"))]

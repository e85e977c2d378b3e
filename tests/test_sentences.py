"""What the product tells a person to type can be typed: each command exists, with these options."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import command_checker

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("core", "providers", "tasks", "api", "worker", "docs")


NOT_TO_BE_TYPED = "## Words we do not use"


def documents() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("core/**/*.toml"))]


def test_every_command_in_a_sentence_of_the_product_can_be_typed() -> None:
    sources = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    named = [
        (path.relative_to(ROOT), sentence)
        for path in sources
        for sentence in command_checker.sentences(path.read_text(encoding="utf-8"))
    ]
    rules = ROOT / "providers" / "transport" / "failures.toml"
    named.append((rules.relative_to(ROOT), rules.read_text(encoding="utf-8")))
    assert sum(len(command_checker.typed_in(sentence)) for _, sentence in named) > 100
    assert [f"{path}: {why}" for path, text in named for why in command_checker.unusable(text)] == []


def test_every_command_in_a_document_can_be_typed() -> None:
    named = [
        (path.relative_to(ROOT), path.read_text(encoding="utf-8").partition(NOT_TO_BE_TYPED)[0]) for path in documents()
    ]
    assert sum(len(command_checker.typed_in(text)) for _, text in named) > 100
    assert [f"{path}: {why}" for path, text in named for why in command_checker.unusable(text)] == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("run `billing-sync resolve ORG --ours`", None),
        ("run `billing-sync set {} --plan …`", None),
        ("run `billing-sync\nset ORG --name NAME`", None),
        ("$ billing-sync keys create signup --scope events:write --scope organizations:read", None),
        ("`billing-sync COMMAND --help`", None),
        ("run `billing-sync set-customer-id {} --{} …`", None),
        ("run `billing-sync set-billing-email ORG`", "there is no command set-billing-email"),
        ("run `billing-sync keys make`", "there is no command make"),
        ("run `billing-sync resolve ORG --mine`", "there is no option --mine"),
        ("run `billing-sync retry ORG ORG`", "it has too many arguments"),
        ("$ billing-sync set ORG --seats 3", "there is no option --seats"),
    ],
)
def test_a_command_that_cannot_be_typed_is_named(text: str, reason: str | None) -> None:
    found = [each.rpartition(": ")[2] for each in command_checker.unusable(text)]
    assert found == ([] if reason is None else [reason])

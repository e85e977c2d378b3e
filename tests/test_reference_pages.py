"""The pages of ``docs/reference`` are those that ``docs/generate.py`` writes from the code."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from docs import generate, log_events

STALE = f"the code has changed: run `{generate.REGENERATE}` and commit docs/reference"
MODULE = "import structlog\nlog = structlog.get_logger()\n"


@pytest.mark.parametrize("name", generate.PAGES)
def test_a_reference_page_is_what_the_code_says(name: str) -> None:
    assert generate.path_of(name).read_text(encoding="utf-8") == generate.PAGES[name](), STALE


def test_no_other_page_is_among_them() -> None:
    in_folder = {path for path in map(generate.path_of, generate.PAGES) if path.parent == generate.FOLDER}
    assert set(generate.FOLDER.iterdir()) == in_folder


def test_a_name_without_a_meaning_is_refused() -> None:
    with pytest.raises(SystemExit, match="meaning of these errors: new"):
        generate.meanings_of("errors", {"old": "An old error."}, ["old", "new"])


@pytest.mark.parametrize(
    ("source", "calls"),
    [
        ('log.info("sent", org_id=1)', [("sent", "info", ["org_id"])]),
        (
            'write = log.info if ok else log.warning\nwrite("sent" if ok else "failed", error=1)',
            [("sent", "info", ["error"]), ("failed", "warning", ["error"])],
        ),
        (
            'write = log.info if ok else log.warning\nwrite("checked")',
            [("checked", "info", []), ("checked", "warning", [])],
        ),
        (
            'def pause(name, seconds):\n    log.error(name, s=1)\npause("broker", 1)\npause("database", 2)',
            [("broker", "error", ["s"]), ("database", "error", ["s"])],
        ),
        ('fields = {"a": 1, "b": 2}\nlog.debug("request", **fields, c=3)', [("request", "debug", ["a", "b", "c"])]),
        ('print("sent")', []),
    ],
)
def test_each_form_of_a_log_call_is_read(source: str, calls: list[log_events.LogCall]) -> None:
    assert log_events.log_calls(MODULE + source, "core/new.py") == calls


@pytest.mark.parametrize(
    "source",
    [
        'log.bind(org_id=1).info("sent")',
        'log.info(f"sent {kind}")',
        "log.info()",
        "log.info(name)",
        'log.info("sent", **fields())',
        'log.info("sent" if ok else name)',
        'send(log.info, "sent")',
    ],
)
def test_a_log_call_of_another_form_is_refused(source: str) -> None:
    with pytest.raises(SystemExit, match=r"core/new\.py:3"):
        log_events.log_calls(MODULE + source, "core/new.py")


def test_the_fields_of_a_log_event_are_those_of_all_its_calls() -> None:
    event = log_events.read_all()["redis_fallback_active"]
    assert set(event.fields) == {"component", "error", "reason"}


def test_the_kind_of_each_problem_is_read() -> None:
    source = 'raise problems.conflict("taken", detail)\nraise ProblemError(HTTPStatus.GONE, "gone", detail)'
    assert generate.named_problems(source, "api/new.py") == [
        ("taken", HTTPStatus.CONFLICT),
        ("gone", HTTPStatus.GONE),
    ]
    with pytest.raises(SystemExit, match=r"api/new\.py:1"):
        generate.named_problems("raise problems.conflict(kind, detail)", "api/new.py")

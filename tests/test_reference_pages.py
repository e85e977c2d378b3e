"""The pages of ``docs/reference`` are those that ``docs/generate.py`` writes from the code."""

from __future__ import annotations

import pytest

from docs import generate

STALE = f"the code has changed: run `{generate.REGENERATE}` and commit docs/reference"


@pytest.mark.parametrize("name", generate.pages())
def test_a_reference_page_is_what_the_code_says(name: str) -> None:
    assert (generate.FOLDER / name).read_text(encoding="utf-8") == generate.pages()[name], STALE


def test_no_other_page_is_among_them() -> None:
    assert {path.name for path in generate.FOLDER.iterdir()} == set(generate.pages())


def test_log_events_are_found_in_each_form_of_the_call() -> None:
    found = generate.log_events()
    assert found["drift_checked"] == {"info", "warning"}
    assert found["broker_away"] == {"warning"}
    assert {"request", "webhook_delivered", "webhook_delivery_failed"} <= set(found)


def test_a_name_without_a_meaning_is_refused() -> None:
    with pytest.raises(SystemExit, match="meaning of these errors: new"):
        generate.meanings_of("errors", {"old": "An old error."}, ["old", "new"])

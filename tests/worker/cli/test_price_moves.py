"""`plans move` and `plans moves`: a list, then exactly that list, with its number said before."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from core.catalog.plans import DEFAULT_PLANS_FILE
from tests.support import console
from tests.support.adoption_harness import AdoptionHarness
from tests.support.former_codes import NEW, give_new_code, sold
from tests.support.sync_world import SyncWorld

CODES: Final = ("plans", "move", "professional", "--from", "professional", "--to", NEW)


def settings_of(world: SyncWorld, folder: Path) -> dict[str, str]:
    harness = AdoptionHarness(world=world, url=world.url)
    harness.close()
    plans_file = folder / "plans.toml"
    text = DEFAULT_PLANS_FILE.read_text(encoding="utf-8")
    former = 'former_codes = { lago = ["professional"], stripe = ["professional_monthly_usd"] }'
    for before, after in (
        ("amount = 4900", "amount = 5400"),
        ('lago_plan_code = "professional"\n', f'lago_plan_code = "{NEW}"\n{former}\n'),
        ('"professional_monthly_usd"\n\n', f'"{NEW}"\n\n'),
    ):
        text = text.replace(before, after, 1)
    plans_file.write_text(text, encoding="utf-8")
    found = harness.environment(folder, plans_file)
    return {name: value for name, value in found.items() if value is not None} | {"COLUMNS": "200"}


def test_a_list_and_then_exactly_that_list(world: SyncWorld, tmp_path: Path) -> None:
    folder = console.prepare(tmp_path)
    sold(world)
    give_new_code(world)
    settings = settings_of(world, folder)
    listed = console.run(folder, *CODES, "--out", "moves.csv", settings=settings)
    assert listed.returncode == 0, listed.stderr
    assert "Acme: 49.00 USD → 54.00 USD each 1 month from" in listed.stdout
    assert "moves.csv lists 1 organization. Nothing was changed." in listed.stdout
    refused = console.run(folder, *CODES, "--out", "moves.csv", settings=settings)
    assert "moves.csv exists already and is never replaced" in refused.stderr
    wrong = console.run(folder, "plans", "move", "--apply", "moves.csv", "--expect", "2", settings=settings)
    assert "1 would be moved, not 2, so nothing was changed" in wrong.stderr
    for said in ("1 applied", "1 applied before"):
        applied = console.run(
            folder, "plans", "move", "--apply", "moves.csv", "--expect", "1", "--yes", settings=settings
        )
        assert applied.returncode == 0, applied.stderr
        assert said in applied.stdout
    assert "scheduled" in console.run(folder, "plans", "moves", settings=settings).stdout
    ended = console.run(folder, "plans", "move", "--withdraw", "moves.csv", "--yes", settings=settings)
    assert "Withdrawn: 1 of 1." in ended.stdout


def test_a_misspelt_code_is_answered_with_those_that_exist(world: SyncWorld, tmp_path: Path) -> None:
    folder = console.prepare(tmp_path)
    ended = console.run(folder, *CODES[:-1], "gold", "--out", "x.csv", settings=settings_of(world, folder))
    assert f"'gold' is no code of professional at Lago, as 'professional' is: Stripe has {NEW}" in ended.stderr

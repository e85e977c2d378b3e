"""The adoption table comes back from a spreadsheet as it was written, or it is refused by line and column."""

from __future__ import annotations

import csv
import io
import json
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.adoption import cells
from core.adoption.columns import FOUND_COLUMNS, HEADER
from core.adoption.row import ADOPTION_ACTIONS, AdoptionAction, AdoptionRow, AdoptionSide
from core.adoption.table import read_table, refuse_unwritable, write_table
from core.adoption.table_csv import write_csv
from core.adoption.table_errors import AdoptionTableError

STRIPE = AdoptionSide(
    customer_id="cus_1",
    subscription_id="sub_1",
    name="=HYPERLINK(1)",
    email="a@example.com",
    price="price_1",
    amount=4900,
    currency="USD",
    interval="month",
    quantity=1,
    coupon="20 % off until 2026-12-24",
    trial_ends_at=datetime(2026, 12, 24, tzinfo=UTC),
    planned="a planned end on 2026-12-31",
    next_at=datetime(2026, 12, 1, 9, 30, tzinfo=UTC),
    has_payment_method=True,
)
LAGO = AdoptionSide(
    customer_id="7d1f",
    external_customer_id="00042",
    subscription_id="9a",
    external_subscription_id="1E5",
    name="Zoë \r\nand sons; Ltd.",
    price="starter",
    amount=None,
    currency="JPY",
    has_payment_method=None,
    payer_id="cus_1",
)
ROW = AdoptionRow(
    org_id="org_1",
    sides={"stripe": STRIPE, "lago": LAGO},
    matched_by="marks",
    plan_tier="starter",
    difference=-1000,
    currency="USD",
    name_source="stripe",
    email_source="ours",
    our_name="'t Hooft",
    our_email=None,
    action="adopt-keep-price",
    reason="a price of its own",
    suggestion=None,
)

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)
awkward = st.sampled_from(
    ["=1+1", "+1", "-1", "@a", "\ta", "\ra", "'a", "''", "007", "1E5", "1-2", "MAR1", "true", "ä;b", 'a"b', "\ufeffx"]
)
optional_text = st.none() | texts | awkward
currencies = st.sampled_from(["USD", "JPY", "KWD", "CLF"])
moments = st.none() | st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@st.composite
def sides(draw: st.DrawFn, *, is_lago: bool) -> AdoptionSide:
    currency = draw(st.none() | currencies)
    return AdoptionSide(
        customer_id=draw(texts | awkward),
        external_customer_id=draw(optional_text) if is_lago else None,
        subscription_id=draw(optional_text),
        external_subscription_id=draw(optional_text) if is_lago else None,
        name=draw(optional_text),
        email=draw(optional_text),
        price=draw(optional_text),
        amount=draw(st.none() | st.integers(0, 10**15)) if currency is not None else None,
        currency=currency,
        interval=draw(optional_text),
        quantity=draw(st.none() | st.integers(0, 10**6)),
        coupon=draw(optional_text),
        trial_ends_at=draw(moments),
        planned=draw(optional_text),
        next_at=draw(moments),
        has_payment_method=draw(st.none() | st.booleans()),
        payer_id=draw(optional_text) if is_lago else None,
    )


@st.composite
def adoption_rows(draw: st.DrawFn) -> AdoptionRow:
    difference = draw(st.none() | st.integers(-(10**12), 10**12))
    return AdoptionRow(
        org_id=draw(st.none() | st.from_regex(r"\Aorg_[a-z0-9]{1,8}\Z")),
        sides={"stripe": draw(sides(is_lago=False)), "lago": draw(sides(is_lago=True))},
        matched_by=draw(optional_text),
        plan_tier=draw(st.none() | st.sampled_from(["starter", "1", "-", "2024-01"])),
        difference=difference,
        currency=draw(currencies) if difference is not None else None,
        name_source=draw(st.sampled_from(["stripe", "lago", "ours"])),
        email_source=draw(st.sampled_from(["stripe", "lago", "ours"])),
        our_name=draw(optional_text),
        our_email=draw(optional_text),
        action=draw(st.sampled_from(["skip", "conflict"])),
        reason=draw(texts),
        suggestion=draw(optional_text),
    )


def refused(path: Path) -> str:
    with pytest.raises(AdoptionTableError) as refusal:
        read_table(path)
    return str(refusal.value).replace(str(path), "FILE")


def resaved(
    path: Path, change: Callable[[list[list[str]]], None], *, delimiter: str = ",", lineterminator: str = "\r\n"
) -> Path:
    """The table as a spreadsheet saves it after a change of its cells."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        found = list(csv.reader(file))
    change(found)
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=lineterminator).writerows(found)
    path.write_bytes(text.getvalue().encode())
    return path


def set_cell(column: str, text: str, line: int = 1) -> Callable[[list[list[str]]], None]:
    def change(found: list[list[str]]) -> None:
        found[line][found[0].index(column)] = text

    return change


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "adopt.csv"
    write_table(path, [ROW])
    return path


@pytest.mark.parametrize("ending", ["csv", "json"])
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(written=st.lists(adoption_rows(), max_size=2))
def test_a_table_reads_back_to_the_rows_that_were_written(
    tmp_path_factory: pytest.TempPathFactory, ending: str, written: list[AdoptionRow]
) -> None:
    path = tmp_path_factory.mktemp("table") / f"adopt.{ending}"
    assert write_table(path, written) == len(written)
    assert read_table(path) == written


@pytest.mark.parametrize("action", ADOPTION_ACTIONS)
def test_every_action_comes_back(tmp_path: Path, action: AdoptionAction) -> None:
    row = replace(ROW, action=action)
    write_table(tmp_path / "adopt.csv", [row])
    assert read_table(tmp_path / "adopt.csv") == [row]


@pytest.mark.parametrize("name", ["adopt.csv", "adopt.json"])
def test_the_file_is_for_its_owner_only(tmp_path: Path, name: str) -> None:
    write_table(tmp_path / name, [ROW])
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_an_existing_file_is_not_replaced(table: Path) -> None:
    before = table.read_bytes()
    with pytest.raises(AdoptionTableError, match="exists already"):
        write_table(table, [])
    with pytest.raises(AdoptionTableError, match="exists already"):
        refuse_unwritable(table)
    assert table.read_bytes() == before


def test_a_file_that_fails_while_it_is_written_is_not_there(tmp_path: Path) -> None:
    def failing() -> list[AdoptionRow]:
        raise OSError(28, "No space left on device")

    with pytest.raises(AdoptionTableError, match="No space left"):
        write_table(tmp_path / "adopt.csv", (row for _ in range(1) for row in failing()))
    assert list(tmp_path.iterdir()) == []


def test_an_ending_that_names_no_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdoptionTableError, match=r"does not end with \.csv or \.json"):
        refuse_unwritable(tmp_path / "adopt.xlsx")


def test_no_cell_begins_like_a_formula_or_is_a_bare_number(table: Path) -> None:
    line = next(csv.reader(io.StringIO(table.read_text(encoding="utf-8-sig").split("\n", 1)[1], newline="")))
    written = dict(zip(HEADER, line, strict=True))
    assert written["stripe_name"] == "'=HYPERLINK(1)"
    assert written["lago_external_customer_id"] == "'00042"
    assert written["lago_external_subscription_id"] == "'1E5"
    assert written["our_name"] == "''t Hooft"
    assert written["stripe_amount"] == "49.00 USD"
    assert written["lago_amount"] == "? JPY"
    assert written["difference"] == "10.00 USD less"
    assert written["stripe_next_at"] == "2026-12-01 09:30:00 UTC"
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in line)


def test_a_spreadsheet_opens_it_as_utf_8(table: Path) -> None:
    assert table.read_bytes().startswith(b"\xef\xbb\xbf")


@pytest.mark.parametrize(
    "dialect", [{"delimiter": ";"}, {"delimiter": "\t"}, {"lineterminator": "\n"}, {"lineterminator": "\r\n"}]
)
def test_what_a_spreadsheet_saves_in_its_own_way_reads_back(table: Path, dialect: dict[str, str]) -> None:
    assert read_table(resaved(table, lambda _: None, **dialect)) == [ROW]


def test_a_first_line_that_names_the_delimiter_and_an_action_with_a_capital_read_back(table: Path) -> None:
    resaved(table, set_cell("action", "Adopt-Keep-Price"), delimiter=";")
    table.write_bytes(b"sep=;\r\n" + table.read_bytes())
    assert read_table(table) == [ROW]
    table.write_bytes(table.read_bytes().replace(b"Adopt-Keep-Price", b"adpot"))
    assert refused(table).startswith("FILE line 3, column action:")


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_ten_errors_are_shown_and_the_number_of_the_others(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"adopt.{ending}"
    rows = [replace(ROW, org_id=None, sides={"stripe": replace(STRIPE, customer_id=f"cus_{n}")}) for n in range(13)]
    write_table(path, [replace(row, name_source="ours") for row in rows])
    lines = refused(path).splitlines()
    assert [line.split(",")[0] for line in lines[:2]] == (
        ["FILE line 2", "FILE line 3"] if ending == "csv" else ["FILE row 1", "FILE row 2"]
    )
    assert (len(lines), lines[-1]) == (11, "and 3 more")


def test_columns_in_another_order_empty_lines_and_empty_columns_do_no_harm(table: Path) -> None:
    def change(found: list[list[str]]) -> None:
        for line in found:
            line.reverse()
            line += ["", ""]
        found.append([""] * len(found[0]))

    assert read_table(resaved(table, change)) == [ROW]


def test_line_ends_in_a_cell_that_a_spreadsheet_writes_anew_do_no_harm(table: Path) -> None:
    lago = replace(LAGO, name="Zoë \nand sons; Ltd.")
    assert read_table(resaved(table, set_cell("lago_name", "Zoë \nand sons; Ltd."))) == [
        replace(ROW, sides={"stripe": STRIPE, "lago": lago})
    ]


def test_apostrophes_that_a_program_drops_do_no_harm(table: Path) -> None:
    def change(found: list[list[str]]) -> None:
        found[1] = [cell.removeprefix("'") for cell in found[1]]

    assert read_table(resaved(table, change)) == [ROW]


def test_an_operator_may_change_what_is_to_be_done_and_leave_rows_out(tmp_path: Path) -> None:
    other = replace(ROW, org_id="org_2", sides={"stripe": replace(STRIPE, customer_id="cus_2")})
    write_table(tmp_path / "adopt.csv", [ROW, other])

    def change(found: list[list[str]]) -> None:
        del found[2]
        set_cell("action", "skip")(found)
        set_cell("org_id", "org_9")(found)
        set_cell("plan_tier", "professional")(found)
        set_cell("name_source", "lago")(found)

    expected = replace(ROW, action="skip", org_id="org_9", plan_tier="professional", name_source="lago")
    assert read_table(resaved(tmp_path / "adopt.csv", change)) == [expected]


@pytest.mark.parametrize("column", FOUND_COLUMNS)
def test_any_other_cell_that_was_changed_is_refused_by_line_and_column(table: Path, column: str) -> None:
    sentence = refused(resaved(table, set_cell(column, "4.9E+01")))
    assert sentence.startswith(f"FILE line 2, column {column}: it is not as it was written (now '4.9E+01')")
    assert "`billing-sync adopt discover`" in sentence


def test_first_columns_that_were_sorted_without_the_others_are_refused(tmp_path: Path) -> None:
    """Each line is whole, and each cell as it was written: only what an operator may change is another row's."""
    other = replace(ROW, org_id="org_2", action="skip", sides={"stripe": replace(STRIPE, customer_id="cus_2")})
    for count in range(2, 7):
        path = tmp_path / f"{count}.csv"
        write_table(path, [ROW, other])

        def exchange(found: list[list[str]], count: int = count) -> None:
            found[1][:count], found[2][:count] = found[2][:count], found[1][:count]

        assert refused(resaved(path, exchange)).startswith(
            "FILE line 2, column row: it does not match the rest of the line, as if some columns were sorted"
        )


def test_a_row_is_named_by_text_that_a_spreadsheet_leaves_alone(tmp_path: Path) -> None:
    rows = [replace(ROW, org_id=None, sides={"stripe": replace(STRIPE, customer_id=f"cus_{n}")}) for n in range(3000)]
    write_table(tmp_path / "adopt.csv", rows)
    with (tmp_path / "adopt.csv").open(encoding="utf-8-sig", newline="") as file:
        names = [line[HEADER.index("row")] for line in list(csv.reader(file))[1:]]
    assert all(name == cells.guarded(cells.unguarded(name)) for name in names)
    assert any(name.startswith("'") for name in names)
    assert len(set(names)) == len(names)


def test_a_line_counts_from_where_its_row_begins(tmp_path: Path) -> None:
    rows = [
        replace(ROW, sides={"lago": replace(LAGO, customer_id=f"c{n}", name="a\nb\nc")}, action="skip") for n in (1, 2)
    ]
    rows = [replace(row, name_source="lago") for row in rows]
    write_table(tmp_path / "adopt.csv", rows)
    assert refused(resaved(tmp_path / "adopt.csv", set_cell("action", "adpot", line=2))).startswith(
        "FILE line 5, column action: 'adpot' is no action; write adopt, adopt-keep-price, change-to-catalog, skip or"
    )


def test_lost_unknown_and_repeated_columns_are_refused(table: Path) -> None:
    def lose(found: list[list[str]]) -> None:
        for line in found:
            del line[HEADER.index("stripe_price")]

    def rename(found: list[list[str]]) -> None:
        found[0].append("notes")
        found[1].append("x")

    def repeat(found: list[list[str]]) -> None:
        for line in found:
            line.append(line[0])

    original = table.read_bytes()
    for change, problem in (
        (lose, "column stripe_price is missing"),
        (rename, "column notes is not one of the table's"),
        (repeat, "column action comes twice"),
    ):
        table.write_bytes(original)
        assert refused(resaved(table, change)).startswith(f"FILE line 1: the {problem}")


def test_a_cut_file_is_refused_wherever_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "adopt.csv"
    text = io.StringIO(newline="")
    write_csv(text, [replace(ROW, sides={"lago": LAGO}, name_source="lago")])
    whole = text.getvalue().removesuffix("\r\n")
    begin = whole.index("\n") + 1
    for end in range(begin + 1, len(whole)):
        path.write_text(whole[:end], encoding="utf-8", newline="")
        assert refused(path).startswith("FILE line 2"), end
    path.write_text(whole, encoding="utf-8", newline="")
    assert len(read_table(path)) == 1


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_refused(table: Path, encoding: str) -> None:
    table.write_bytes(table.read_text(encoding="utf-8-sig").encode(encoding))
    assert refused(table) == "FILE is not UTF-8 text; save it as CSV UTF-8"


@pytest.mark.parametrize(
    ("column", "text", "problem"),
    [
        ("org_id", "acme", "'acme' is no id of an organization"),
        ("name_source", "lgao", "'lgao' is not stripe, lago or ours"),
        ("plan_tier", "", "it is empty, and adopt-keep-price needs a plan"),
        ("check", "", "it was changed"),
    ],
)
def test_what_an_operator_cannot_mean_is_refused_by_column(table: Path, column: str, text: str, problem: str) -> None:
    assert refused(resaved(table, set_cell(column, text))).startswith(f"FILE line 2, column {column}: {problem}")


def test_a_source_without_a_customer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "adopt.csv"
    write_table(path, [replace(ROW, sides={"stripe": STRIPE}, name_source="lago")])
    assert refused(path) == "FILE line 2, column name_source: lago has no customer in this row; write stripe or ours"


def test_an_organization_or_a_customer_in_two_rows_that_would_be_applied_is_refused(tmp_path: Path) -> None:
    other = replace(ROW, sides={"stripe": replace(STRIPE, customer_id="cus_2")})
    for name, rows, problem in (
        ("a.csv", [ROW, other], "line 4, column org_id: org_1 is in line 2, too"),
        ("b.csv", [ROW, replace(ROW, org_id=None)], "line 4, column stripe_customer_id: cus_1 at Stripe is in line 2"),
    ):
        write_table(tmp_path / name, rows)
        assert refused(tmp_path / name).startswith(f"FILE {problem}")
    write_table(tmp_path / "c.csv", [ROW, replace(other, action="skip"), replace(ROW, action="conflict")])
    assert len(read_table(tmp_path / "c.csv")) == 3


def test_a_table_is_refused_whole(tmp_path: Path) -> None:
    write_table(tmp_path / "adopt.csv", [ROW, replace(ROW, action="skip"), replace(ROW, org_id="org_3")])
    with pytest.raises(AdoptionTableError):
        read_table(tmp_path / "adopt.csv")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"action": "adpot"}, "row 1, field action: Input should be"),
        ({"difference": "10.00"}, "row 1, field difference: Input should be a valid integer"),
        ({"notes": "x"}, "row 1: the field notes is not one of the table's"),
        (
            {"sides": {"stripe": {"customer_id": "cus_1"}}},
            "row 1: the field sides.stripe.external_customer_id is missing",
        ),
        ({"sides": {"paddle": {}}}, "row 1: sides.paddle is no provider"),
    ],
)
def test_damaged_json_is_refused_by_row_and_field(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    path = tmp_path / "adopt.json"
    write_table(path, [ROW])
    document = json.loads(path.read_text())
    document["rows"][0] |= change
    path.write_text(json.dumps(document))
    assert refused(path).startswith(f"FILE {problem}")


def test_json_that_was_cut_is_refused_by_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "adopt.json"
    write_table(path, [ROW])
    path.write_text(path.read_text()[:-4])
    assert refused(path).startswith("FILE line 2, column ")


def test_a_missing_table_says_how_it_is_written(tmp_path: Path) -> None:
    assert refused(tmp_path / "adopt.csv").startswith("FILE is not there; `billing-sync adopt discover --out FILE`")


def proposed(number: int, org_id: str | None, action: AdoptionAction = "adopt") -> AdoptionRow:
    side = replace(STRIPE, customer_id=f"cus_{number}")
    return replace(ROW, org_id=org_id, proposed_org_id=org_id, action=action, sides={"stripe": side})


def give_org_ids(*org_ids: str) -> Callable[[list[list[str]]], None]:
    def change(found: list[list[str]]) -> None:
        for line, org_id in enumerate(org_ids, 1):
            set_cell("org_id", org_id, line)(found)

    return change


@pytest.mark.parametrize(
    ("org_ids", "line", "owner"),
    [
        (("org_a", "org_b", "org_c", ""), 2, 3),  # sorted
        (("org_b", "org_c", "org_a", ""), 3, 5),
        (("", "org_b", "org_c", "org_a"), 3, 2),
        (("org_b", "org_b", "org_c", ""), 3, 2),  # copied down
    ],
)
@pytest.mark.parametrize("name", ["adopt.csv", "adopt.json"])
def test_org_ids_that_were_sorted_without_the_other_columns_are_refused(
    tmp_path: Path, org_ids: tuple[str, ...], line: int, owner: int, name: str
) -> None:
    path = tmp_path / name
    write_table(
        path, [proposed(1, "org_b"), proposed(2, "org_a"), proposed(3, None, "skip"), proposed(4, "org_c", "conflict")]
    )
    row, of = f"line {line}", f"line {owner}"
    if name == "adopt.csv":
        resaved(path, give_org_ids(*org_ids))
    else:
        document = json.loads(path.read_text())
        for each, org_id in zip(document["rows"], org_ids, strict=True):
            each["org_id"] = org_id or None
        path.write_text(json.dumps(document))
        row, of = f"row {line - 1}", f"row {owner - 1}"
    sentence = refused(path)
    assert sentence.startswith(f"FILE {row}, column org_id: org_")
    assert f" was proposed for {of}, as if org_id was sorted without the other columns" in sentence


def test_one_org_id_may_be_moved_from_a_row_that_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "adopt.csv"
    write_table(path, [proposed(1, "org_a", "skip"), proposed(2, None), proposed(3, None)])
    rows = read_table(resaved(path, give_org_ids("", "org_a", "org_new")))
    assert [row.org_id for row in rows] == [None, "org_a", "org_new"]

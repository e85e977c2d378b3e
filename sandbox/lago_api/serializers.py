"""Lago's tables (times in seconds, rows by lago_id), and Lago's format of times and lists."""

import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import parse_qsl

from sandbox.http import JsonDocument
from sandbox.lago_api.errors import validation_error
from sandbox.state import SandboxState

DEFAULT_PER_PAGE = 100
CURRENCY_CODES = """
AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD
CAD CDF CHF CLF CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ETB EUR FJD FKP GBP GEL GHS GIP GMD
GNF GTQ GYD HKD HNL HRK HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KRW KWD KYD KZT
LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRO MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR
NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SEK SGD SHP SLL SOS SRD STD SVC
SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VND VUV WST XAF XCD XOF XPF YER ZAR
ZMW
"""
CURRENCIES = frozenset(CURRENCY_CODES.split())
COUNTRY_CODES = """
AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ
CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR
GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP
KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT
MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW
SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ
UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW
"""
COUNTRIES = frozenset(COUNTRY_CODES.split())


@dataclass
class LagoTables:
    state: SandboxState

    def __post_init__(self) -> None:
        store = self.state.store
        self.customers = store.table(
            "lago.customers",
            external_id=lambda row: row["external_id"] if row["deleted_at"] is None else None,
        )
        self.plans = store.table(
            "lago.plans",
            code=lambda row: str(row["code"]) if row.get("parent_id") is None else None,
        )
        self.subscriptions = store.table(
            "lago.subscriptions",
            external_id=lambda row: str(row["external_id"]),
            customer=lambda row: str(row["lago_customer_id"]),
            previous=lambda row: row["previous"],
        )

        self.invoices = store.table("lago.invoices")
        self.applied_coupons = store.table("lago.applied_coupons")

    def emit(self, event_type: str, object_type: str, object_id: str, document: Callable[[], JsonDocument]) -> None:
        """Send a webhook, if an endpoint is set. ``document`` reads the object as it is then."""
        organization = self.state.settings.lago_organization
        self.state.webhooks.send_lago(event_type, object_type, organization, object_id, document)

    def now(self) -> float:
        return self.state.clock.now()

    def find_customer(self, external_id: str) -> JsonDocument | None:
        return next(iter(self.customers.find_by("external_id", external_id)), None)

    def find_plan(self, code: str) -> JsonDocument | None:
        return next(iter(self.plans.find_by("code", code)), None)

    def plan_of(self, subscription: JsonDocument) -> JsonDocument:
        plan = self.plans.get(subscription["plan"])
        assert plan is not None, subscription  # noqa: S101  # plans are never deleted
        return plan


def new_id() -> str:
    return str(uuid.uuid4())


def format_time(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_time_milliseconds(moment: float | None) -> str | None:
    """Of the times that are read, only ``started_at`` and ``payment_dispute_lost_at`` have milliseconds."""
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(field: str, value: object) -> float | None:
    """Raises 422 ``invalid_date``."""
    if value in (None, ""):
        return None
    try:
        parsed = datetime.fromisoformat(str(value))
    except ValueError:
        raise validation_error({field: ["invalid_date"]}) from None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def to_text(value: object) -> str | None:
    """Numbers are accepted and converted to text (lago.md 3.1)."""
    return None if value is None else str(value)


@dataclass(frozen=True)
class LagoQuery:
    """A query string as Rails reads it: ``status[]=a&status[]=b`` is a list, ``status=a`` is not one."""

    pairs: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, query: str) -> "LagoQuery":
        return cls(tuple(parse_qsl(query, keep_blank_values=True, max_num_fields=500)))

    def get(self, name: str) -> str | None:
        return next((value for key, value in reversed(self.pairs) if key == name), None)

    def get_list(self, name: str) -> list[str]:
        return [value for key, value in self.pairs if key == f"{name}[]"]

    def get_number(self, name: str, default: int) -> int:
        value = self.get(name) or ""
        return int(value) if value.isdigit() and int(value) > 0 else default


def paginate(rows: Sequence[JsonDocument], query: LagoQuery) -> tuple[Sequence[JsonDocument], JsonDocument]:
    """The requested page and its ``meta``; an empty list has current_page and total_pages 0."""
    page, per_page = query.get_number("page", 1), query.get_number("per_page", DEFAULT_PER_PAGE)
    pages = math.ceil(len(rows) / per_page)
    meta: JsonDocument = {
        "current_page": page if rows else 0,
        "next_page": page + 1 if page < pages else None,
        "prev_page": page - 1 if rows and page > 1 else None,
        "total_pages": pages,
        "total_count": len(rows),
    }
    return rows[(page - 1) * per_page : page * per_page], meta

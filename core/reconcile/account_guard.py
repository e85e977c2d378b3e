"""Whose account each biller's key belongs to: kept at first use, and nothing is sent with a key of another one.

Ids mean nothing in another account or mode, and a copy of production data must not be able to write where the original
does (money.md 17). A process asks once, at its start. A biller that cannot be asked then is asked before the first
write; its being away stops nobody from starting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.common.clock import Clock
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.providers import BillerStanding
from core.flow_control import circuit_breaker
from core.ports.errors import MisconfiguredError, ParkedError, ProviderError, RejectedError
from core.ports.provider import Biller
from core.ports.spec import Account, Provider
from core.reconcile.attempt import Turn

_KEY: Final[dict[Provider, str]] = {"stripe": "STRIPE_SECRET_KEY", "lago": "LAGO_API_KEY"}
_KIND: Final[dict[Provider, str]] = {"stripe": "account", "lago": "organization"}


class WrongAccountError(MisconfiguredError):
    """The key belongs to another account or mode than this database. The message names both, and four digits of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """What one process knows of its keys; threads share it."""

    database: Database
    billers: Mapping[Provider, Biller]
    clock: Clock
    _ours: dict[Provider, Account] = field(default_factory=dict)

    def confirm(self) -> list[ProviderError]:
        """Ask both billers; returns why one could not be asked. Raises ``WrongAccountError``."""
        return [error for provider in self.billers if (error := self._ask(provider)) is not None]

    def start(self) -> list[ProviderError]:
        """``confirm`` for a process that does the work from now on.

        A key that is found good ends whatever stopped its biller; one that is refused stops it before any organization
        meets that.
        """
        unasked: list[ProviderError] = []
        for provider in self.billers:
            error = self._ask(provider)
            if error is None:
                self._resume(provider)
                continue
            unasked.append(error)
            if isinstance(error, MisconfiguredError):
                with self.database.write() as session:
                    circuit_breaker.failed(session, error, self.clock(), again=False, probing=False)
        return unasked

    def ask(self, provider: Provider) -> Account:
        """Whose key this is now. Raises ``WrongAccountError``, and what the biller raises."""
        ours = self.billers[provider].account()
        self._keep(provider, ours)
        return ours

    def check(self, turn: Turn) -> Account:
        """The account that this turn may write to. Asks the biller only if this process could not ask it before.

        Raises ``WrongAccountError``, ``RejectedError`` for ids of another account, and what the biller raises.
        """
        provider = turn.provider
        ours = self._ours.get(provider)
        if ours is None or turn.standing.account_id is None:
            ours = ours or self._account(provider)
            self._keep(provider, ours)
        elif _differs(turn.standing, ours):
            raise _wrong(provider, turn.standing, ours)
        if turn.link.account_id not in {None, ours.id}:
            message = (
                f"the ids of {turn.organization.id} belong to the {_KIND[provider]} {turn.link.account_id}, "
                f"the key to {ours.id}; give it the ids that it has there with `billing-sync ids`, then retry"
            )
            raise RejectedError(provider, message, "wrong_account")
        return ours

    def _ask(self, provider: Provider) -> ProviderError | None:
        try:
            account = self._account(provider)
        except ProviderError as error:
            return error
        self._keep(provider, account)
        return None

    def _account(self, provider: Provider) -> Account:
        try:
            return self.billers[provider].account()
        except ParkedError as error:
            # No organization's fault, and nothing that a change of its data could mend.
            raise MisconfiguredError(provider, error.message, error.code, error.request_id) from error

    def _resume(self, provider: Provider) -> None:
        # Two transactions: turns take the link's row first and the biller's after it.
        with self.database.write() as session:
            circuit_breaker.resume(session, provider, self.clock())
        with self.database.write() as session:
            circuit_breaker.forget_waits(session, provider, self.clock())

    def _keep(self, provider: Provider, ours: Account) -> None:
        """Store it where none is stored, or where nothing was made in the one that is."""
        with self.database.write() as session:
            kept = session.get_one(BillerStanding, provider, with_for_update=True)
            if kept.account_id is None or (_differs(kept, ours) and not _in_use(session, provider)):
                kept.account_id, kept.livemode = ours.id, ours.livemode
            elif _differs(kept, ours):
                raise _wrong(provider, kept, ours)
            elif kept.livemode is None:
                kept.livemode = ours.livemode
        self._ours[provider] = ours


def _differs(kept: BillerStanding, ours: Account) -> bool:
    modes = {mode for mode in (kept.livemode, ours.livemode) if mode is not None}
    return kept.account_id != ours.id or len(modes) > 1


def _in_use(session: Session, provider: Provider) -> bool:
    """Whether anything of ours is there, or may be."""
    here = select(BillingLink.org_id).where(BillingLink.provider == provider).limit(1)
    made, begun = here.where(BillingLink.customer_id.is_not(None)), here.where(BillingLink.intent.is_not(None))
    return session.scalar(made) is not None or session.scalar(begun) is not None


def _wrong(provider: Provider, kept: BillerStanding, ours: Account) -> WrongAccountError:
    message = (
        f"this database belongs to {_named(provider, kept.account_id, kept.livemode)}, but the key{ours.key_ends} "
        f"in {_KEY[provider]} is of {_named(provider, ours.id, ours.livemode)}: "
        "set a key of the former, or use another database"
    )
    return WrongAccountError(provider, message, "wrong_account")


def _named(provider: Provider, account_id: str | None, livemode: bool | None) -> str:  # noqa: FBT001 - three answers
    mode = {None: "", True: " in live mode", False: " in test mode"}[livemode]
    return f"the {_KIND[provider]} {account_id}{mode}"

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
from core.db.models.providers import ProviderStatus
from core.flow_control import circuit_breaker
from core.ports.errors import MisconfiguredError, ParkedError, ProviderError, RejectedError
from core.ports.provider import BillingProvider
from core.ports.spec import Account, Provider
from core.reconcile.attempt import SyncAttempt

_API_KEY_SETTING: Final[dict[Provider, str]] = {"stripe": "STRIPE_SECRET_KEY", "lago": "LAGO_API_KEY"}
_ACCOUNT_TERM: Final[dict[Provider, str]] = {"stripe": "account", "lago": "organization"}


class WrongAccountError(MisconfiguredError):
    """The key belongs to another account or mode than this database. The message names both, and four digits of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountGuard:
    """What one process knows of its keys; threads share it."""

    database: Database
    providers: Mapping[Provider, BillingProvider]
    clock: Clock
    _accounts: dict[Provider, Account] = field(default_factory=dict)

    def confirm(self) -> list[ProviderError]:
        """Ask both billers; returns why one could not be asked. Raises ``WrongAccountError``."""
        return [error for provider in self.providers if (error := self._confirm_one(provider)) is not None]

    def start(self) -> list[ProviderError]:
        """``confirm`` for a process that does the work from now on.

        A key that is found good ends whatever stopped its biller; one that is refused stops it before any organization
        meets that.
        """
        errors: list[ProviderError] = []
        for provider in self.providers:
            error = self._confirm_one(provider)
            if error is None:
                self._reset_breaker(provider)
                continue
            errors.append(error)
            if isinstance(error, MisconfiguredError):
                with self.database.write() as session:
                    circuit_breaker.record_failure(session, error, self.clock(), is_repeat=False, is_probe=False)
        return errors

    def fetch(self, provider: Provider) -> Account:
        """Whose key this is now. Raises ``WrongAccountError``, and what the biller raises."""
        account = self.providers[provider].fetch_account()
        self._store(provider, account)
        return account

    def verify(self, attempt: SyncAttempt) -> Account:
        """The account that this turn may write to. Asks the biller only if this process could not ask it before.

        Raises ``WrongAccountError``, ``RejectedError`` for ids of another account, and what the biller raises.
        """
        provider = attempt.provider
        account = self._accounts.get(provider)
        if account is None or attempt.provider_status.account_id is None:
            account = account or self._fetch_account(provider)
            self._store(provider, account)
        elif _is_other_account(attempt.provider_status, account):
            raise _wrong_account_error(provider, attempt.provider_status, account)
        if attempt.link.account_id not in {None, account.id}:
            message = (
                f"the ids of {attempt.organization.id} belong to the {_ACCOUNT_TERM[provider]} "
                f"{attempt.link.account_id}, "
                f"the key to {account.id}; give it the ids that it has there with `billing-sync "
                "set-customer-id`, then retry"
            )
            raise RejectedError(provider, message, "wrong_account")
        return account

    def _confirm_one(self, provider: Provider) -> ProviderError | None:
        try:
            account = self._fetch_account(provider)
        except ProviderError as error:
            return error
        self._store(provider, account)
        return None

    def _fetch_account(self, provider: Provider) -> Account:
        try:
            return self.providers[provider].fetch_account()
        except ParkedError as error:
            # No organization's fault, and nothing that a change of its data could mend.
            raise MisconfiguredError(provider, error.message, error.code, error.request_id) from error

    def _reset_breaker(self, provider: Provider) -> None:
        # Two transactions: turns take the link's row first and the biller's after it.
        with self.database.write() as session:
            circuit_breaker.reset(session, provider, self.clock())
        with self.database.write() as session:
            circuit_breaker.clear_backoffs(session, provider, self.clock())

    def _store(self, provider: Provider, account: Account) -> None:
        """Store it where none is stored, or where nothing was made in the one that is."""
        with self.database.write() as session:
            provider_status = session.get_one(ProviderStatus, provider, with_for_update=True)
            if provider_status.account_id is None or (
                _is_other_account(provider_status, account) and not _has_links(session, provider)
            ):
                provider_status.account_id, provider_status.livemode = account.id, account.livemode
            elif _is_other_account(provider_status, account):
                raise _wrong_account_error(provider, provider_status, account)
            elif provider_status.livemode is None:
                provider_status.livemode = account.livemode
        self._accounts[provider] = account


def _is_other_account(provider_status: ProviderStatus, account: Account) -> bool:
    modes = {mode for mode in (provider_status.livemode, account.livemode) if mode is not None}
    return provider_status.account_id != account.id or len(modes) > 1


def _has_links(session: Session, provider: Provider) -> bool:
    """Whether anything of ours is there, or may be."""
    links = select(BillingLink.org_id).where(BillingLink.provider == provider).limit(1)
    with_customer, with_intent = (
        links.where(BillingLink.customer_id.is_not(None)),
        links.where(BillingLink.intent.is_not(None)),
    )
    return session.scalar(with_customer) is not None or session.scalar(with_intent) is not None


def _wrong_account_error(provider: Provider, provider_status: ProviderStatus, account: Account) -> WrongAccountError:
    message = (
        "this database belongs to "
        f"{_describe_account(provider, provider_status.account_id, provider_status.livemode)}, but the "
        f"key{account.key_suffix} "
        f"in {_API_KEY_SETTING[provider]} is of {_describe_account(provider, account.id, account.livemode)}: "
        "set a key of the former, or use another database"
    )
    return WrongAccountError(provider, message, "wrong_account")


def _describe_account(provider: Provider, account_id: str | None, livemode: bool | None) -> str:  # noqa: FBT001 - three answers
    mode = {None: "", True: " in live mode", False: " in test mode"}[livemode]
    return f"the {_ACCOUNT_TERM[provider]} {account_id}{mode}"

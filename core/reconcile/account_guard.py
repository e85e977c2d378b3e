"""Pins each provider's account on first use and refuses API keys of another account.

Ids mean nothing in another account or mode, and a copy of production data must not be able to write where the original
does (money.md 17). A process reads the account once, when it starts. A provider that is down then does not keep the
process from starting: its account is read before the first write.
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
from core.events.event_types import ChangeContext
from core.flow_control import circuit_breaker
from core.ports.errors import MisconfiguredError, ParkedError, ProviderError, RejectedError
from core.ports.provider import BillingProvider
from core.ports.spec import Account, Provider
from core.reconcile import operator_events
from core.reconcile.attempt import SyncAttempt

_API_KEY_SETTING: Final[dict[Provider, str]] = {"stripe": "STRIPE_SECRET_KEY", "lago": "LAGO_API_KEY"}
_ACCOUNT_TERM: Final[dict[Provider, str]] = {"stripe": "account", "lago": "organization"}


class WrongAccountError(MisconfiguredError):
    """The API key belongs to another account or mode than this database.

    The message names both accounts and the last four characters of the key.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountGuard:
    """The accounts of one process's API keys, shared by its threads."""

    database: Database
    providers: Mapping[Provider, BillingProvider]
    clock: Clock
    _accounts: dict[Provider, Account] = field(default_factory=dict)

    def confirm(self) -> list[ProviderError]:
        """Read the account of each provider's key. Returns why one could not be read. Raises ``WrongAccountError``."""
        return [error for provider in self.providers if (error := self._confirm_one(provider)) is not None]

    def start(self) -> list[ProviderError]:
        """``confirm`` for a process that reconciles from now on.

        A valid key closes the provider's circuit breaker. A rejected key opens it before any organization is tried.
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
                    now = self.clock()
                    opened = circuit_breaker.record_failure(session, error, now, is_repeat=False, is_probe=False)
                    operator_events.record_unavailable(ChangeContext(session, now), provider, opened)
        return errors

    def fetch(self, provider: Provider) -> Account:
        """Read and store the account of the key. Raises ``WrongAccountError``, and what the provider raises."""
        account = self.providers[provider].fetch_account()
        self._store(provider, account)
        return account

    def verify(self, attempt: SyncAttempt) -> Account:
        """The account that this attempt may write to. Calls the provider only if this process has not read it yet.

        Raises ``WrongAccountError``, ``RejectedError`` for ids of another account, and what the provider raises.
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
                f"the customer id of {attempt.organization.id} belongs to the {_ACCOUNT_TERM[provider]} "
                f"{attempt.link.account_id}, but the API key belongs to {account.id}: set the id of the customer in "
                f"{account.id} with `billing-sync set-customer-id {attempt.organization.id} --{provider} …`"
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
            # No organization caused this, and a change of its data cannot fix it.
            raise MisconfiguredError(provider, error.message, error.code, error.request_id) from error

    def _reset_breaker(self, provider: Provider) -> None:
        # Two transactions, because attempts lock the link's row first and the provider's row after it.
        with self.database.write() as session:
            circuit_breaker.reset(session, provider, self.clock())
        with self.database.write() as session:
            circuit_breaker.clear_backoffs(session, provider, self.clock())

    def _store(self, provider: Provider, account: Account) -> None:
        """Store the account if none is stored, or if nothing of ours exists in the stored one."""
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
    """Whether anything of ours exists at the provider, or may exist."""
    links = select(BillingLink.org_id).where(BillingLink.provider == provider).limit(1)
    with_customer, with_intent = (
        links.where(BillingLink.customer_id.is_not(None)),
        links.where(BillingLink.intent.is_not(None)),
    )
    return session.scalar(with_customer) is not None or session.scalar(with_intent) is not None


def _wrong_account_error(provider: Provider, provider_status: ProviderStatus, account: Account) -> WrongAccountError:
    pinned = _describe_account(provider, provider_status.account_id, provider_status.livemode)
    message = (
        f"this database belongs to {pinned}, but the API key{account.key_suffix} in {_API_KEY_SETTING[provider]} "
        f"belongs to {_describe_account(provider, account.id, account.livemode)}: "
        f"set a key of {pinned}, or use another database"
    )
    return WrongAccountError(provider, message, "wrong_account")


def _describe_account(provider: Provider, account_id: str | None, livemode: bool | None) -> str:  # noqa: FBT001 - three answers
    mode = {None: "", True: " in live mode", False: " in test mode"}[livemode]
    return f"the {_ACCOUNT_TERM[provider]} {account_id}{mode}"

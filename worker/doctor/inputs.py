"""What the checks are given: the settings, the version, and how to open the database and both providers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core.catalog import plans as plan_catalog
from core.catalog.plans import Catalog, CatalogError
from core.db.database import Database, DatabaseError
from providers.lago.provider import LagoProvider
from providers.stripe.provider import StripeProvider
from worker.config.api import ApiSettings
from worker.config.settings import Settings, SettingsError
from worker.wiring import catalog as catalog_wiring
from worker.wiring.database import connect
from worker.wiring.runtime import open_stripe_and_lago

DOCTOR_CALL_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorInputs:
    """``settings`` have the sandbox of a running `up` as both providers. ``version``: of this program."""

    settings: Settings
    api_settings: ApiSettings | None
    version: str

    @property
    def sqlite_file(self) -> Path | None:
        """The file of the database, ``None`` if it is on a server."""
        return self.settings.sqlite_file

    @property
    def uses_up(self) -> bool:
        """Whether `billing-sync up` does the work: no broker is configured."""
        return self.settings.is_embedded

    @contextmanager
    def open_database(self) -> Iterator[Database]:
        """Makes no file and upgrades nothing. Raises ``DatabaseError`` if there is no database."""
        if self.sqlite_file is not None and not self.sqlite_file.is_file():
            message = "there is no database yet"
            raise DatabaseError(message)
        database = connect(self.settings, pool_size=1)
        try:
            yield database
        finally:
            database.close()

    @contextmanager
    def open_providers(self) -> Iterator[tuple[StripeProvider, LagoProvider]]:
        """For reads only. Raises ``SettingsError`` or ``ValueError`` if the settings of a provider cannot be used."""
        stripe, lago = open_stripe_and_lago(self.settings, self.catalog(), DOCTOR_CALL_SECONDS)
        try:
            yield stripe, lago
        finally:
            stripe.close()
            lago.close()

    def catalog(self) -> Catalog:
        """A catalog that cannot be read must not hide what else is wrong; the check of the prices reports it."""
        try:
            return catalog_wiring.load(self.settings)
        except (CatalogError, SettingsError):
            return plan_catalog.load(plan_catalog.DEFAULT_PLANS_FILE)

"""The plan catalog of a process that calls real providers or our sandbox."""

from __future__ import annotations

from core.catalog import plans as plan_catalog
from core.catalog.plans import Catalog
from worker.config.settings import Settings, SettingsError


def load(settings: Settings) -> Catalog:
    """The configured catalog; the packaged one only for our own sandbox. Raises ``SettingsError``, ``CatalogError``.

    With the keys of a provider, a process that was started in a wrong folder would else charge the packaged prices.
    """
    if settings.plans_file is None and not settings.uses_sandbox and not plan_catalog.WORKING_FOLDER_FILE.exists():
        message = (
            "there is no plans.toml in this folder, and the packaged plans are not used with the keys of a provider: "
            "set PLANS_FILE to your plan catalog, or start in the folder that contains plans.toml"
        )
        raise SettingsError(message)
    return plan_catalog.load(settings.plans_file, settings.charged_by)

"""The tables, by the feature that owns them. Importing this package registers all of them with ``Base``."""

from core.db.base import Base
from core.db.models.access import ApiKey, Invitation, InvitationToken, KeptAnswer, Person
from core.db.models.billing_links import BillingLink
from core.db.models.drift import DriftFinding, DriftPlan, DriftSighting
from core.db.models.email import Mail
from core.db.models.events import Event
from core.db.models.inbox import Hint, ReceivedEvent
from core.db.models.jobs import Job
from core.db.models.organizations import Membership, Organization
from core.db.models.providers import BillerStanding
from core.db.models.webhooks import WebhookDelivery, WebhookEndpoint

__all__ = [
    "ApiKey",
    "Base",
    "BillerStanding",
    "BillingLink",
    "DriftFinding",
    "DriftPlan",
    "DriftSighting",
    "Event",
    "Hint",
    "Invitation",
    "InvitationToken",
    "Job",
    "KeptAnswer",
    "Mail",
    "Membership",
    "Organization",
    "Person",
    "ReceivedEvent",
    "WebhookDelivery",
    "WebhookEndpoint",
]

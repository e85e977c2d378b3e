"""Database tables, one module per feature. Importing this package registers all of them with ``Base``."""

from core.db.base import Base
from core.db.models.access import (
    ApiKey,
    IdempotencyRecord,
    Invitation,
    InvitationToken,
    SentInvitation,
    ServiceAccount,
    User,
)
from core.db.models.adoption import DiscoveryListing, DiscoveryProposal, DiscoveryRecord
from core.db.models.backups import BackupRecord
from core.db.models.billing_links import BillingLink
from core.db.models.drift import DriftFinding, DriftListing, DriftReportRecord
from core.db.models.email import Email
from core.db.models.events import Event
from core.db.models.history import LinkHistory
from core.db.models.inbox import EventSource, ProviderWebhook, ServiceEvent
from core.db.models.jobs import JobLock
from core.db.models.organizations import Membership, Organization
from core.db.models.payments import ExpectedPaymentChanges, PaymentChangeRecord
from core.db.models.price_moves import PriceMove
from core.db.models.processes import ProcessHeartbeat
from core.db.models.providers import ProviderStatus
from core.db.models.schema import SchemaCompatibility
from core.db.models.webhooks import WebhookDelivery, WebhookEndpoint

__all__ = [
    "ApiKey",
    "BackupRecord",
    "Base",
    "BillingLink",
    "DiscoveryListing",
    "DiscoveryProposal",
    "DiscoveryRecord",
    "DriftFinding",
    "DriftListing",
    "DriftReportRecord",
    "Email",
    "Event",
    "EventSource",
    "ExpectedPaymentChanges",
    "IdempotencyRecord",
    "Invitation",
    "InvitationToken",
    "JobLock",
    "LinkHistory",
    "Membership",
    "Organization",
    "PaymentChangeRecord",
    "PriceMove",
    "ProcessHeartbeat",
    "ProviderStatus",
    "ProviderWebhook",
    "SchemaCompatibility",
    "SentInvitation",
    "ServiceAccount",
    "ServiceEvent",
    "User",
    "WebhookDelivery",
    "WebhookEndpoint",
]

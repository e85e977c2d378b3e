"""Lago's list of webhook endpoints: the one that the sandbox sends to, if it is set (lago.md 8)."""

import uuid

from sandbox.http import JsonDocument
from sandbox.lago_api.serializers import LagoQuery, paginate
from sandbox.state import SandboxState


def list_endpoints(state: SandboxState, query: LagoQuery) -> JsonDocument:
    """Lago has no disabled endpoint, so one that is disabled in the sandbox is not listed."""
    endpoint = state.webhooks.endpoints.get("lago")
    rows: list[JsonDocument] = []
    if endpoint is not None and not endpoint.disabled:
        rows.append(
            {
                "lago_id": str(uuid.uuid5(uuid.NAMESPACE_URL, endpoint.url)),
                "lago_organization_id": state.settings.lago_organization,
                "webhook_url": endpoint.url,
                "signature_algo": "hmac",
                "name": None,
                "event_types": None if endpoint.events is None else list(endpoint.events),
                "created_at": "2026-01-01T00:00:00Z",
            }
        )
    page, meta = paginate(rows, query)
    return {"webhook_endpoints": list(page), "meta": meta}

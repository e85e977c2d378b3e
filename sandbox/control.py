"""The sandbox's control routes, for tests and operators. JSON in and out; a bad request is 400 with one sentence.

==========  ===============================  ===============================================================
GET         /sandbox/health                  ``{"ok": true}``
GET         /sandbox/clock                   ``{"now": "2026-11-23T07:00:00+00:00"}``
POST        /sandbox/clock                   ``{"advance": seconds}`` or ``{"set": "ISO time"}``; runs what is due
GET         /sandbox/faults                  the faults that are not used up
POST        /sandbox/faults                  one fault (fields: faults.py); returns ``{"id": n}``
DELETE      /sandbox/faults[/{id}]           all, or one
GET         /sandbox/calls?provider=stripe   the last 20,000 calls, oldest first
DELETE      /sandbox/calls                   clear the calls and the counters
GET         /sandbox/counters                ``{"stripe": {"total", "operations", "statuses"}, "lago": …}``
GET, POST   /sandbox/settings                the settings (settings.py); POST changes those that it names
GET         /sandbox/state                   every object with its ids, the charges, and Stripe's invoices
GET         /sandbox/outline                 both providers without ids and times, to compare two sandboxes
GET, POST   /sandbox/webhooks                endpoints (``{"stripe": {"url", "secret"}}``), the last deliveries
POST        /sandbox/reset                   no objects, real time, default settings
POST        /sandbox/{provider}/{object_type}         create a list of objects by hand (dashboard.py)
PATCH       /sandbox/{provider}/{object_type}/{id}    change one by hand
DELETE      /sandbox/{provider}/{object_type}/{id}    delete one by hand
==========  ===============================  ===============================================================

Object types: ``stripe`` has customers, subscriptions, products, prices and coupons; ``lago`` has customers,
subscriptions, plans and applied_coupons. Lago's ``{id}`` is the external id, or the plan's code. For payments both have
``invoices``, and ``lago`` also has ``payer_errors`` and ``payers`` (stripe_api/payments.py, lago_api/invoices.py).
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from sandbox import snapshot
from sandbox.clock import utc_datetime
from sandbox.dashboard import DashboardActor
from sandbox.http import InvalidControlRequestError, JsonDocument
from sandbox.lago_api.errors import LagoApiError
from sandbox.lago_api.provider import LagoApi
from sandbox.state import SandboxState
from sandbox.stripe_api.errors import StripeApiError
from sandbox.stripe_api.provider import StripeApi

MAX_CLOCK_ADVANCE_SECONDS = 10 * 366 * 24 * 3600.0
ControlHandler = Callable[[Request, JsonDocument | list[JsonDocument]], object]


class _ControlApp:
    def __init__(self, state: SandboxState, stripe: StripeApi, lago: LagoApi) -> None:
        self._state = state
        self._stripe = stripe
        self._lago = lago
        self._dashboard = DashboardActor(stripe, lago)

    def app(self) -> ASGIApp:
        return Starlette(
            routes=[
                self._route("/health", GET=lambda _request, _body: {"ok": True}),
                self._route("/clock", GET=self._clock, POST=self._set_clock),
                self._route("/faults", GET=self._faults, POST=self._add_fault, DELETE=self._clear_faults),
                self._route("/faults/{id:int}", DELETE=self._remove_fault),
                self._route("/calls", GET=self._calls, DELETE=self._clear_calls),
                self._route("/counters", GET=lambda _request, _body: self._state.calls.counters()),
                self._route("/settings", GET=self._settings, POST=self._change_settings),
                self._route("/state", GET=lambda *_: snapshot.full(self._state, self._stripe, self._lago)),
                self._route("/outline", GET=lambda *_: snapshot.summary(self._stripe, self._lago)),
                self._route("/webhooks", GET=self._webhooks, POST=self._set_webhooks),
                self._route("/reset", POST=self._reset),
                self._route("/{provider}/{object_type}", POST=self._create),
                self._route("/{provider}/{object_type}/{id:path}", PATCH=self._patch, DELETE=self._delete),
            ]
        )

    def _route(self, path: str, **handlers: ControlHandler) -> Route:
        async def endpoint(request: Request) -> JSONResponse:
            try:
                body = json.loads(await request.body() or b"{}")
                self._state.tick()
                result = handlers[request.method](request, body)
            except StripeApiError as error:
                return _bad_request(error.message)
            except LagoApiError as error:
                return _bad_request(json.dumps(error.body))
            except KeyError as error:
                return _bad_request(f"{error} is missing, or cannot be created, changed or deleted by hand.")
            except InvalidControlRequestError as error:
                return _bad_request(error.message)
            except ValueError as error:  # not JSON, or not a time
                return _bad_request(str(error))
            finally:
                self._state.store.commit()
            return JSONResponse(result)

        return Route(f"/sandbox{path}", endpoint, methods=list(handlers))

    def _clock(self, _request: Request, _body: JsonDocument | list[JsonDocument]) -> JsonDocument:
        self._state.tick()
        return {"now": utc_datetime(self._state.clock.now()).isoformat()}

    def _set_clock(self, request: Request, body: JsonDocument | list[JsonDocument]) -> JsonDocument:
        fields = _json_object(body)
        clock = self._state.clock
        if isinstance(seconds := fields.get("advance"), int | float) and 0 <= seconds <= MAX_CLOCK_ADVANCE_SECONDS:
            clock.set(clock.now() + seconds)
        elif isinstance(text := fields.get("set"), str):
            moment = datetime.fromisoformat(text)
            clock.set((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
        else:
            raise InvalidControlRequestError(
                "clock", "Send 'advance' with seconds (0 to ten years) or 'set' with an ISO time."
            )
        self._state.save()
        return self._clock(request, body)

    def _faults(self, _request: Request, _body: JsonDocument | list[JsonDocument]) -> list[JsonDocument]:
        return [asdict(fault) for fault in self._state.faults.pending()]

    def _add_fault(self, _request: Request, body: JsonDocument | list[JsonDocument]) -> JsonDocument:
        return {"id": self._state.faults.add(_json_object(body))}

    def _clear_faults(self, _request: Request, _body: JsonDocument | list[JsonDocument]) -> JsonDocument:
        self._state.faults.clear()
        return {}

    def _remove_fault(self, request: Request, _body: JsonDocument | list[JsonDocument]) -> JsonDocument:
        return {"removed": self._state.faults.remove(request.path_params["id"])}

    def _calls(self, request: Request, _body: JsonDocument | list[JsonDocument]) -> list[JsonDocument]:
        return self._state.calls.calls(request.query_params.get("provider"))

    def _clear_calls(self, _request: Request, _body: JsonDocument | list[JsonDocument]) -> JsonDocument:
        self._state.calls.clear()
        return {}

    def _settings(self, _request: Request, _body: JsonDocument | list[JsonDocument]) -> JsonDocument:
        return self._state.settings.document()

    def _change_settings(self, _request: Request, body: JsonDocument | list[JsonDocument]) -> JsonDocument:
        self._state.settings.update(_json_object(body))
        self._state.save()
        return self._state.settings.document()

    def _webhooks(self, _request: Request, _body: JsonDocument | list[JsonDocument]) -> JsonDocument:
        return self._state.webhooks.document()

    def _set_webhooks(self, _request: Request, body: JsonDocument | list[JsonDocument]) -> JsonDocument:
        self._state.set_webhooks(_json_object(body))
        return self._state.webhooks.document()

    def _reset(self, _request: Request, _body: JsonDocument | list[JsonDocument]) -> JsonDocument:
        self._state.reset()
        self._stripe.reset_limits()
        self._lago.reset_limits()
        return {}

    def _create(self, request: Request, body: JsonDocument | list[JsonDocument]) -> list[JsonDocument]:
        return self._dashboard.create(_object_type(request), body if isinstance(body, list) else [body])

    def _patch(self, request: Request, body: JsonDocument | list[JsonDocument]) -> JsonDocument:
        return self._dashboard.patch(_object_type(request), request.path_params["id"], _json_object(body))

    def _delete(self, request: Request, _body: JsonDocument | list[JsonDocument]) -> JsonDocument:
        return self._dashboard.delete(_object_type(request), request.path_params["id"])


def control_app(state: SandboxState, stripe: StripeApi, lago: LagoApi) -> ASGIApp:
    return _ControlApp(state, stripe, lago).app()


def _bad_request(message: str) -> JSONResponse:
    return JSONResponse({"error": message}, 400)


def _object_type(request: Request) -> str:
    return f"{request.path_params['provider']} {request.path_params['object_type']}"


def _json_object(body: JsonDocument | list[JsonDocument]) -> JsonDocument:
    if not isinstance(body, dict):
        raise InvalidControlRequestError("body", "Send one JSON object.")  # becomes a 400
    return body

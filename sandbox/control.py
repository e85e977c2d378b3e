"""The sandbox's own routes: what a test or a person turns. JSON in and out; a bad request is 400 with one sentence.

==========  ===============================  ===============================================================
GET         /sandbox/health                  ``{"ok": true}``
GET         /sandbox/clock                   ``{"now": "2026-11-23T07:00:00+00:00"}``
POST        /sandbox/clock                   ``{"advance": seconds}`` or ``{"set": "ISO time"}``: what is due happens
GET         /sandbox/faults                  the faults still waiting
POST        /sandbox/faults                  one fault (fields: faults.py); answers ``{"id": n}``
DELETE      /sandbox/faults[/{id}]           all, or one
GET         /sandbox/calls?provider=stripe   the last 20,000 calls, oldest first
DELETE      /sandbox/calls                   forget them and the counters
GET         /sandbox/counters                ``{"stripe": {"total", "operations", "statuses"}, "lago": …}``
GET, POST   /sandbox/settings                settings.py; POST changes those named
GET         /sandbox/state                   every object with its ids, and the charges
GET         /sandbox/outline                 both billers without ids and times, comparable between worlds
GET, POST   /sandbox/webhooks                endpoints (``{"stripe": {"url", "secret"}}``), the last deliveries
POST        /sandbox/reset                   an empty world, real time, default settings
POST        /sandbox/{biller}/{noun}         a list of objects made by hand (hand.py)
PATCH       /sandbox/{biller}/{noun}/{id}    changed by hand
DELETE      /sandbox/{biller}/{noun}/{id}    deleted by hand
==========  ===============================  ===============================================================

Billers and nouns: ``stripe`` customers, subscriptions, products, prices; ``lago`` customers, subscriptions, plans.
Lago's ``{id}`` is the external id, or the plan's code. For payments: ``invoices`` of both, ``payer_errors`` and
``payers`` of ``lago`` (stripe_api/payments.py, lago_api/invoices.py).
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
from sandbox.clock import utc
from sandbox.dashboard import Hand
from sandbox.http import Doc, WrongRequestError
from sandbox.lago_api.errors import Refusal as LagoRefusal
from sandbox.lago_api.provider import Lago
from sandbox.state import World
from sandbox.stripe_api.errors import Refusal as StripeRefusal
from sandbox.stripe_api.provider import Stripe

LONGEST_ADVANCE = 10 * 366 * 24 * 3600.0
Handler = Callable[[Request, Doc | list[Doc]], object]


class _Control:
    def __init__(self, world: World, stripe: Stripe, lago: Lago) -> None:
        self._world = world
        self._stripe = stripe
        self._lago = lago
        self._hand = Hand(stripe, lago)

    def app(self) -> ASGIApp:
        return Starlette(
            routes=[
                self._route("/health", GET=lambda _request, _body: {"ok": True}),
                self._route("/clock", GET=self._clock, POST=self._move_clock),
                self._route("/faults", GET=self._faults, POST=self._add_fault, DELETE=self._clear_faults),
                self._route("/faults/{id:int}", DELETE=self._remove_fault),
                self._route("/calls", GET=self._calls, DELETE=self._clear_calls),
                self._route("/counters", GET=lambda _request, _body: self._world.calls.counters()),
                self._route("/settings", GET=self._settings, POST=self._change_settings),
                self._route("/state", GET=lambda *_: snapshot.state(self._world, self._stripe, self._lago)),
                self._route("/outline", GET=lambda *_: snapshot.outline(self._stripe, self._lago)),
                self._route("/webhooks", GET=self._webhooks, POST=self._set_webhooks),
                self._route("/reset", POST=self._reset),
                self._route("/{biller}/{noun}", POST=self._make),
                self._route("/{biller}/{noun}/{id:path}", PATCH=self._patch, DELETE=self._delete),
            ]
        )

    def _route(self, path: str, **handlers: Handler) -> Route:
        async def endpoint(request: Request) -> JSONResponse:
            try:
                body = json.loads(await request.body() or b"{}")
                self._world.tick()
                answer = handlers[request.method](request, body)
            except StripeRefusal as refusal:
                return _refused(refusal.message)
            except LagoRefusal as refusal:
                return _refused(json.dumps(refusal.body))
            except KeyError as error:
                return _refused(f"{error} is missing or cannot be made, changed or deleted by hand.")
            except WrongRequestError as error:
                return _refused(error.sentence)
            except ValueError as error:  # not JSON, or not a time
                return _refused(str(error))
            finally:
                self._world.store.commit()
            return JSONResponse(answer)

        return Route(f"/sandbox{path}", endpoint, methods=list(handlers))

    def _clock(self, _request: Request, _body: Doc | list[Doc]) -> Doc:
        self._world.tick()
        return {"now": utc(self._world.clock.now()).isoformat()}

    def _move_clock(self, request: Request, body: Doc | list[Doc]) -> Doc:
        fields = _object(body)
        clock = self._world.clock
        if isinstance(seconds := fields.get("advance"), int | float) and 0 <= seconds <= LONGEST_ADVANCE:
            clock.set(clock.now() + seconds)
        elif isinstance(text := fields.get("set"), str):
            moment = datetime.fromisoformat(text)
            clock.set((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
        else:
            raise WrongRequestError("clock", "Send 'advance' with seconds (0 to ten years) or 'set' with an ISO time.")
        self._world.keep()
        return self._clock(request, body)

    def _faults(self, _request: Request, _body: Doc | list[Doc]) -> list[Doc]:
        return [asdict(fault) for fault in self._world.faults.waiting()]

    def _add_fault(self, _request: Request, body: Doc | list[Doc]) -> Doc:
        return {"id": self._world.faults.add(_object(body))}

    def _clear_faults(self, _request: Request, _body: Doc | list[Doc]) -> Doc:
        self._world.faults.clear()
        return {}

    def _remove_fault(self, request: Request, _body: Doc | list[Doc]) -> Doc:
        return {"removed": self._world.faults.remove(request.path_params["id"])}

    def _calls(self, request: Request, _body: Doc | list[Doc]) -> list[Doc]:
        return self._world.calls.calls(request.query_params.get("provider"))

    def _clear_calls(self, _request: Request, _body: Doc | list[Doc]) -> Doc:
        self._world.calls.clear()
        return {}

    def _settings(self, _request: Request, _body: Doc | list[Doc]) -> Doc:
        return self._world.settings.document()

    def _change_settings(self, _request: Request, body: Doc | list[Doc]) -> Doc:
        self._world.settings.change(_object(body))
        self._world.keep()
        return self._world.settings.document()

    def _webhooks(self, _request: Request, _body: Doc | list[Doc]) -> Doc:
        return self._world.webhooks.document()

    def _set_webhooks(self, _request: Request, body: Doc | list[Doc]) -> Doc:
        self._world.set_webhooks(_object(body))
        return self._world.webhooks.document()

    def _reset(self, _request: Request, _body: Doc | list[Doc]) -> Doc:
        self._world.reset()
        self._stripe.refill()
        self._lago.refill()
        return {}

    def _make(self, request: Request, body: Doc | list[Doc]) -> list[Doc]:
        return self._hand.make(_noun(request), body if isinstance(body, list) else [body])

    def _patch(self, request: Request, body: Doc | list[Doc]) -> Doc:
        return self._hand.patch(_noun(request), request.path_params["id"], _object(body))

    def _delete(self, request: Request, _body: Doc | list[Doc]) -> Doc:
        return self._hand.delete(_noun(request), request.path_params["id"])


def control_app(world: World, stripe: Stripe, lago: Lago) -> ASGIApp:
    return _Control(world, stripe, lago).app()


def _refused(sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, 400)


def _noun(request: Request) -> str:
    return f"{request.path_params['biller']} {request.path_params['noun']}"


def _object(body: Doc | list[Doc]) -> Doc:
    if not isinstance(body, dict):
        raise WrongRequestError("body", "Send one JSON object.")  # answered as a 400
    return body

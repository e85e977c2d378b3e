"""Check of requests to Stripe: form-encoded, with bracketed keys and every nested object closed (stripe.md 1.6, 8)."""

import functools

from jsonschema import Draft202012Validator

from tests.contract.documents import Object, array, obj, stripe_document
from tests.contract.forms import bracketed, typed
from tests.contract.operations import Operations, Parts, WireRequest, query_schema
from tests.contract.schemas import NOTHING, faults
from tests.contract.stripe_overlay import OVERLAY

FORM = "application/x-www-form-urlencoded"


def stripe_violations(request: WireRequest) -> list[str]:
    """What the document and ``stripe_overlay`` do not allow in the request."""
    operation = operations().find(request.method, request.path)
    if operation is None:
        return ["the document has no such operation"]
    if request.method != "POST":
        misplaced = ["parameters of this method belong in the query string, not in a body"] if request.body else []
        return misplaced + _form_faults(request.query, operation.query, operation.query_check)
    misplaced = ["parameters of a POST belong in the body, not in the query string"] if request.query else []
    if request.body and request.media_type != FORM:
        return [*misplaced, f"the body must be {FORM}, not '{request.content_type}'"]
    try:
        form = request.body.decode("ascii")
    except UnicodeDecodeError:
        return [*misplaced, "the body is not percent-encoded"]
    return misplaced + _form_faults(form, operation.body or NOTHING, operation.body_check)


def _form_faults(form: str, schema: Object, check: Draft202012Validator) -> list[str]:
    try:
        tree = bracketed(form)
    except ValueError as error:
        return [str(error)]
    return faults(check, typed(tree, schema))


@functools.cache
def operations() -> Operations:
    document = stripe_document()
    described = {
        (method.upper(), path): _parts(method, obj(operation))
        for path, methods in obj(document["paths"]).items()
        for method, operation in obj(methods).items()
    }
    return Operations(described, document, OVERLAY)


def _parts(method: str, operation: Object) -> Parts:
    form = obj(obj(obj(operation["requestBody"])["content"])[FORM])["schema"] if "requestBody" in operation else NOTHING
    match method:
        case "post":
            return {"query": NOTHING, "body": form}
        case "delete":
            # The document declares a body; stripe-python sends the same parameters in the query string (stripe.md 6).
            return {"query": form}
    return {"query": query_schema([obj(one) for one in array(operation.get("parameters", []))])}

"""Check of answers: what each status of an operation may return, by the provider's document.

What differs on purpose, and what a document has wrong, is in ``answer_differences``, each with a reason.
"""

import functools
import json
from typing import Literal, TypeAlias

from tests.contract.answer_differences import DIFFERENCES
from tests.contract.documents import Json, Object, lago_document, obj, stripe_document
from tests.contract.lago_requests import BASE
from tests.contract.operations import DocumentedPaths, Key
from tests.contract.shapes import AnswerFault, Check, Shapes

JSON = "application/json"
METHODS = ("get", "post", "put", "patch", "delete")

Provider: TypeAlias = Literal["stripe", "lago"]


class Answers:
    """The answers of one document, each compiled at its first use."""

    def __init__(self, document: Object, base: str) -> None:
        self._document = document
        self._shapes = Shapes(document)
        self._operations = {
            (method.upper(), base + path): obj(operation)
            for path, item in obj(document["paths"]).items()
            for method, operation in obj(item).items()
            if method in METHODS
        }
        self._paths = DocumentedPaths(self._operations)
        self._compiled: dict[tuple[Key, int], Check] = {}

    def faults(self, method: str, path: str, status: int, body: bytes) -> list[AnswerFault]:
        """An operation that the document lacks has no faults here: the check of requests names it."""
        key = self._paths.find(method, path)
        if key is None:
            return []
        try:
            value: Json = json.loads(body)
        except ValueError:
            return [AnswerFault(f"status {status}", "the body is not JSON")]
        found: list[AnswerFault] = []
        self._check(key, status)(value, f"{key[0]} {key[1]} {status}", found)
        if isinstance(value, dict):
            self._check_events(value, found)
        return found

    def _check(self, key: Key, status: int) -> Check:
        if (key, status) not in self._compiled:
            self._compiled[key, status] = self._compile(key, status)
        return self._compiled[key, status]

    def _compile(self, key: Key, status: int) -> Check:
        responses = obj(self._operations[key]["responses"])
        response = responses.get(str(status), responses.get("default"))
        if response is None:
            return _undocumented(status)
        if reference := obj(response).get("$ref"):
            name = str(reference).rpartition("/")[2]
            response = obj(obj(self._document["components"])["responses"])[name]
        return self._shapes.compiled(obj(obj(obj(obj(response)["content"])[JSON])["schema"]))

    def _check_events(self, value: Object, found: list[AnswerFault]) -> None:
        """The object inside an event of Stripe: the document allows any there, but it is the object itself."""
        events = value["data"] if value.get("object") == "list" else [value]
        for event in events if isinstance(events, list) else []:
            if isinstance(event, dict) and event.get("object") == "event":
                inside = obj(obj(event["data"])["object"])
                name = str(inside["object"])
                if self._shapes.has(name):
                    self._shapes.named(name)(inside, name, found)


def answer_faults(provider: Provider, method: str, path: str, status: int, body: bytes) -> list[AnswerFault]:
    """All faults of one answer, those that ``answer_differences`` lists included."""
    return answers(provider).faults(method, path, status, body)


def answer_violations(provider: Provider, method: str, path: str, status: int, body: bytes) -> list[str]:
    """The faults that ``answer_differences`` does not list, one sentence each."""
    listed = _listed(provider)
    found = [fault for fault in answer_faults(provider, method, path, status, body) if fault not in listed]
    return [f"{provider} {method} {path} answered {status}: {fault}" for fault in dict.fromkeys(found)]


@functools.cache
def answers(provider: Provider) -> Answers:
    return Answers(stripe_document(), "") if provider == "stripe" else Answers(lago_document(), BASE)


@functools.cache
def _listed(provider: Provider) -> frozenset[AnswerFault]:
    return frozenset(AnswerFault(one.place, one.problem) for one in DIFFERENCES[provider])


def _undocumented(status: int) -> Check:
    def check(_value: Json, _place: str, found: list[AnswerFault]) -> None:
        found.append(AnswerFault(f"status {status}", "not in the document"))

    return check

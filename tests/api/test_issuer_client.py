"""What is wrong with a sign-in service is named, with the way out; its calls end, and its keys are fetched once."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from api.issuer_client import (
    DISCOVERY_PATH,
    ISSUER_TIMEOUT_SECONDS,
    IssuerClient,
    IssuerSettings,
    IssuerUnavailableError,
)
from api.oidc import MAX_CODES_SENT_AT_ONCE, MIN_JWKS_FETCH_INTERVAL_SECONDS, InvalidTokenError, Issuer
from core.access.users import UserProfile
from tests.support.certificates import self_signed
from tests.support.oidc_provider import AUDIENCE, CLIENT_ID, CLIENT_SECRET, Key, OidcProvider

ENOUGH_SECONDS = ISSUER_TIMEOUT_SECONDS + 2
OUTER = "https://id.acme.test/realms/acme"
Break = Callable[[OidcProvider], object]


@pytest.fixture
def own_provider() -> Iterator[OidcProvider]:
    with OidcProvider() as running:
        yield running


@pytest.fixture
def proxied_provider() -> Iterator[OidcProvider]:
    """It names itself and its endpoints by an address that nothing answers; only the inner one is reached."""
    with OidcProvider(named=OUTER) as running:
        yield running


def settings_of(provider: OidcProvider) -> IssuerSettings:
    return IssuerSettings(
        issuer=provider.issuer, audience=AUDIENCE, client_id=CLIENT_ID, client_secret=SecretStr(CLIENT_SECRET)
    )


def problem_of(settings: IssuerSettings) -> IssuerUnavailableError:
    with pytest.raises(IssuerUnavailableError) as caught:
        asyncio.run(IssuerClient(settings).fetch())
    return caught.value


def fetches(provider: OidcProvider) -> int:
    return sum(path.endswith(DISCOVERY_PATH) for path in provider.asked)


async def outcome(issuer: Issuer, token: str) -> tuple[UserProfile | type[Exception], float]:
    """What a request with this token gets, and after how many seconds."""
    began = time.monotonic()
    await issuer.prepare(token)
    try:
        result: UserProfile | type[Exception] = issuer.verify_access_token(token)
    except (InvalidTokenError, IssuerUnavailableError) as error:
        result = type(error)
    return result, time.monotonic() - began


def document(**parts: Any) -> Break:  # noqa: ANN401 - any JSON
    return lambda provider: provider.document.update(parts)


def redirects(provider: OidcProvider) -> None:
    provider.redirects_to = "https://operator:secret@id.acme.test/realms/acme/?session=secret"


def redirects_without_scheme(provider: OidcProvider) -> None:
    provider.redirects_to = "//operator:secret@id.acme.test/"


def signs_with_another_algorithm(provider: OidcProvider) -> None:
    provider.keys[0].algorithm = "RS512"


@pytest.mark.parametrize(
    ("broken", "problem", "said"),
    [
        (lambda provider: setattr(provider, "away", True), "unreachable", "answers 503"),
        (redirects, "redirected", "redirects to https://id.acme.test/realms/acme/ (302)"),
        (redirects_without_scheme, "redirected", "redirects to //id.acme.test/ (302)"),
        (signs_with_another_algorithm, "no_key", "no key for OIDC_ALGORITHM=RS256, only for RS512"),
        (lambda provider: provider.keys.clear(), "no_key", "no key for OIDC_ALGORITHM=RS256, and no other"),
        (document(jwks_uri=None), "no_discovery", "it has no valid jwks_uri"),
        (
            document(jwks_uri=None, token_endpoint="file:///x"),
            "no_discovery",
            "no valid jwks_uri, token_endpoint",
        ),
        (
            document(jwks_uri="http://[", token_endpoint="file:///x"),
            "unusable_address",
            "names an address that cannot be used: jwks_uri http://[, token_endpoint file:///x",
        ),
        (lambda provider: setattr(provider, "redirects_to", "https://xn--/"), "unreachable", "does not respond (IDNA"),
        (document(issuer=""), "wrong_issuer", "names the issuer , and OIDC_ISSUER is http://127"),
        (document(issuer="\x1b[2Jx"), "wrong_issuer", "names the issuer \\u001b[2Jx, and OIDC_ISSUER is http://127"),
        (document(jwks_uri="http://127.0.0.1:9/keys"), "unreachable", "http://127.0.0.1:9/keys refuses the connection"),
        (document(jwks_uri="https://no.such.host.invalid/"), "unreachable", "a host name that cannot be resolved"),
    ],
)
def test_what_is_wrong_with_the_service_is_named(
    own_provider: OidcProvider, broken: Break, problem: str, said: str
) -> None:
    broken(own_provider)
    error = problem_of(settings_of(own_provider))
    assert error.problem == problem
    assert said in error.message
    assert "OIDC_" in error.advice
    assert "secret" not in str(error)


UNUSABLE = [
    "http://127.0.0.1:99999/k",
    "http://127.0.0.1:-1/k",
    "http://127.0.0.1:0/k",
    "http://xn--/k",
    "http://127.0.0.1:9/\ud800",
    "http://127.0.0.1:9/é",
    "http://127.0.0.1:9/a b",
    "http://127.0.0.1:9/a\nb",
    "http://\ud800/k",
    "http://user:pässword@127.0.0.1:9/",
    "http:///k",
    "http://256.1.1.1/k",
    "/keys",
]


@pytest.mark.parametrize("field", ["jwks_uri", "token_endpoint", "authorization_endpoint"])
@pytest.mark.parametrize("address", UNUSABLE, ids=ascii)
def test_an_address_that_cannot_be_used_is_named(own_provider: OidcProvider, field: str, address: str) -> None:
    own_provider.document[field] = address
    error = problem_of(settings_of(own_provider))
    assert error.problem == "unusable_address"
    assert f"names an address that cannot be used: {field} " in error.message
    assert error.message.isascii()
    assert "ssword" not in error.message


def test_an_address_with_a_name_of_another_alphabet_can_be_used(own_provider: OidcProvider) -> None:
    own_provider.document["authorization_endpoint"] = "https://anmeldung.münchen.test/authorize?tenant=a%20b"
    metadata, _ = asyncio.run(IssuerClient(settings_of(own_provider)).fetch())
    assert metadata.authorization_endpoint == own_provider.document["authorization_endpoint"]


@pytest.mark.parametrize("field", ["jwks_uri", "token_endpoint"])
@pytest.mark.parametrize(
    "address", ["http://id.acme.test/x", "HTTP://ID.acme.test/x", "http://8.8.8.8/x", "http://[2606:4700::1111]/x"]
)
def test_http_addresses_of_another_network_are_refused(own_provider: OidcProvider, field: str, address: str) -> None:
    own_provider.document[field] = address
    error = problem_of(settings_of(own_provider))
    assert error.problem == "unencrypted"
    assert f"names an http:// address of another network: {field} {address}" in error.message
    assert "Keycloak: `proxy-headers` and `hostname`" in error.advice


def test_no_secret_is_sent_to_an_http_address_of_another_network(own_provider: OidcProvider) -> None:
    own_provider.document["token_endpoint"] = "http://id.acme.test/token"
    with pytest.raises(IssuerUnavailableError) as caught:
        asyncio.run(Issuer(settings_of(own_provider)).exchange_code({"code": "x"}))
    assert caught.value.problem == "unencrypted"


@pytest.mark.parametrize("host", ["10.1.2.3", "keycloak:8080", "[fd00::1]:8080", "keycloak.internal", "localhost"])
def test_http_addresses_of_the_own_network_are_accepted(own_provider: OidcProvider, host: str) -> None:
    own_provider.document["token_endpoint"] = f"http://{host}/token"
    metadata, _ = asyncio.run(IssuerClient(settings_of(own_provider)).fetch())
    assert metadata.token_endpoint == f"http://{host}/token"


def test_an_outer_http_address_is_refused_after_the_inner_ones_are_put_in(proxied_provider: OidcProvider) -> None:
    """Keycloak behind a proxy whose headers it does not read: only https addresses are replaced."""
    settings = IssuerSettings(issuer=OUTER, audience=AUDIENCE, internal_url=proxied_provider.address)
    asyncio.run(IssuerClient(settings).fetch())  # https://id.acme.test/… becomes the inner address
    proxied_provider.document["jwks_uri"] = f"{OUTER.replace('https:', 'http:')}/keys"
    assert problem_of(settings).problem == "unencrypted"


@dataclass(frozen=True, kw_only=True)
class MovingSettings(IssuerSettings):
    """Later, the discovery document has an address on which httpx fails with no error of its own."""

    fetched: list[str] = field(default_factory=list)

    @property
    def discovery_url(self) -> str:
        return "http://127.0.0.1:99999/" if self.fetched else super().discovery_url


@pytest.mark.parametrize("known", [True, False])
def test_a_fetch_that_fails_for_any_other_reason_leaves_the_keys_in_use(
    own_provider: OidcProvider, *, known: bool
) -> None:
    now = 1000.0
    settings = MovingSettings(issuer=own_provider.issuer, audience=AUDIENCE)
    issuer = Issuer(settings, lambda: now)

    async def check() -> list[UserProfile | type[Exception]]:
        nonlocal now
        await outcome(issuer, own_provider.token())
        settings.fetched.append("once")
        now += 400  # the keys are not fresh any more
        key = None if known else Key("unheard of")
        results = await asyncio.gather(*(outcome(issuer, own_provider.token("u1", key=key)) for _ in range(3)))
        return [result for result, _ in results]

    with capture_logs() as log:
        results = asyncio.run(check())
    if known:
        assert [result.user_id for result in results if isinstance(result, UserProfile)] == ["u1"] * 3
    else:
        assert results == [IssuerUnavailableError] * 3
    assert [(line["event"], line["problem"]) for line in log] == [("sign_in_service_unusable", "failed")]
    assert "ExceptionGroup" in log[0]["reason"]


def test_an_issuer_that_differs_only_in_the_slash_is_named_with_its_own_spelling(own_provider: OidcProvider) -> None:
    own_provider.document["issuer"] = f"{own_provider.issuer}/"
    error = problem_of(settings_of(own_provider))
    assert error.problem == "wrong_issuer"
    assert "only the slash at the end differs" in error.message
    assert f"set OIDC_ISSUER to {own_provider.issuer}/," in error.advice


def test_the_inner_address_as_the_issuer_is_named_with_both_settings(proxied_provider: OidcProvider) -> None:
    inner = proxied_provider.address
    error = problem_of(IssuerSettings(issuer=inner, audience=AUDIENCE))
    assert error.problem == "wrong_issuer"
    assert f"set OIDC_ISSUER to {OUTER}," in error.advice
    assert f"OIDC_INTERNAL_URL to {inner}" in error.advice


def test_a_path_that_has_no_document_is_named(own_provider: OidcProvider) -> None:
    error = problem_of(IssuerSettings(issuer=f"{own_provider.issuer}/nothing", audience=AUDIENCE))
    assert error.problem == "wrong_issuer"
    address = own_provider.issuer.removesuffix("/realms/acme")
    error = problem_of(IssuerSettings(issuer=address.replace("http:", "https:"), audience=AUDIENCE))
    assert (error.problem, "does not speak TLS as expected" in error.message) == ("unreachable", True)


def test_a_certificate_that_is_not_trusted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, context = self_signed(tmp_path)
    with OidcProvider(tls=context) as provider:
        error = problem_of(settings_of(provider))
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        metadata, _ = asyncio.run(IssuerClient(settings_of(provider)).fetch())
    assert "has a certificate that is not trusted (self-signed certificate)" in error.message
    assert "set SSL_CERT_FILE" in error.advice
    assert metadata.issuer == provider.issuer


@pytest.mark.parametrize("endpoints", ["outer", "inner"])
def test_an_inner_address_serves_tokens_that_name_the_outer_issuer(
    proxied_provider: OidcProvider, endpoints: Literal["outer", "inner"]
) -> None:
    """Keycloak names the outer endpoints, or the inner ones with hostname-backchannel-dynamic."""
    inner = proxied_provider.address
    if endpoints == "inner":
        proxied_provider.document.update(jwks_uri=f"{inner}/keys", token_endpoint=f"{inner}/token")
    settings = IssuerSettings(issuer=OUTER, audience=AUDIENCE, internal_url=inner)
    issuer = Issuer(settings)

    async def verify() -> UserProfile:
        token = proxied_provider.token("u1")
        await issuer.prepare(token)
        assert (await issuer.metadata()).authorization_endpoint == f"{OUTER}/authorize"
        assert (await issuer.metadata()).token_endpoint == f"{inner}/token"
        return issuer.verify_access_token(token)

    assert asyncio.run(verify()).user_id == "u1"


def test_endpoints_beside_the_issuer_are_reached_at_the_inner_host(proxied_provider: OidcProvider) -> None:
    """Authentik has its token endpoint outside of the issuer's path, and names all by the host that is called."""
    inner = proxied_provider.address
    host = inner.removesuffix("/realms/acme")
    proxied_provider.document.update(
        issuer=f"{inner}/", jwks_uri=f"{inner}/keys", token_endpoint="https://id.acme.test/token"
    )
    proxied_provider.document["authorization_endpoint"] = f"{host}/authorize"
    settings = IssuerSettings(issuer=OUTER, audience=AUDIENCE, internal_url=inner)
    metadata, keys = asyncio.run(IssuerClient(settings).fetch())
    assert list(keys) == ["first"]
    assert metadata.token_endpoint == f"{host}/token"
    assert metadata.authorization_endpoint == "https://id.acme.test/authorize"


@pytest.mark.slow
def test_a_call_ends_however_slowly_the_service_sends() -> None:
    def seconds(provider: OidcProvider) -> tuple[str, float]:
        began = time.monotonic()
        return problem_of(settings_of(provider)).message, time.monotonic() - began

    with OidcProvider() as silent, OidcProvider() as heads, OidcProvider() as bodies, silent.hold():
        heads.drip, bodies.drip = "headers", "body"
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(seconds, (silent, heads, bodies)))
    assert [f"did not respond within {ISSUER_TIMEOUT_SECONDS:.0f} s" in message for message, _ in found] == [True] * 3
    assert all(took < ENOUGH_SECONDS for _, took in found), found


def test_requests_share_one_fetch_and_its_outcome(own_provider: OidcProvider) -> None:
    own_provider.seconds_to_answer = 0.2
    issuer = Issuer(settings_of(own_provider))

    async def check_all(tokens: list[str]) -> list[tuple[UserProfile | type[Exception], float]]:
        return await asyncio.gather(*(outcome(issuer, token) for token in tokens))

    good = asyncio.run(check_all([own_provider.token(f"u{number}") for number in range(30)]))
    assert sorted(result.user_id for result, _ in good if isinstance(result, UserProfile))[:2] == ["u0", "u1"]
    assert len(good) == 30
    assert fetches(own_provider) == 1

    own_provider.away = True
    other = Issuer(settings_of(own_provider))

    async def check_before_and_after() -> list[tuple[UserProfile | type[Exception], float]]:
        failed = await asyncio.gather(*(outcome(other, own_provider.token()) for _ in range(30)))
        own_provider.away = False
        return [*failed, await outcome(other, own_provider.token())]

    results = asyncio.run(check_before_and_after())
    assert [result for result, _ in results] == [IssuerUnavailableError] * 31  # the last one in the pause
    assert results[-1][1] < 0.1
    assert fetches(own_provider) == 2


def test_the_pause_between_fetches_counts_from_the_end_of_a_fetch(own_provider: OidcProvider) -> None:
    now = 1000.0
    issuer = Issuer(settings_of(own_provider), lambda: now)

    async def fetch_slowly() -> list[int]:
        nonlocal now
        counted = []
        own_provider.away, own_provider.seconds_to_answer = True, 0.3
        waiting = asyncio.create_task(outcome(issuer, own_provider.token()))
        await asyncio.sleep(0.1)
        now += MIN_JWKS_FETCH_INTERVAL_SECONDS + 1  # the fetch takes longer than the pause
        await waiting
        for seconds in (0.0, MIN_JWKS_FETCH_INTERVAL_SECONDS - 0.1, 0.2):
            now += seconds
            await outcome(issuer, own_provider.token())
            counted.append(fetches(own_provider))
        return counted

    assert asyncio.run(fetch_slowly()) == [1, 1, 2]


@pytest.mark.slow
def test_known_keys_go_on_while_unknown_ones_wait_for_a_service_that_hangs(own_provider: OidcProvider) -> None:
    now = 1000.0
    issuer = Issuer(settings_of(own_provider), lambda: now)

    async def check() -> tuple[list[tuple[UserProfile | type[Exception], float]], float, float]:
        nonlocal now
        await outcome(issuer, own_provider.token())
        now += MIN_JWKS_FETCH_INTERVAL_SECONDS
        unknown = Key("unheard of")
        with own_provider.hold():
            forged = [asyncio.create_task(outcome(issuer, own_provider.token(key=unknown))) for _ in range(40)]
            await asyncio.sleep(0.2)
            _, fresh = await outcome(issuer, own_provider.token("u1"))
            results = await asyncio.gather(*forged)
            now += 1800  # the keys are not fresh any more, and the service has not responded to the last fetch
            profile, stale = await outcome(issuer, own_provider.token("u1"))
        assert isinstance(profile, UserProfile)
        return results, fresh, stale

    results, fresh, stale = asyncio.run(check())
    assert {result for result, _ in results} == {IssuerUnavailableError}
    assert max(took for _, took in results) < ENOUGH_SECONDS
    assert fresh < 0.1
    assert stale < 0.1
    assert fetches(own_provider) <= 3  # one before, one for all forged tokens, one in the background


def test_a_reason_is_logged_once_and_its_end_too(own_provider: OidcProvider) -> None:
    now = 1000.0
    issuer = Issuer(settings_of(own_provider), lambda: now)

    async def check(broken: Break) -> None:
        nonlocal now
        own_provider.reset()
        broken(own_provider)
        for _ in range(3):
            now += MIN_JWKS_FETCH_INTERVAL_SECONDS
            await outcome(issuer, own_provider.token(key=Key("unheard of")))

    with capture_logs() as log:
        for broken in (redirects, document(issuer="https://other.test"), lambda _: None):
            asyncio.run(check(broken))
    assert [(line["event"], line.get("problem")) for line in log] == [
        ("sign_in_service_unusable", "redirected"),
        ("sign_in_service_unusable", "wrong_issuer"),
        ("sign_in_service_usable", None),
    ]
    assert log[0]["log_level"] == "warning"


def test_a_client_that_the_service_rejects_is_named(own_provider: OidcProvider) -> None:
    settings = IssuerSettings(
        issuer=own_provider.issuer, audience=AUDIENCE, client_id=CLIENT_ID, client_secret=SecretStr("another secret")
    )
    issuer = Issuer(settings)
    with capture_logs() as log:
        for _ in range(2):
            with pytest.raises(IssuerUnavailableError) as caught:
                asyncio.run(issuer.exchange_code({"code": "x"}))
    assert caught.value.problem == "client_rejected"
    assert "OIDC_CLIENT_SECRET" in caught.value.advice
    assert [line["problem"] for line in log] == ["client_rejected"]
    assert "another secret" not in str(log)


@pytest.mark.slow
def test_codes_of_a_service_that_hangs_end_together(own_provider: OidcProvider) -> None:
    issuer = Issuer(settings_of(own_provider))

    async def exchange() -> tuple[list[BaseException | object], float]:
        await issuer.metadata()
        began = time.monotonic()
        with own_provider.hold():
            results = await asyncio.gather(
                *(issuer.exchange_code({"code": "x"}) for _ in range(80)), return_exceptions=True
            )
        return list(results), time.monotonic() - began

    with capture_logs() as log:
        results, took = asyncio.run(exchange())
    assert {type(result) for result in results} == {IssuerUnavailableError}
    assert took < ENOUGH_SECONDS
    assert sum(path.endswith("/token") for path in own_provider.asked) == MAX_CODES_SENT_AT_ONCE
    assert [line["problem"] for line in log] == ["unreachable"]


@pytest.mark.slow
def test_a_port_that_nothing_answers_is_no_traceback() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        host, port = listener.getsockname()
        error = problem_of(IssuerSettings(issuer=f"https://{host}:{port}", audience=AUDIENCE))
    assert (error.problem, error.message.count("\n")) == ("unreachable", 0)

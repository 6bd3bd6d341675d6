"""What tests of several folders share: an identity provider with real keys, on loopback."""

import asyncio
import base64
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

CLIENT, CLIENT_SECRET = "lockgate", "client secret: 7%/+"


class Registry(jws.JWSRegistry):
    """The library's, without its warning at each use of `EdDSA`."""

    def get_alg(self, name: str) -> Any:
        return self.algorithms[name]


def signed(header: Mapping[str, Any], claims: Mapping[str, Any] | bytes, key: Any) -> str:
    """A token, whatever its header says."""
    registry = Registry(algorithms=[header["alg"]], strict_check_header=False)
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    return jws.serialize_compact(dict(header), payload, key, algorithms=[header["alg"]], registry=registry)


def part(value: Any) -> str:
    """A part of a token."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@dataclass
class IdentityProvider:
    """An OpenID Connect provider that says what a test has it say. `person` are the claims of who logs in next."""

    keys: dict[str, Any]
    url: str = ""
    published: list[str] = field(default_factory=lambda: ["rsa", "ec", "ed"])
    person: dict[str, Any] = field(default_factory=lambda: {
        "sub": "ada-1", "name": "Ada", "email": "ada@example.org", "roles": ["approver", "cfo"], "groups": ["blue"]})
    metadata: dict[str, Any] = field(default_factory=dict)  # in place of, or beside, what it says of itself
    claims: dict[str, Any] = field(default_factory=dict)  # in place of, or beside, what an ID token says
    header: dict[str, Any] = field(default_factory=lambda: {"alg": "RS256", "kid": "rsa"})
    make: Callable[[dict[str, Any]], str] | None = None  # an ID token of these claims, in place of a right one
    answers: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = field(default_factory=dict)  # by path, in place of right ones
    asked: list[str] = field(default_factory=list)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    now_s: Callable[[], float] = lambda: 0.0
    public: bool = False  # the client has no secret
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        self.arrived.set()
        own = {"/.well-known/openid-configuration": self._settings, "/keys": self._keys, "/token": self._token}
        answer = self.answers.get(request.path) or own.get(request.path)
        return web.Response(status=404) if answer is None else await answer(request)

    async def _settings(self, _request: web.Request) -> web.Response:
        told = {"issuer": self.url, "authorization_endpoint": f"{self.url}/authorize", "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/keys", "authorization_response_iss_parameter_supported": True, **self.metadata}
        return web.json_response({name: value for name, value in told.items() if value is not None})

    async def _keys(self, _request: web.Request) -> web.Response:
        return web.json_response(self.key_set())

    def key_set(self) -> dict[str, Any]:
        """What is published of the keys."""
        return {"keys": [{**self.keys[kid].as_dict(private=False), "kid": kid, "use": "sig"} for kid in self.published]}

    def authorize(self, url: str, **changed: str) -> str:
        """What a browser would bring back once somebody has logged in: the query of the callback."""
        asked = dict(parse_qsl(url.partition("?")[2]))
        assert (asked["response_type"], asked["client_id"], asked["code_challenge_method"]) == ("code", CLIENT, "S256")
        code = f"code-{len(self.codes)}"
        self.codes[code] = asked
        told = {"code": code, "state": asked["state"], "iss": self.url, **changed}
        return urlencode({name: value for name, value in told.items() if value})

    async def _token(self, request: web.Request) -> web.Response:
        form = dict(await request.post())
        known: tuple[Any, ...]
        if self.public:
            known = (form["client_id"], CLIENT_SECRET)
            assert "Authorization" not in request.headers
        elif "client_secret" in form:
            known = (form["client_id"], form["client_secret"])
        else:
            basic = base64.b64decode(request.headers.get("Authorization", "Basic ").partition(" ")[2]).decode()
            known = tuple(dict(parse_qsl(f"x={each}", keep_blank_values=True))["x"] for each in basic.split(":"))
        asked = self.codes.pop(str(form.get("code")), None)
        challenge = base64.urlsafe_b64encode(sha256(str(form.get("code_verifier")).encode()).digest()).decode().rstrip("=")
        if known != (CLIENT, CLIENT_SECRET) or asked is None or challenge != asked["code_challenge"] or form["redirect_uri"] != asked["redirect_uri"]:
            return web.json_response({"error": "invalid_grant"}, status=400)
        return web.json_response({"access_token": "x", "token_type": "Bearer", "id_token": self.id_token(asked["nonce"])})

    def id_token(self, nonce: str) -> str:
        now = int(self.now_s())
        claims = {"iss": self.url, "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": nonce, **self.person, **self.claims}
        claims = {name: value for name, value in claims.items() if value is not None}
        return self.make(claims) if self.make is not None else self.sign(claims)

    def sign(self, claims: Mapping[str, Any] | bytes, **header: Any) -> str:
        """A token signed with the key that its header names."""
        full = {name: value for name, value in {**self.header, **header}.items() if value is not None}
        return signed(full, claims, self.keys[full.get("kid", self.header["kid"])])

    def hostile(self, kind: str, claims: Mapping[str, Any]) -> str:
        """A token that nobody should take, as attackers make them."""
        return FORGERIES[kind](self, claims)


def _with_own_key(_provider: IdentityProvider, claims: Mapping[str, Any]) -> str:
    own = RSAKey.generate_key(2048, auto_kid=False)
    return signed({"alg": "RS256", "kid": "rsa", "jwk": own.as_dict(private=False)}, claims, own)


def _by_hand(header: Mapping[str, Any], claims: Mapping[str, Any], sign: Callable[[bytes], bytes]) -> str:
    """A token that no library would make."""
    signing = f"{part(header)}.{part(claims)}"
    return f"{signing}.{base64.urlsafe_b64encode(sign(signing.encode())).decode().rstrip('=')}"


def _changed(provider: IdentityProvider, claims: Mapping[str, Any]) -> str:
    head, _, tail = provider.sign({**claims, "sub": "somebody"}).split(".")
    return f"{head}.{part(claims)}.{tail}"


FORGERIES: Mapping[str, Callable[[IdentityProvider, Mapping[str, Any]], str]] = {
    "no signature": lambda _, claims: f"{part({'alg': 'none'})}.{part(claims)}.",
    "no signature, in other letters": lambda _, claims: f"{part({'alg': 'nOnE', 'kid': 'rsa'})}.{part(claims)}.",
    "the public key as a shared secret": lambda provider, claims: _by_hand(
        {"alg": "HS256", "kid": "rsa"}, claims, lambda data: hmac.digest(provider.keys["rsa"].as_pem(private=False), data, "sha256")),
    "a key that the token brings along": _with_own_key,
    "a key of somebody else": lambda _, claims: signed({"alg": "RS256", "kid": "rsa"}, claims, RSAKey.generate_key(2048, auto_kid=False)),
    "a signature that was cut": lambda provider, claims: provider.sign(claims)[:-4],
    "no signature at all": lambda provider, claims: provider.sign(claims).rpartition(".")[0] + ".",
    "claims that were changed": _changed,
    "a header that asks for more": lambda provider, claims: _by_hand(
        {"alg": "RS256", "kid": "rsa", "crit": ["exp"], "exp": 1}, claims,
        lambda data: provider.keys["rsa"].private_key.sign(data, PKCS1v15(), SHA256())),
    "the key of another algorithm": lambda provider, claims: signed({"alg": "ES256", "kid": "rsa"}, claims, provider.keys["ec"]),
}


@pytest.fixture(scope="session")
def signing_keys() -> dict[str, Any]:
    """Real keys, made once."""
    return {"rsa": RSAKey.generate_key(2048, auto_kid=False), "ec": ECKey.generate_key("P-256", auto_kid=False),
            "ed": OKPKey.generate_key("Ed25519", auto_kid=False), "next": RSAKey.generate_key(2048, auto_kid=False)}


@pytest.fixture
def unserved_provider(signing_keys: dict[str, Any]) -> IdentityProvider:
    """An identity provider that nobody reaches before somebody serves it."""
    return IdentityProvider(dict(signing_keys))


@pytest.fixture
async def provider(unserved_provider: IdentityProvider, aiohttp_server: Callable[..., Awaitable[TestServer]]) -> IdentityProvider:
    """An identity provider on loopback."""
    server = await aiohttp_server(unserved_provider.app())
    unserved_provider.url = str(server.make_url("")).rstrip("/")
    return unserved_provider


@pytest.fixture(params=FORGERIES)
def hostile(request: pytest.FixtureRequest) -> str:
    """One way to forge a token."""
    kind: str = request.param
    return kind

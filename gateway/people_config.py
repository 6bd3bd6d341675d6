"""What `config.toml` says of people: approvals, notices, logins, identity providers, sessions. Owns the shape of the settings."""

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from gateway.tool_config import Headers
from gateway.units import Duration, Label, PositiveDuration, Reference, Size, Url
from gateway.validation import Strict

MIB: Final = 1024 * 1024
Texts = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=300)], ...], Field(strict=False)]


def _network(text: str) -> str:
    try:
        known = ip_network(text)
    except ValueError as error:
        raise ValueError(f'{text!r} is no address and no network such as "10.0.0.0/8"') from error
    if known.prefixlen == 0:
        raise ValueError(f"{text!r} is everybody: whoever connects could say that they are somebody else")
    return str(known)


class ApprovalsConfig(Strict):
    """How calls wait for people."""

    hold: Duration = Field(default=600.0, description=(
        "How long a caller's connection is held at the most while people decide; less where the caller says that it waits less."))
    retry_after: PositiveDuration = Field(default=5.0, le=60, description=(
        "When a caller whose connection was not held any longer should come back (`retry-after` of `approval_pending`)."))
    max_pending: int = Field(default=10_000, ge=1, le=1_000_000, description=(
        "How many approvals may be pending; further calls that need one are refused with `overloaded`."))
    max_pending_each: int = Field(default=1_000, ge=1, le=1_000_000, description=(
        "How many of them may be of one caller's, so that nobody fills the queue for the others."))
    max_opened_each: int = Field(default=2_000, ge=1, le=1_000_000, description=(
        "How many approvals one caller may ask for within an hour, whatever becomes of them; beyond that it is told "
        "`rate_limited`, and when there is room again."))
    max_pending_bytes: Size = Field(default=256 * MIB, description=(
        "How much all that is pending may hold, as it is stored; further calls that need an approval are refused with `overloaded`."))
    max_pending_bytes_each: Size = Field(default=64 * MIB, description="How much of that may be of one caller's.")
    max_held: int = Field(default=10_000, ge=0, le=1_000_000, description=(
        "How many connections one process holds; further callers get `approval_pending` at once, and come back."))
    keep_results: PositiveDuration = Field(default=86_400.0, description=(
        "How long the answer of an approved action is kept for its caller, an answer that is held for a person, and a notice that was "
        "delivered."))
    unexpired: PositiveDuration = Field(default=3_600.0, description=(
        "How long an approved action may wait for its caller to come back; after that it has to be approved again."))


class NotifyConfig(Strict):
    """`[notify.NAME]`: a channel that people are told through: that an approval waits, is late, or was decided."""

    kind: Literal["webhook", "slack", "email"] = Field(description=(
        '"webhook" posts JSON, signed as standardwebhooks.com says; "slack" posts to an incoming webhook of Slack or one that is like it; '
        '"email" sends mail through SMTP.'))
    url: Url | None = Field(default=None, description="Where a webhook is posted to.")
    url_from: Reference | None = Field(default=None, description="A reference to that URL, where it is a secret itself, as Slack's are.")
    secret: Reference | None = Field(default=None, description="A reference to the secret that a webhook is signed with.")
    headers: Headers = Field(default_factory=dict, description='Headers to send along; a value "env:NAME" or "file:PATH" is a reference.')
    private: bool = Field(default=False, description="Whether the receiver may have an address that is not public.")
    host: str = Field(default="", max_length=253, description="The SMTP server.")
    port: int = Field(default=587, ge=1, le=65535, description="Its port.")
    tls: Literal["starttls", "tls", "none"] = Field(default="starttls", description="How the connection to it is secured.")
    username: str = Field(default="", max_length=300, description="Whom to log in as; without one nobody does.")
    password: Reference | None = Field(default=None, description="A reference to the password.")
    sender: str = Field(default="", max_length=300, description="Whom mail is from.")
    to: Texts = Field(default=(), max_length=50, description="Whom mail is sent to.")
    events: Annotated[tuple[Literal["opened", "reminder", "escalated", "decided", "expired", "unknown"], ...], Field(strict=False)] = Field(
        default=("opened", "reminder", "escalated", "expired", "unknown"), min_length=1, description="What it is told.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "email":
            if not (self.host and self.sender and self.to):
                raise ValueError("mail needs `host`, `sender` and `to`")
            if self.url is not None or self.url_from is not None or self.secret is not None or self.headers:
                raise ValueError("`url`, `url_from`, `secret` and `headers` belong to a webhook")
        elif (self.url is None) == (self.url_from is None):
            raise ValueError("give `url`, or `url_from` where it is a secret")
        elif self.host or self.sender or self.to or self.username or self.password is not None:
            raise ValueError("`host`, `username`, `password`, `sender` and `to` belong to mail")
        if self.kind == "webhook" and self.secret is None:
            raise ValueError("a webhook needs a `secret` that it is signed with")
        return self


class LoginConfig(Strict):
    """How people log in to the page."""

    public_url: Url | None = Field(default=None, description=(
        "Where people reach this gateway with a browser, for links in notices and for OpenID Connect; without it, where it listens."))
    hosts: Texts = Field(default=(), max_length=32, description=(
        "Further names that a browser may reach the page by; others are refused, for a foreign page may have given this address its name."))
    proxies: Annotated[tuple[Annotated[str, AfterValidator(_network)], ...], Field(strict=False)] = Field(
        default=(), max_length=32, description=(
            "Addresses or networks of reverse proxies in front of the gateway: of what comes from one, the last address in "
            "`X-Forwarded-For` is who has sent it. Logins are counted by that; without this everybody behind a proxy has one address."))
    idle: PositiveDuration = Field(default=3_600.0, description=(
        "After how long without use a login ends; a page that asks by itself does not use it."))
    longest: PositiveDuration = Field(default=43_200.0, description="After how long a login ends in any case.")
    attempts: int = Field(default=5, ge=1, le=100, description=(
        "How many wrong passwords in a row lock a name for the network that they came from; ten times as many, from wherever, for all but "
        "the browsers in which that person has logged in before."))
    locked: PositiveDuration = Field(default=900.0, description="How long it is locked then.")


class OidcConfig(Strict):
    """`[oidc]`: people log in at an identity provider (OpenID Connect, authorization code with PKCE)."""

    issuer: Url = Field(description="The provider's issuer; its settings are found below it.")
    client_id: str = Field(min_length=1, max_length=300, description="This gateway's id there.")
    client_secret: Reference | None = Field(default=None, description="A reference to its secret; without one it is a public client.")
    scopes: Texts = Field(default=("openid", "profile", "email"), min_length=1, description="What is asked for.")
    name_claim: str = Field(default="name", min_length=1, max_length=200, description="The claim that holds a person's name.")
    roles_claim: str = Field(default="roles", min_length=1, max_length=200, description="The claim that lists a person's roles.")
    teams_claim: str = Field(default="groups", min_length=1, max_length=200, description="The claim that lists a person's teams.")
    permissions: Mapping[str, Literal["view", "approve", "operate", "admin"]] = Field(min_length=1, description=(
        "What a role of theirs lets people do here; who has none of them cannot log in."))
    private: bool = Field(default=False, description=(
        "Whether the provider may have an address that is not public, and be asked without TLS."))
    label: str = Field(default="Log in with your organisation", min_length=1, max_length=100, description="What its button says.")

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        if "openid" not in self.scopes:
            raise ValueError("`scopes` must have `openid`: without it nobody says who somebody is")
        if self.issuer.startswith("http:") and not self.private:
            raise ValueError("an `issuer` that is asked without TLS needs `private = true`")
        return self


class JwtConfig(Strict):
    """`[auth.jwt.NAME]`: an issuer of JSON Web Tokens that callers may have in place of a virtual key."""

    issuer: str = Field(min_length=1, max_length=300, description="`iss`; a token of another issuer is not looked at here.")
    audience: Texts = Field(min_length=1, description="`aud`: a token must be meant for one of these.")
    jwks_url: Url | None = Field(default=None, description="Where its public keys are; fetched when needed, and kept.")
    jwks_file: str | None = Field(default=None, min_length=1, max_length=1000, description="A file that holds them, in place of a URL.")
    algorithms: Annotated[tuple[Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
                                       "Ed25519"], ...],
                          Field(strict=False)] = Field(default=("RS256", "ES256"), min_length=1, description=(
        "The signatures that are taken. A shared secret is none: whoever can check a token could make one."))
    required: Texts = Field(default=("sub", "exp"), min_length=1, description="Claims that a token must have.")
    claims: Mapping[str, str] = Field(default_factory=dict, description=(
        "Claims that must have this value, such as `tid`."))
    leeway: Duration = Field(default=30.0, le=300, description="How far clocks may differ.")
    id_claim: str = Field(default="sub", min_length=1, max_length=200, description="The claim that the principal's id is made of.")
    name_claim: str = Field(default="name", min_length=1, max_length=200, description="The claim that holds its name.")
    team_claim: str = Field(default="team", min_length=1, max_length=200, description="The claim that holds its team.")
    org_claim: str = Field(default="org", min_length=1, max_length=200, description="The claim that holds its organisation.")
    roles_claim: str = Field(default="roles", min_length=1, max_length=200, description="The claim that lists its roles.")
    on_behalf_claim: str = Field(default="on_behalf_of", min_length=1, max_length=200, description=(
        "The claim that says whom it acts for. `act` of RFC 8693 is read where there is none: then `sub` is the one acted for."))
    roles: Mapping[str, Label] = Field(default_factory=dict, description="What a role of a token is called here; without any, the same.")
    routes: Texts = Field(default=("*",), min_length=1, description="Globs of the routes that its callers may use.")
    private: bool = Field(default=False, description=(
        "Whether `jwks_url` may have an address that is not public, and be asked without TLS."))

    @model_validator(mode="after")
    def _keys(self) -> Self:
        if (self.jwks_url is None) == (self.jwks_file is None):
            raise ValueError("give `jwks_url` or `jwks_file`")
        if self.jwks_url is not None and self.jwks_url.startswith("http:") and not self.private:
            raise ValueError("a `jwks_url` that is asked without TLS needs `private = true`")
        return self


class SessionsConfig(Strict):
    """How a call that does not say its session is put into one."""

    derive: Annotated[tuple[Literal["metadata", "conversation", "previous", "user", "trace"], ...], Field(strict=False)] = Field(
        default=("metadata", "conversation", "previous"), description=(
            "What a session is read from where `X-Lockgate-Session` is not sent, the first that is there: `metadata` (its `session_id`, "
            "`conversation_id` or `user_id`), `conversation`, `previous` (the session of the answer that the call goes on from), `user` "
            "(the body's own), `trace` (the trace id of `traceparent`)."))

"""What an identity provider says of itself (OpenID Connect Discovery 1.0)."""

from dataclasses import dataclass
from typing import Any

from gateway.identity.fetch import FetchError


@dataclass(frozen=True, slots=True)
class Provider:
    """Where a provider is asked for what. `names_itself`: in its answers (RFC 9207); `by_post`: the client's secret stands in the form."""

    issuer: str
    authorize: str
    token: str
    jwks: str
    names_itself: bool
    by_post: bool

    @classmethod
    def read(cls, issuer: str, value: Any) -> "Provider":
        """Its own words, checked. Raises `FetchError`."""
        told = value if isinstance(value, dict) else {}
        if told.get("issuer") not in (issuer, f"{issuer}/"):  # a provider speaks for itself alone
            raise FetchError("the provider's settings name another issuer")
        methods = told.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        by_post = isinstance(methods, list) and "client_secret_basic" not in methods and "client_secret_post" in methods
        return cls(told["issuer"], _url(told, "authorization_endpoint"), _url(told, "token_endpoint"), _url(told, "jwks_uri"),
                   told.get("authorization_response_iss_parameter_supported") is True, by_post)


def _url(told: dict[str, Any], name: str) -> str:
    url = told.get(name)
    if not isinstance(url, str) or not url.startswith(("https://", "http://")) or not url.isascii() or not url.isprintable() or " " in url:
        raise FetchError(f"the provider's settings have no `{name}` that is a URL")
    return url

"""How an attempt fails on the network, in the words of `AttemptFailed`. Both transports map foreign exceptions to these."""

import ssl

from gateway.errors import AttemptFailed


def no_connection(where: str, error: Exception) -> AttemptFailed:
    """The name did not resolve or nobody answered. Nothing was sent."""
    return AttemptFailed("connect", f"no connection to {where}: {_words(error)}", retryable=True)


def not_public(where: str) -> AttemptFailed:
    """The name leads nowhere that may be reached. Nothing was sent; another look-up would be another answer to the same question."""
    return AttemptFailed("connect", f"no connection to {where}: it has no public address, and others may not be reached from here",
                         retryable=False)


def no_tls(where: str, error: Exception) -> AttemptFailed:
    """The handshake failed. A wrong certificate will be wrong again, so only other failures are worth a retry."""
    return AttemptFailed("tls", f"no TLS with {where}: {_words(error)}", retryable=not isinstance(error, ssl.CertificateError))


def reset(where: str, error: BaseException | None) -> AttemptFailed:
    """The connection broke. Whether the request was worked on cannot be known from here."""
    return AttemptFailed("reset", f"{where} closed the connection{f': {_words(error)}' if error else ''}", retryable=True)


def cut(where: str) -> AttemptFailed:
    """The connection was closed before the end that the answer had promised."""
    return AttemptFailed("cut", f"{where} closed the connection in the middle of the answer", retryable=True)


def malformed(where: str, reason: object) -> AttemptFailed:
    """What came is not an HTTP/1.1 answer that can be taken."""
    return AttemptFailed("malformed", f"the answer of {where} is malformed: {reason}", retryable=True)


def too_large(where: str, limit: int) -> AttemptFailed:
    """The body is over the limit; it would be so again."""
    return AttemptFailed("too_large", f"the answer of {where} is over {limit} bytes", retryable=False)


def late(where: str, deadline: str, seconds: float) -> AttemptFailed:
    """A deadline passed: `connect`, `headers` or `idle`."""
    return AttemptFailed(f"timeout:{deadline}", f"{where} was silent at the {deadline} deadline of {seconds:g} s", retryable=True)


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__

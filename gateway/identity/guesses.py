"""How often passwords may be guessed, and how nobody can keep somebody out by guessing at their name.

Whoever has never logged in as somebody is counted by where they are: a few wrong passwords from one network lock the name for that network.
Guesses from many networks are counted together as well, with a larger bound. A browser in which that very person has logged in before is
counted by itself: whatever others do, it is let in.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.clock import Ids
from gateway.identity.accounts import digest
from gateway.identity.addresses import network_of
from gateway.secret import Secret

EVERYWHERE: Final = 10  # times as many wrong passwords as from one network lock a name for all
_NONCE: Final = 24  # characters
_SEAL: Final = 64


@dataclass(frozen=True, slots=True)
class Came:
    """Where somebody is: the address that they come from, and what their browser keeps of an earlier login, if it says so."""

    address: str
    device: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Guesser:
    """Whom a password is taken from, and under what it is counted: names of counts, with how many in a row lock each."""

    place: str = field(repr=False)
    counts: Mapping[bytes, int] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Guesses:
    """Counts guesses. `attempts` wrong passwords in a row are too many from one place."""

    pepper: Secret
    attempts: int

    def of(self, name: str, kept: str, came: Came) -> Guesser:
        """Who guesses at a name, of which this hash is kept (empty for none)."""
        name_digest = self.name_digest(name)
        if self.knows(name, kept, came.device):
            place = f"device:{came.device}"
            return Guesser(place, {name_digest + digest(self.pepper, place): self.attempts})
        place = network_of(came.address)
        everywhere = name_digest + digest(self.pepper, "everywhere")
        here = name_digest + digest(self.pepper, f"network:{place}")
        return Guesser(place, {here: self.attempts, everywhere: self.attempts * EVERYWHERE})

    def name_digest(self, name: str) -> bytes:
        """What the names of all counts of a name begin with. Whoever mistypes puts a password where a name belongs."""
        return digest(self.pepper, f"name:{name}")

    def new_device(self, name: str, kept: str, ids: Ids) -> str:
        """What a browser keeps in which somebody has logged in with the password of this hash. With another one it is worth nothing."""
        nonce = ids.token(_NONCE)
        return nonce + self._seal(name, kept, nonce)

    def knows(self, name: str, kept: str, device: str) -> bool:
        """Whether this was given out to a browser of this very person."""
        sealed = self._seal(name, kept, device[:_NONCE])
        return hmac.compare_digest(sealed.encode(), device[_NONCE:].encode(errors="surrogatepass")) and kept != ""

    def _seal(self, name: str, kept: str, nonce: str) -> str:
        return digest(self.pepper, f"device:{name}:{kept}:{nonce}").hex()

"""The address of a server that the user named."""

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from medlite.errors import ServerError

KEY_VARIABLE = "MEDLITE_API_KEY"


@dataclass(frozen=True)
class Address:
    """Where a server listens. prefix: what stands before /v1 in its paths. text: as the record shows it."""

    scheme: str
    host: str
    port: int
    prefix: str

    @property
    def text(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.prefix}"

    @property
    def is_this_machine(self) -> bool:
        """Whether the name is localhost or a loopback address; no name is looked up."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(url: str) -> Address:
    """The server that `url` names, with or without its /v1. Raises ServerError for what is no plain address."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port or {"https": 443}.get(parts.scheme, 80)
    except ValueError as error:
        raise ServerError(f"{url}: no address: {error}") from error
    if parts.username or parts.password:
        raise ServerError(
            "the address holds a name or password, which would stand in the record",
            hint=f"a key goes into the environment: {KEY_VARIABLE}=...",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ServerError(f"{url}: no address of a server", hint="--url http://localhost:8080")
    return Address(parts.scheme, parts.hostname, port, parts.path.rstrip("/").removesuffix("/v1"))

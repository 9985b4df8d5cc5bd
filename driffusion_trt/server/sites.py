"""Which pages in a browser may use a service that asks for no key: its own, and those that were named.

A browser sends requests to this machine for any page that is open in it: for forms of other sites, and for
pages whose name was made to lead here after they were loaded (DNS rebinding). Origin and Host tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from .answers import ApiError

__all__ = ["Sites"]


class Sites:
    """Pages by their sites and by the name under which they reached this service.

    origins: of other sites whose pages may, or "*". hosts: names that this service goes by; any, where there
    are none. public_url: where it is known to the outside, which is another of both.
    """

    def __init__(self, origins: Sequence[str], hosts: Sequence[str], public_url: str = "") -> None:
        self._origins = set(origins)
        self._public = urlsplit(public_url).netloc.lower()
        self._hosts = {host.lower() for host in hosts}
        if hosts and self._public:
            self._hosts.add(_name(self._public))

    def refused(self, headers: Headers) -> ApiError | None:
        """Why a request with these headers is not answered."""
        host = headers.get("host", "").lower()
        if self._hosts and host and _name(host) not in self._hosts:
            why = f"this service does not go by the name {host[:100]!r}; see --allowed-host"
            return ApiError(403, why, "unknown_host")
        origin = headers.get("origin")
        if origin is None or "*" in self._origins or origin in self._origins:
            return None
        if origin.lower().partition("://")[2] in ({host, self._public} - {""}):
            return None
        why = f"pages of {origin[:100]!r} may not use this service; see --cors-origin"
        return ApiError(403, why, "unknown_origin")


def _name(host: str) -> str:
    """Of a host and maybe a port; an IPv6 address is without its brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""

"""Where the server may send to because a person asked for it.

A webhook makes this server speak to an address that somebody typed in, from inside the team's
network. An admin may name any. Everybody else may name only what is reachable from anywhere:
names that resolve to public addresses, and to nothing else. The names are resolved again each
time something is sent, and the connection goes to the address that was judged.
"""

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import SplitResult, urlsplit

from espalier.errors import Forbidden, InvalidInput, Unavailable

MAX_URL = 2000
#: Leads to IPv4 addresses of any kind.
_NAT64 = IPv6Network("64:ff9b::/96")


def check(url: str, *, anywhere: bool) -> None:
    """Refuse an address that cannot be sent to, or not by this person. It may take seconds.

    Raises InvalidInput for what is no http(s) URL, holds a password or names no known host,
    Forbidden for an address within the network unless ``anywhere``.
    """
    try:
        target(url, anywhere=anywhere)
    except Unavailable as error:
        fault = {"loc": ["url"], "msg": error.detail}
        raise InvalidInput(error.detail, hint=error.hint, errors=[fault]) from error


def target(url: str, *, anywhere: bool) -> tuple[SplitResult, str]:
    """Return the URL's parts and the IP address to connect to.

    Raises as `check` does, but Unavailable for a name that does not resolve now.
    """
    parts = _parts(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unavailable(
            f"{host} does not resolve to an address: {error}.", hint="Is the name right?"
        ) from error
    there = [str(info[4][0]) for info in found]
    if not anywhere:
        for text in there:
            if not _is_public(text):
                raise Forbidden(
                    f"{host} is {text}, an address within the network: only an admin may add it.",
                    hint="Ask an admin to add this webhook.",
                )
    return parts, there[0]


def _parts(url: str) -> SplitResult:
    fault = None
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts, fault = urlsplit(""), "is no URL"
    if fault is None and parts.scheme not in ("http", "https"):
        fault = "does not begin with http:// or https://"
    elif fault is None and not parts.hostname:
        fault = "names no host"
    elif fault is None and (parts.username or parts.password):
        fault = "holds a name or a password: the secret signs what is sent"
    elif len(url) > MAX_URL or not url.isascii() or any(c <= " " or c == "\x7f" for c in url):
        fault = f"has more than {MAX_URL} characters, or other than printable ASCII"
    if fault:
        raise InvalidInput(
            f"{url[:200]!r} {fault}.",
            hint="Give an address such as https://example.com/espalier.",
            errors=[{"loc": ["url"], "msg": fault}],
        )
    return parts


def _is_public(text: str) -> bool:
    """Also by what stands inside an IPv6 address: mapped, 6to4 and Teredo lead to IPv4."""
    address: IPv4Address | IPv6Address = ip_address(text.split("%")[0])
    if isinstance(address, IPv6Address):
        inside = address.ipv4_mapped or address.sixtofour
        if inside is not None:
            address = inside
        elif address.teredo is not None or address in _NAT64:
            return False
    return address.is_global and not address.is_multicast

"""Checks of a Prefect server before anything is sent there: whether it answers, and whose it is."""

import asyncio
import http.client
import ipaddress
import json
import os
import urllib.error
import urllib.request
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

from autoexp.errors import AutoexpError
from autoexp.flows.concurrency.visits import OWN_HEADER
from autoexp.flows.deployment import sockets
from autoexp.flows.deployment.server_lock import token
from autoexp.storage import permissions

HOST = "127.0.0.1"
_FIRST_ANSWER_S = 60.0
_LARGEST_PAGE = 65536


# Its address


def is_local(url: str) -> bool:
    """True if a URL means this machine by a loopback address."""
    host = urlsplit(url).hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def host_of(url: str) -> str:
    """The loopback address of a URL of this machine; `localhost` is 127.0.0.1."""
    host = urlsplit(url).hostname or HOST
    return HOST if host == "localhost" else host


def port_of(url: str) -> int:
    """The port of a URL, by default that of its scheme."""
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _proxy_of(url: str) -> str:
    """The proxy for a URL, without its password; empty: none."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_local(url) or urllib.request.proxy_bypass(host):
        return ""
    named = urllib.request.getproxies()
    proxy = named.get(parts.scheme) or named.get("all") or ""
    name = urlsplit(proxy if "://" in proxy else f"//{proxy}")
    return f"{name.hostname}:{name.port}" if proxy and name.port else name.hostname or ""


# Whether it answers


class _Page(NamedTuple):
    status: int
    body: bytes

    @property
    def is_healthy(self) -> bool:
        return self.status == 200 and self.body.strip() == b"true"

    @property
    def is_json(self) -> bool:
        with suppress(ValueError):
            return isinstance(json.loads(self.body), dict)
        return False


def answers(url: str, auth_string: str | None = None) -> bool:
    """True if a Prefect server answers at the API's URL."""
    return problem(url, auth_string) is None


def problem(url: str, auth_string: str | None = None) -> str | None:
    """Reason why no API answers at this URL, to follow the words "Prefect's server at"; or None.

    A server that asks for a login does answer. Prefect Cloud has no health page, but says so in
    JSON.
    """
    root = url.rstrip("/")
    try:
        if urlsplit(root).scheme not in ("http", "https"):
            return f"{url} has no http:// or https:// in front"
        page = _get(f"{root}/health", auth_string)
    except (OSError, http.client.HTTPException):
        return f"{url} does not answer{_advice(root)}"
    except ValueError as error:
        return f"{url} is no address ({error})"
    if page.is_healthy:
        return None
    if page.status >= 500:
        return f"{url} does not answer (HTTP {page.status}){_advice(root)}"
    with suppress(OSError, http.client.HTTPException):
        if _get(f"{root}/api/health", auth_string).is_healthy:
            return f"{url} has its API at {root}/api: export PREFECT_API_URL={root}/api"
    if page.is_json:
        return None
    return f"{url} does not answer: a page that is not Prefect's came (HTTP {page.status})" + (
        _advice(root)
    )


def _advice(url: str) -> str:
    proxy = _proxy_of(url)
    host = urlsplit(url).hostname
    return (
        f"; the request went through the proxy {proxy}, add {host} to no_proxy to bypass it"
        if proxy
        else ""
    )


def _get(url: str, auth_string: str | None, timeout_s: float = 3.0) -> _Page:
    """Get a page as Prefect's own client would."""
    handlers = [urllib.request.ProxyHandler({})] if is_local(url) else []
    # To an embedded server this is nobody who looks at it.
    request = urllib.request.Request(url, headers={OWN_HEADER: "1"})
    if auth_string:
        # Not to where a redirection leads.
        request.add_unredirected_header("Authorization", token(auth_string))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=timeout_s) as answer:
            return _Page(answer.status, answer.read(_LARGEST_PAGE))
    except urllib.error.HTTPError as error:
        with error:
            return _Page(error.code, error.read(_LARGEST_PAGE))


def require_answer(url: str, auth_string: str | None = None) -> None:
    """Raise AutoexpError when no API answers at this URL, with what to do."""
    wrong = problem(url, auth_string)
    if wrong is None:
        return
    start = (
        ". Start it (`prefect server start`), or unset PREFECT_API_URL to have one started for you"
    )
    raise AutoexpError(f"Prefect's server at {wrong}{'' if 'export' in wrong else start}")


async def require_queries(url: str) -> None:
    """Raise AutoexpError unless the server of Prefect's settings answers an authenticated query.

    The health check needs neither login nor database; Prefect's own client would retry for many
    minutes.
    """
    from prefect import get_client  # an embedded server is started before Prefect is imported

    try:
        connection = get_client()
    except (ImportError, ValueError) as error:
        raise AutoexpError(
            f"Prefect's client does not start ({error}). Where this is about a proxy, unset the "
            "variables that name it (`env | grep -i proxy`), or install what is missing"
        ) from error
    try:
        async with asyncio.timeout(_FIRST_ANSWER_S), connection as client:
            await client.read_flow_runs(limit=1)
            theirs, ours = await client.api_version(), client.client_version()
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or f"nothing within {_FIRST_ANSWER_S:.0f} s"
        raise AutoexpError(
            f"Prefect's server at {url} is there, but does not list its flow runs ({reason}). See "
            "to it, or to PREFECT_API_URL and the login (PREFECT_API_KEY, PREFECT_API_AUTH_STRING)"
        ) from error
    if theirs.partition(".")[0] != ours.partition(".")[0]:
        raise AutoexpError(
            f"Prefect's server at {url} is of version {theirs}, and Prefect here of {ours}: they "
            "cannot talk to each other. Upgrade the older one, or unset PREFECT_API_URL to have a "
            "server started for you"
        )


# Whose it is


def refuse_strangers(url: str) -> None:
    """Raise AutoexpError when somebody else listens at a URL of this machine.

    Before anything is sent there: whoever has our string, or is asked for work, commands us.
    """
    if not is_local(url):
        return
    port = port_of(url)
    strangers = sockets.listeners(port) - {os.geteuid(), 0}
    if strangers:
        names = ", ".join(sorted(permissions.user(uid) for uid in strangers))
        raise AutoexpError(
            f"port {port} of this machine belongs to {names}, not to you: whoever owns Prefect's "
            "server runs commands as you. Use a port of your own: `PREFECT_API_URL="
            f"http://{HOST}:PORT/api autoexp deploy`, or no PREFECT_API_URL for `autoexp run`"
        )


def lets_in(url: str, auth_string: str | None = None) -> bool:
    """True if the API at a URL answers a request that needs a login.

    Raises OSError where the answer is unclear: a slow server is not a locked one.
    """
    asked = f"{url.rstrip('/')}/admin/version"
    try:
        # A server that has just started takes seconds for its first answer, more on a busy machine.
        status = _get(asked, auth_string, _FIRST_ANSWER_S).status
    except (ValueError, http.client.HTTPException) as error:
        raise OSError(f"{asked}: {error}") from error
    if status >= 500:
        raise OSError(f"{asked}: HTTP {status}")
    return status == 200


def warning_when_open(url: str) -> str | None:
    """Warning for a server that asks nobody for a string; None: it asks, or does not answer."""
    try:
        if not lets_in(url):
            return None
    except OSError:
        return None
    return (
        f"warning: Prefect's server at {url} takes orders from everybody who reaches it, as any "
        "user of this machine may: they can read this session there and have its jobs cancelled; "
        "stop it, and `autoexp deploy` starts one with a lock, or unset PREFECT_API_URL"
    )

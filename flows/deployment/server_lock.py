"""The lock before Prefect's server: whoever does not bring its authentication string gets a 401.

Prefect's own check leaves open what is not its API (the UI, `/docs`), `/health`, and answers of the
layers in front of it. Any user of a login node can reach a port of it, so here nothing is open.
"""

import hmac
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_UNAUTHORIZED = b'{"exception_message":"Unauthorized"}'
_FILES = "autoexp: files of the UI "
_READS = ("GET", "HEAD")
# Sends the string to the API, and where it is accepted stores it where Prefect's UI looks for it.
# The part of an address behind `#` never leaves the browser. The cookie opens the UI's files alone:
# cookies of 127.0.0.1 go to every port of it, also to another user's.
_PAGE = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Prefect, started by autoexp</title>
<style>body{{font:16px sans-serif;margin:20vh auto;max-width:34em}}input{{width:100%}}</style>
<form><p><label>Authentication string of this Prefect server
<input type="password" autocomplete="off" autofocus></label></p>
<button>Open</button> <span role="status"></span></form>
<script>
const field = document.querySelector("input"), answered = document.querySelector("span");
async function enter(word) {{
  const answer = await fetch("/api/admin/version", {{headers: {{Authorization: "Basic " + word}}}});
  if (!answer.ok) {{ answered.textContent = "This is not the string."; return; }}
  localStorage.setItem("prefect-password", word);
  const text = new TextEncoder().encode({_FILES!r} + atob(word));
  const sum = Array.from(new Uint8Array(await crypto.subtle.digest("SHA-256", text)));
  const value = sum.map(byte => byte.toString(16).padStart(2, "0")).join("");
  document.cookie = "autoexp-" + location.port + "=" + value + "; path=/; SameSite=Strict";
  history.replaceState(null, "", location.pathname + location.search);
  location.reload();
}}
document.querySelector("form").onsubmit = () => {{ enter(btoa(field.value)); return false; }};
const known = localStorage.getItem("prefect-password"), given = location.hash.slice(1);
if (given || known) enter(given ? btoa(given) : known);
</script>
""".encode()


class Lock:
    """An application in front of another one, which sees only those who know the string."""

    def __init__(self, app: App, auth_string: str) -> None:
        self._app = app
        self._token = b64encode(auth_string.encode())
        self._cookie = sha256((_FILES + auth_string).encode()).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._is_known(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _refuse(scope, send, "http")
        elif "websocket.http.response" in scope.get("extensions", {}):
            await _refuse(scope, send, "websocket.http")
        else:
            await send({"type": "websocket.close"})

    def _is_known(self, scope: Scope) -> bool:
        for value in _headers(scope, b"authorization"):
            scheme, _, token = value.strip().partition(b" ")
            if scheme.lower() == b"basic" and hmac.compare_digest(token.strip(), self._token):
                return True
        if scope["type"] == "websocket":
            # Prefect's clients say the string in their first message, and Prefect reads it.
            return "prefect" in scope.get("subprotocols", ())
        return scope["method"] in _READS and not _is_api(scope["path"]) and self._has_cookie(scope)

    def _has_cookie(self, scope: Scope) -> bool:
        for value in _headers(scope, b"cookie"):
            try:
                cookies = SimpleCookie(value.decode("latin-1")).values()
            except CookieError:
                continue
            if any(hmac.compare_digest(x.value.encode(), self._cookie.encode()) for x in cookies):
                return True
        return False


def token(auth_string: str) -> str:
    """The value of the header `Authorization` for a string."""
    return f"Basic {b64encode(auth_string.encode()).decode()}"


def _is_api(path: str) -> bool:
    return path == "/api" or path.startswith("/api/")


def _headers(scope: Scope, name: bytes) -> Iterable[bytes]:
    return [value for key, value in scope["headers"] if key.lower() == name]


async def _refuse(scope: Scope, send: Send, kind: str) -> None:
    """Answer 401: with a page to enter the string on where a browser asks for one of the UI's."""
    asks_for_page = kind == "http" and scope["method"] == "GET" and not _is_api(scope["path"])
    page = asks_for_page and any(b"text/html" in value for value in _headers(scope, b"accept"))
    body = _PAGE if page else _UNAUTHORIZED
    headers = [
        (b"content-type", b"text/html; charset=utf-8" if page else b"application/json"),
        (b"content-length", str(len(body)).encode()),
        # Not `Basic`: a browser would send that along with requests of any other page, too.
        (b"www-authenticate", b"Prefect"),
        (b"cache-control", b"no-store"),
        (b"x-frame-options", b"DENY"),
    ]
    await send({"type": f"{kind}.response.start", "status": 401, "headers": headers})
    await send({"type": f"{kind}.response.body", "body": body})

"""Whether W&B can go online now: a key and a server that answers, checked without a question or a long wait."""

from __future__ import annotations

import configparser
import contextlib
import netrc
import os
import queue
import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

Mode = Literal["online", "offline", "disabled"]

CLOUD = ("api.forge.coreweave.com", "api.wandb.ai")
"""Names of W&B's own server; a key stored under either is good for both."""

PROBE_SECONDS = 5.0
"""Longest wait for the server to answer."""


def wandb_mode(
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    api_host: str | None = None,
    timeout: float = PROBE_SECONDS,
) -> tuple[Mode, str]:
    """(mode, reason) for W&B now: online takes a key and a server that answers within `timeout` s.

    "auto" follows WANDB_MODE and `wandb offline`.  `api_host` is a URL; None: the configured one.
    """
    wanted = configured_mode(mode)
    if wanted != "online":
        return wanted, "as asked for"
    if not has_key():
        return "offline", "no API key: set WANDB_API_KEY or run `wandb login`"
    reason = _unreachable(api_host or _server(), timeout)
    return ("offline", reason) if reason else ("online", "the server answers")


def has_key() -> bool:
    """Whether there is an API key: in the environment, in wandb's settings, or in netrc for its server."""
    settings = _settings()
    if "api_key" in settings or any(map(os.environ.get, ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))):
        return True
    host = urlsplit(settings.get("base_url", f"https://{CLOUD[0]}")).netloc
    # Functions of os.path: those of Path raise for a user without a home, or with that of another user.
    candidates = map(os.path.expanduser, (os.environ.get("NETRC") or "~/.netrc", "~/_netrc"))
    path = next(filter(os.path.isfile, candidates), None)
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        stored = netrc.netrc(path) if path else None
        return stored is not None and any(map(stored.authenticators, CLOUD if host in CLOUD else (host,)))
    return False


def _settings() -> dict[str, str]:
    """wandb's settings (mode, base_url, api_key) of its files; the environment takes precedence."""
    folder = Path(os.path.expanduser(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")))
    parser = configparser.RawConfigParser()
    with contextlib.suppress(OSError, UnicodeDecodeError, configparser.Error):
        parser.read([folder / "settings", Path(os.environ.get("WANDB_DIR", "."), "wandb", "settings")])
    written = dict(parser.items("default")) if parser.has_section("default") else {}
    set_now = {"mode": os.environ.get("WANDB_MODE"), "base_url": os.environ.get("WANDB_BASE_URL")}
    return written | {key: value for key, value in set_now.items() if value}


def _server() -> str:
    import wandb

    return _settings().get("base_url") or wandb.Settings().base_url


def configured_mode(mode: str) -> Mode:
    """The mode that is configured; "auto" is that of wandb's settings, and online without any."""
    named = _settings().get("mode", "online") if mode == "auto" else mode
    return {"offline": "offline", "dryrun": "offline", "disabled": "disabled"}.get(named, "online")


def _unreachable(url: str, timeout: float) -> str | None:
    """Why there is no answer from a URL (through the proxy, if one is set), or None if there is one."""
    outcome: queue.Queue[str | None] = queue.Queue()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.build_opener().open(request, timeout=timeout + 1).close()
            outcome.put(None)
        except urllib.error.HTTPError as error:
            outcome.put(f"{url} answers with status {error.code}" if error.code >= 500 else None)
        except Exception as error:
            reason = getattr(error, "reason", error)
            # A certificate that only Python rejects is an answer too: wandb has its own TLS.
            outcome.put(None if isinstance(reason, ssl.SSLError) else f"{url} cannot be reached: {reason}")

    # A DNS lookup has no timeout, hence a thread that is abandoned after `timeout`.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return outcome.get(timeout=timeout)
    except queue.Empty:
        return f"{url} did not answer within {timeout:g} s"

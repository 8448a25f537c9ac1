"""Whether W&B goes online is found out without asking the user and without waiting."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from pathlib import Path

import pytest
import wandb_offline
from wandb_offline import KEY, REFUSED

from diffusion_lab.logger.wandb_server import has_key, wandb_mode

clean, keyed = wandb_offline.clean, wandb_offline.keyed


def listener(status: int | None) -> str:
    """URL of a loopback server that answers with a status, or accepts and never says a word."""
    if status is None:
        silent = socket.create_server(("127.0.0.1", 0))
        listener.kept = silent
        return f"http://127.0.0.1:{silent.getsockname()[1]}"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.handle_request, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


@pytest.mark.parametrize(
    ("status", "expected", "words"),
    [
        (200, "online", "answers"),
        (404, "online", "answers"),
        (503, "offline", "status 503"),
        (None, "offline", "did not answer within 0.5 s"),
    ],
)
def test_mode_is_online_only_if_the_server_answers(keyed, status, expected, words):
    start = time.monotonic()
    mode, reason = wandb_mode("auto", listener(status), timeout=0.5)
    assert (mode, words in reason) == (expected, True), reason
    assert time.monotonic() - start < 2


def test_mode_is_bounded_where_looking_up_the_name_hangs(keyed):
    keyed.setattr(socket, "getaddrinfo", lambda *a, **k: time.sleep(5))
    start = time.monotonic()
    assert wandb_mode("online", "https://api.example", timeout=0.3)[0] == "offline"
    assert time.monotonic() - start < 2


def test_mode_goes_through_the_proxy(keyed):
    keyed.setenv("http_proxy", listener(200))
    keyed.setenv("no_proxy", "")
    assert wandb_mode("auto", "http://w-and-b.invalid", timeout=2) == ("online", "the server answers")


def test_mode_follows_what_is_said_in_order(keyed):
    assert wandb_mode("auto") == ("offline", f"{REFUSED} cannot be reached: [Errno 111] Connection refused")
    for said, expected in (("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled")):
        keyed.setenv("WANDB_MODE", said)
        assert wandb_mode("auto") == (expected, "as asked for")
    assert "cannot be reached" in wandb_mode("online")[1]
    keyed.delenv("WANDB_MODE")
    (Path.home() / ".config" / "wandb").mkdir(parents=True)
    (Path.home() / ".config" / "wandb" / "settings").write_text("[default]\nmode = offline\n")
    assert wandb_mode("auto") == ("offline", "as asked for")
    keyed.delenv("WANDB_API_KEY")
    mode, reason = wandb_mode("online")
    assert mode == "offline" and "no API key" in reason


def test_key_is_found_where_wandb_keeps_it(clean):
    netrc, settings = Path.home() / ".netrc", Path.home() / ".config" / "wandb" / "settings"
    assert not has_key()
    clean.delenv("WANDB_BASE_URL")
    for machine, expected in (
        ("api.wandb.ai", True),
        ("api.forge.coreweave.com", True),
        ("github.com", False),
        ("127.0.0.1:9", False),
    ):
        netrc.write_text(f"machine {machine}\n  login user\n  password {KEY}\n")
        netrc.chmod(0o600)
        assert has_key() is expected, machine
    clean.setenv("WANDB_BASE_URL", REFUSED)
    assert has_key()
    netrc.write_text("machine machine\n garbage")
    assert not has_key()
    settings.parent.mkdir(parents=True)
    settings.write_text(f"[default]\napi_key = {KEY}\n")
    assert has_key()
    settings.write_text("no section\n")
    assert not has_key()
    clean.setenv("WANDB_API_KEY", KEY)
    assert has_key()


def test_a_user_without_a_home_has_no_key(clean):
    """As in a container of another user, or a job without an environment."""
    clean.delenv("HOME")
    for name in ("getpwuid", "getpwnam"):
        clean.setattr(f"pwd.{name}", lambda *_: {}["nobody"])
    with pytest.raises(RuntimeError):
        Path.home()
    assert not has_key() and wandb_mode() == ("offline", "no API key: set WANDB_API_KEY or run `wandb login`")

"""Which peers there are on this machine, and how to start them."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import pytest

HERE = Path(__file__).parent
NODE_MODULES = HERE / "node_modules"

HUB_PACKAGES = HERE.parent.parent / ".venv" / "hub"
"""Where `scripts/venv test` puts flask-websub: its wheel brings a package named `tests`, which would hide this one."""

DATASTAR = HERE.parent.parent / ".venv" / "datastar"
"""Where it puts starhtml, whose wheel has Datastar's script, with two changes of its own that are named in its first line."""

INSTALL_TIMEOUT = 50
"""Seconds; less than what one test may take, so that it is this that is told."""

CURL_OPTIONS = {"curl": (), "curl-h2c": ("--http2-prior-knowledge",)}

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


def missing(what: str) -> NoReturn:
    """Without this peer there is nothing to try: a failure where peers are required, else a skip."""
    if os.environ.get("SSEGATE_REQUIRE_PEERS"):
        pytest.fail(f"{what} (SSEGATE_REQUIRE_PEERS is set)", pytrace=False)
    pytest.skip(what)


def find_node() -> str:
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        missing("Node.js is missing; install it (Debian: apt-get install nodejs npm)")
    return node


def find_curl() -> str:
    return shutil.which("curl") or missing("curl is missing; install it (Debian: apt-get install curl)")


def find_nghttp2(name: str) -> str:
    return shutil.which(name) or missing(f"{name} is missing; install it (Debian: apt-get install nghttp2-client)")


def find_chromium() -> str:
    found = next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None)
    return found or missing("Chromium is missing; install it (Debian: apt-get install chromium)")


def websub_hub(algorithm: str) -> tuple[list[str | Path], dict[str, str]]:
    """The command of a WebSub hub that signs by this algorithm, and what its environment must have."""
    if not (HUB_PACKAGES / "flask_websub").is_dir():
        missing("flask-websub is missing; `scripts/venv test` installs it into .venv/hub")
    # Without the folder of the script in its path: what is in there has common names.
    return [sys.executable, "-P", HERE / "websub_hub.py", algorithm], {"PYTHONPATH": str(HUB_PACKAGES)}


def fakellm() -> list[str | Path]:
    """The command of a server that speaks as OpenAI's does."""
    if importlib.util.find_spec("fakellm") is None:
        missing("fakellm is missing; `scripts/venv test` installs it")
    return [sys.executable, "-P", HERE / "fakellm_server.py"]


def openai_client(url: str, question: str, way: str) -> list[str | Path]:
    """The command of OpenAI's client; see there for what it wants."""
    if importlib.util.find_spec("openai") is None:
        missing("openai is missing; `scripts/venv test` installs it")
    return [sys.executable, "-P", HERE / "openai_client.py", url, question, way]


def datastar() -> str:
    """Datastar's script, out of the wheel of starhtml."""
    file = DATASTAR / "starhtml/static/js/datastar-core.js"
    if not file.exists():
        missing("Datastar is missing; `scripts/venv test` installs it into .venv/datastar")
    return file.read_text()


def install_node_packages() -> None:
    """See that `node_modules` has what the lock file names. Two test runs at once do it one after the other."""
    find_node()
    with (Path(tempfile.gettempdir()) / f"ssegate-npm-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _are_installed():
            return
        try:
            subprocess.run(["npm", "ci"], cwd=HERE, capture_output=True, text=True, timeout=INSTALL_TIMEOUT, check=True)
        except subprocess.CalledProcessError as error:
            missing(f"`npm ci` in tests/clients failed; run it by hand to see why: {error.stderr[-800:]}")
        except subprocess.TimeoutExpired:
            missing(f"`npm ci` in tests/clients took longer than {INSTALL_TIMEOUT} s; run it by hand")


def _are_installed() -> bool:
    """npm leaves beside the packages a list of what it installed."""
    installed = NODE_MODULES / ".package-lock.json"
    if not installed.exists():
        return False
    wanted, found = (
        {
            name: package["version"]
            for name, package in json.loads(file.read_text())["packages"].items()
            if _counts(name, package)
        }
        for file in (HERE / "package-lock.json", installed)
    )
    return wanted.items() <= found.items()


def _counts(name: str, package: dict[str, object]) -> bool:
    """Optional packages are for other systems; the one without a name is this folder itself."""
    return bool(name) and not package.get("optional")


def client(name: str, url: str) -> list[str | Path]:
    """The command of one of the clients here."""
    if name in CURL_OPTIONS:
        find_curl()
        return [sys.executable, HERE / "curl_client.py", url, *CURL_OPTIONS[name]]
    if name == "httpx-sse":
        return [sys.executable, HERE / "httpx_sse_client.py", url]
    return [find_node(), HERE / f"{name}.mjs", url]

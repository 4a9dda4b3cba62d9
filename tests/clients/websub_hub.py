"""The hub of PyPI `flask-websub`, with a topic that it serves beside it. Run with its folder in `PYTHONPATH`; see `peers.py`.

Says `{"hub", "topic"}` first. A line `{"publish": text}` on standard input makes that the topic's content, and lets the hub tell
its subscribers; `{"subscribers": null}` is answered with who they are. Each call to a subscriber is told with its answer.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import threading
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
from flask import Flask, Response
from flask_websub.hub import Hub, SQLite3HubStorage
from werkzeug.serving import make_server

log = logging.getLogger(__name__)


class Tasks:
    """What the hub wants of Celery: `task` makes a function that `delay` runs in the background, where `retry` runs it again."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(4)

    def task(self, function: Any = None, bind: bool = False, max_retries: int = 3, **_: Any) -> Any:
        if function is None:
            return lambda given: self.task(given, bind=bind, max_retries=max_retries)

        def run(arguments: tuple[Any, ...], keywords: dict[str, Any], retries: int = 0) -> None:
            def retry(countdown: float) -> None:
                if retries < max_retries:
                    timer = threading.Timer(countdown, run, (arguments, keywords, retries + 1))
                    timer.daemon = True
                    timer.start()

            this = types.SimpleNamespace(request=types.SimpleNamespace(retries=retries), retry=retry)
            try:
                function(*((this,) if bind else ()), *arguments, **keywords)
            except Exception:
                log.exception("a task of the hub failed")

        function.delay = lambda *arguments, **keywords: self._pool.submit(run, arguments, keywords)
        return function


def say(**line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def tell_calls() -> None:
    """Let each request of the hub's be told: it has no hook for that."""
    send: Callable[..., requests.Response] = requests.Session.send

    def telling(session: requests.Session, request: requests.PreparedRequest, **keywords: Any) -> requests.Response:
        response = send(session, request, **keywords)
        signature = request.headers.get("X-Hub-Signature", "")
        say(call=request.method, url=request.url, signature=signature.partition("=")[0], status=response.status_code)
        return response

    requests.Session.send = telling  # type: ignore[method-assign]


def main(algorithm: str) -> None:
    app = Flask("hub")
    app.config.update(PUBLISH_SUPPORTED=True, HUB_MIN_LEASE_SECONDS=1)
    content = {"text": "{}"}
    with tempfile.TemporaryDirectory() as folder:
        storage = SQLite3HubStorage(f"{folder}/hub.db")
        hub = Hub(storage, Tasks(), SIGNATURE_ALGORITHM=algorithm, BACKOFF_BASE=0.2, MAX_ATTEMPTS=3, REQUEST_TIMEOUT=3)
        app.register_blueprint(hub.build_blueprint(url_prefix="/hub"))
        server = make_server("127.0.0.1", 0, app, threaded=True)
        base = f"http://127.0.0.1:{server.server_port}"

        @app.get("/topic")
        def topic() -> Response:
            links = f'<{base}/topic>; rel="self", <{base}/hub>; rel="hub"'
            return Response(content["text"], mimetype="application/json", headers={"Link": links})

        threading.Thread(target=server.serve_forever, daemon=True).start()
        tell_calls()
        say(hub=f"{base}/hub", topic=f"{base}/topic")
        for line in sys.stdin:
            asked = json.loads(line)
            if "publish" in asked:
                content["text"] = asked["publish"]
                hub.send_change_notification.delay(f"{base}/topic")
            else:
                found = storage.get_callbacks(f"{base}/topic")
                say(subscribers=[{"callback": callback, "secret": secret} for callback, secret in found])
        os._exit(0)  # its threads wait for nobody


main(sys.argv[1])

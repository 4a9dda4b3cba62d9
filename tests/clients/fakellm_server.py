"""PyPI `fakellm`, a server that speaks as OpenAI's does, on a port of the system's choice. Its rules are in `$FAKELLM_CONFIG`."""

from __future__ import annotations

import json
import socket

import uvicorn
from fakellm.server import app

with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])

"""ssegate puts live updates, as Server-Sent Events, in front of an HTTP API that knows nothing of them."""

__version__ = "0.1.0"

"""How ssegate talks to the API: connections, pool, limits, and the rules for what is passed on."""

from ssegate.upstream.fetch import FetchAnswer as FetchAnswer
from ssegate.upstream.relay import Relaying as Relaying
from ssegate.upstream.relay import Viewer as Viewer
from ssegate.upstream.upstream import Upstream as Upstream

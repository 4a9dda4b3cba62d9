"""What a route that joins topics may say: whose topics, and nothing that is theirs to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ssegate.config.document import Path
from ssegate.config.explain import did_you_mean
from ssegate.config.model import Route
from ssegate.config.tree import Tree
from ssegate.core.routing import PathPattern

_SHOWN = 5
"""So many paths are proposed where none is near."""


def has_names(route: Route) -> bool:
    """Whether each of its requests opens a stream of its own, that has a name."""
    request = route.stream or route.task
    return request is not None and not request.is_shared


def check_joined(path: Path, route: Route, placed: Sequence[tuple[Path, Route]], tree: Tree) -> None:
    """Note in the tree what is wrong with the `topics` of the route at this path of the file; `placed` are all routes."""
    if not tree.is_broken((*path, "path")) and PathPattern(route.path, allow_rest=True).parameters:
        message = (
            "a joined route's path has no parameters: the topics themselves are named in the query; leave them out"
        )
        tree.add((*path, "path"), "template", message)
    if route.topics is None or tree.is_broken((*path, "topics")):
        return
    others = _by_path([other for place, other in placed if place != path and not tree.is_broken((*place, "path"))])
    known = [name for name, routes in others.items() if any(not _why_not(each) for each in routes)]
    for index, name in enumerate(route.topics):
        place = (*path, "topics", index)
        said = "what `${…}` gave here" if tree.is_expanded(place) else f"`{name}`"
        if name in route.topics[:index]:
            tree.add(place, "value", f"{said} stands here twice; leave one out")
        elif name == route.path and name not in others:
            tree.add(place, "value", f"{said} is this route itself; name others")
        elif name not in others:
            if not any(tree.is_broken((*each, "path")) for each, _ in placed):  # it may be the one that is wrong
                hint = "" if tree.is_expanded(place) else did_you_mean(name, known)
                tree.add(place, "reference", f"{said} is the path of no route; {_proposed(known)}", hint)
        elif name not in known:
            tree.add(place, "value", f"{said} {_why_not(others[name][0])}")


def _by_path(routes: Sequence[Route]) -> Mapping[str, list[Route]]:
    found: dict[str, list[Route]] = {}
    for route in routes:
        found.setdefault(route.path, []).append(route)
    return found


def _why_not(route: Route) -> str:
    """Why a route's topics cannot be joined, with the mend; empty when they can."""
    if route.proxy is not None:
        return "passes requests to the upstream and has no topics; name a route with events"
    if route.topics is not None:
        return "joins topics itself; name the routes that it joins"
    if has_names(route):
        return "opens a stream of its own for each request, which nobody joins; leave it out"
    return ""


def _proposed(known: Sequence[str]) -> str:
    if not known:
        return "there is none that can be joined"
    more = ", …" if len(known) > _SHOWN else ""
    return f"write one of {', '.join(f'`{name}`' for name in known[:_SHOWN])}{more}, as it stands there"

"""`/metrics`: figures read when asked for, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class UpstreamFigures:
    """One upstream."""

    name: str
    polls: Mapping[str, int]
    """Answers by status, and `failed` for none."""
    failing: int
    """Topics that get nothing at the moment."""
    avoided: int
    """Requests that viewers would have made, had each polled for itself."""
    connections: Mapping[str, float]
    """See `Upstream.statistics`."""
    streams: Mapping[str, int] = field(default_factory=dict)
    """Streams opened, by the status of the answer, and `failed` for none."""


@dataclass(frozen=True, slots=True)
class SubscriptionFigures:
    """One subscription to a backend's webhooks."""

    path: str
    """The webhook's."""
    kind: str
    is_active: bool
    failures: int
    """Attempts that have failed since the start."""
    seconds: float | None
    """How long it lasts yet; None where it does not end, or is none."""


@dataclass(frozen=True, slots=True)
class GateFigures:
    """The gate: what is open now, and what has been since it began."""

    clients: int
    topics: int
    topics_watched: int
    events: int
    resets: int
    faults: int
    refused: Mapping[str, int]
    """Streams turned away, by reason."""
    denied: Mapping[tuple[str, int], int]
    """Requests that guards refused, by guard and by the status they were answered with."""
    ended: Mapping[str, int]
    """Streams whose right has ended, by reason."""
    rights: int
    """Credentials that streams are open under."""
    questions: Mapping[str, Mapping[str, int]]
    """What guards asked others, by guard and by the answer."""
    webhooks: Mapping[tuple[str, int], int]
    """Deliveries, by path and by the status they were answered with."""
    duplicates: Mapping[str, int]
    """Events of deliveries that had been taken before, by path."""
    subscriptions: tuple[SubscriptionFigures, ...]
    upstreams: tuple[UpstreamFigures, ...]


class LatencyFigures(Protocol):
    """A histogram: upper bounds in seconds, counts by bucket (one more than bounds), and the sum."""

    @property
    def bounds(self) -> tuple[float, ...]: ...
    @property
    def counts(self) -> list[int]: ...
    @property
    def total(self) -> float: ...


class EdgeFigures(Protocol):
    """What an edge can tell."""

    @property
    def latency(self) -> LatencyFigures: ...
    def statistics(self) -> Mapping[str, float]: ...


class Metrics(Collector):
    """Renders the figures of a gate and its edge."""

    def __init__(self, gate: Callable[[], GateFigures], edge: EdgeFigures) -> None:
        self._gate = gate
        self._edge = edge
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self) -> bytes:
        """All metrics as text."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """See `prometheus_client.registry.Collector`."""
        gate = self._gate()
        yield from _gate_metrics(gate)
        yield from _upstream_metrics(gate.upstreams)
        yield from _edge_metrics(self._edge)


def _gate_metrics(gate: GateFigures) -> Iterator[Metric]:
    yield GaugeMetricFamily("ssegate_streams", "Event streams open now.", value=gate.clients)
    yield GaugeMetricFamily("ssegate_topics", "Topics known now.", value=gate.topics)
    yield GaugeMetricFamily("ssegate_topics_watched", "Topics a source is at work for.", value=gate.topics_watched)
    yield CounterMetricFamily("ssegate_events", "Events that came, each counted once.", value=gate.events)
    yield CounterMetricFamily(
        "ssegate_resets", "Readers that could not be led on from their cursor.", value=gate.resets
    )
    yield CounterMetricFamily("ssegate_faults", "Outages told to viewers.", value=gate.faults)
    refused = CounterMetricFamily("ssegate_streams_refused", "Streams turned away for now.", labels=["reason"])
    for reason, count in gate.refused.items():
        refused.add_metric([reason], count)
    yield refused
    yield from _guard_metrics(gate)
    yield from _webhook_metrics(gate)


def _guard_metrics(gate: GateFigures) -> Iterator[Metric]:
    denied = CounterMetricFamily("ssegate_denials", "Requests that guards refused.", labels=["guard", "status"])
    for (guard, status), count in gate.denied.items():
        denied.add_metric([guard, str(status)], count)
    ended = CounterMetricFamily("ssegate_rights_ended", "Streams ended with their right.", labels=["reason"])
    for reason, count in gate.ended.items():
        ended.add_metric([reason], count)
    questions = CounterMetricFamily("ssegate_guard_questions", "Questions guards asked.", labels=["guard", "status"])
    for guard, outcomes in gate.questions.items():
        for outcome, count in outcomes.items():
            questions.add_metric([guard, outcome], count)
    rights = GaugeMetricFamily("ssegate_rights", "Credentials that streams are open under.", value=gate.rights)
    yield from (denied, ended, questions, rights)


def _webhook_metrics(gate: GateFigures) -> Iterator[Metric]:
    taken = CounterMetricFamily("ssegate_webhooks", "Deliveries of webhooks, by answer.", labels=["webhook", "status"])
    for (path, status), count in gate.webhooks.items():
        taken.add_metric([path, str(status)], count)
    duplicates = CounterMetricFamily(
        "ssegate_webhook_duplicates", "Events of deliveries that had been taken before.", labels=["webhook"]
    )
    for path, count in gate.duplicates.items():
        duplicates.add_metric([path], count)
    labels = ["webhook", "kind"]
    active = GaugeMetricFamily("ssegate_subscription_active", "1 while the backend sends webhooks here.", labels=labels)
    failures = CounterMetricFamily(
        "ssegate_subscription_failures", "Attempts to subscribe, or to renew, that failed.", labels=labels
    )
    lasts = GaugeMetricFamily("ssegate_subscription_seconds", "How long a subscription lasts yet.", labels=labels)
    for each in gate.subscriptions:
        active.add_metric([each.path, each.kind], each.is_active)
        failures.add_metric([each.path, each.kind], each.failures)
        if each.seconds is not None:
            lasts.add_metric([each.path, each.kind], each.seconds)
    yield from (taken, duplicates, active, failures, lasts)


def _upstream_metrics(upstreams: Iterable[UpstreamFigures]) -> Iterator[Metric]:
    polls = CounterMetricFamily("ssegate_polls", "Polls by answer.", labels=["upstream", "status"])
    share = GaugeMetricFamily(
        "ssegate_polls_304_share", "The part of polls answered 304, since the start.", labels=["upstream"]
    )
    failing = GaugeMetricFamily("ssegate_polls_failing", "Topics that get nothing at the moment.", labels=["upstream"])
    opened = CounterMetricFamily(
        "ssegate_upstream_streams_opened", "Streams of the upstream opened, by answer.", labels=["upstream", "status"]
    )
    avoided = CounterMetricFamily(
        "ssegate_upstream_requests_avoided",
        "Requests viewers would have made by polling themselves.",
        labels=["upstream"],
    )
    sent = CounterMetricFamily("ssegate_upstream_requests", "Requests sent, polls and others.", labels=["upstream"])
    connections = GaugeMetricFamily("ssegate_upstream_connections", "Connections.", labels=["upstream", "state"])
    waiting = GaugeMetricFamily("ssegate_upstream_waiting", "Requests waiting for their turn.", labels=["upstream"])
    for upstream in upstreams:
        name, held = upstream.name, upstream.connections
        for status, count in upstream.polls.items():
            polls.add_metric([name, status], count)
        total = sum(upstream.polls.values())
        share.add_metric([name], upstream.polls.get("304", 0) / total if total else 0)
        failing.add_metric([name], upstream.failing)
        avoided.add_metric([name], upstream.avoided)
        sent.add_metric([name], held["requests_sent"])
        connections.add_metric([name, "open"], held["connections_open"])
        connections.add_metric([name, "in_use"], held["connections_in_use"])
        connections.add_metric([name, "streaming"], held["streams_open"])
        for status, count in upstream.streams.items():
            opened.add_metric([name, status], count)
        waiting.add_metric([name], held["requests_waiting"])
    yield from (polls, share, failing, opened, avoided, sent, connections, waiting)


def _edge_metrics(edge: EdgeFigures) -> Iterator[Metric]:
    figures, latency = edge.statistics(), edge.latency
    yield CounterMetricFamily("ssegate_streams_opened", "Event streams opened.", value=figures["streams_opened"])
    yield CounterMetricFamily("ssegate_deliveries", "Writes of events to clients.", value=figures["deliveries"])
    yield CounterMetricFamily("ssegate_stream_bytes", "Bytes of event streams written.", value=figures["bytes"])
    yield CounterMetricFamily("ssegate_clients_stalled", "Clients dropped that took nothing.", value=figures["stalled"])
    yield CounterMetricFamily("ssegate_responses_cut", "Relayed responses the upstream cut.", value=figures["cut"])
    histogram = HistogramMetricFamily(
        "ssegate_change_to_client_seconds", "From a change known to its bytes handed over."
    )
    cumulated = list(accumulate(latency.counts))
    bounds = [*map(str, latency.bounds), "+Inf"]
    histogram.add_metric([], buckets=list(zip(bounds, cumulated, strict=True)), sum_value=latency.total)
    yield histogram

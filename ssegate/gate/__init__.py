"""The running whole: configuration, broker, sources, hub and edge joined."""

from ssegate.gate.gate import Gate as Gate

"""The HTTP side: turns connections into requests, and the gate's three answers into bytes."""

"""A toy legacy API, the gate before it, and a page that shows both."""

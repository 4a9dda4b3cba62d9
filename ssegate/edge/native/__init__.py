"""The gate's own edge: HTTP/1.1, HTTP/2 and TLS on sockets, without a server in between."""

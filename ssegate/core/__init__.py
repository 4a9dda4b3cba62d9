"""What decides: pure code without I/O, clocks, loggers, randomness or `async`."""

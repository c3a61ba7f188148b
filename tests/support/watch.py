"""What a program that uses redis-py can see of a connection's end: little, since the library opens a new one by itself."""

import redis


def code(error):
    """The first word of a server's error; the class of a client's own."""
    if isinstance(error, redis.ResponseError):
        words = str(error).split(" ", 1)
        # The library strips the codes that it knows, and has a class for each.
        return words[0] if words[0].isupper() else type(error).__name__
    return type(error).__name__


class Watch:
    """Counts how often a client's connections were replaced."""

    def __init__(self, pool):
        self._pool = pool
        self._ports = None
        self.closed = 0

    def look(self):
        ports = {
            connection._sock.getsockname()[1]
            for connection in [*self._pool._available_connections, *self._pool._in_use_connections]
            if connection._sock
        }
        if self._ports is not None and ports != self._ports:
            self.closed += 1
        self._ports = ports or self._ports

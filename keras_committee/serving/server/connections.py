"""Who may stay connected, and how long? Slow and idle clients make room for others."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from keras_committee.serving.server import json_answers
from keras_committee.serving.server.limits import Limits


class Connection(H11Protocol):
    """uvicorn's connection with a clock: for headers and body, for the whole of a request, and a limit to their number.

    Where there are too many, the one that has kept us waiting longest for its request is closed; where all are being
    answered, the new one gets 503.
    """

    def __init__(self, limits: Limits, **arguments: Any):
        super().__init__(**arguments)
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._answering = False
        self.waiting_since = self.loop.time()

    def connection_made(self, transport: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections and not self._make_room():
            self._refuse(503, f"more than {self._limits.connections} connections")
            return
        self._start(self._limits.read_timeout, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        asked = self.cycle is not None and not self.cycle.response_complete
        if asked and not self._answering:
            self._answering = True  # the body has a clock in the application; this one is for a client that never reads
            self._start(2 * self._limits.read_timeout + self._limits.deadline, self.transport.abort)
        elif not asked and self._timer is None:
            self._start(self._limits.read_timeout, self._too_slow)

    def on_response_complete(self) -> None:
        self._stop()
        self._answering = False
        self.waiting_since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """What h11 cannot read, as JSON; and nothing more where an answer is already under way."""
        within_headers = self.cycle is None or self.cycle.response_complete
        too_long = within_headers and len(self.conn.trailing_data[0]) > self._limits.header
        self._refuse(431 if too_long else 400, f"the headers exceed {self._limits.header} bytes" if too_long else msg)

    def waits(self) -> bool:
        """Whether the client owes us a request, or the rest of one."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def _make_room(self) -> bool:
        waiting = [each for each in self.connections if isinstance(each, Connection) and each.waits()]
        oldest = min((each for each in waiting if each is not self), key=lambda each: each.waiting_since, default=None)
        if oldest is not None:
            oldest.transport.abort()
            self.connections.discard(oldest)
        return oldest is not None

    def _too_slow(self) -> None:
        self._timer = None
        self._refuse(408, f"no request within {self._limits.read_timeout:g} s")

    def _refuse(self, status: int, message: str) -> None:
        body = json_answers.error(message).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        try:
            for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            pass  # an answer is under way, and ends here
        self.transport.close()

    def _start(self, seconds: float, then: Any) -> None:
        self._stop()
        self._timer = self.loop.call_later(seconds, then)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

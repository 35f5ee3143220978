"""uvicorn's connections, with an end for those that say nothing, too slowly or do not listen, and with a limit to their number."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 256  # connections at a time
HEAD = 10.0  # seconds for the head of a request, and for a body that nobody wants
UNREAD = 60.0  # seconds after which a client that takes nothing is left
TOO_MANY = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Connection(H11Protocol):
    """One connection. Every wait for its client has an end."""

    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        if len(self.connections) > MOST:
            transport.write(TOO_MANY)
            transport.close()
            return
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """A client has gone."""
        for timer in (self._timer, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Something has come."""
        super().data_received(data)
        if not self.transport.is_closing():
            self._watch()

    def on_response_complete(self) -> None:
        """A request was answered."""
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        """Whether we wait for the client: then the time runs, and no further byte prolongs it."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or (self.cycle is not None and not self._amid_request()):
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD, self._give_up)

    def _amid_request(self) -> bool:
        """Whether a part of a head has come, or of a body after the answer to it."""
        return self.conn.their_state is h11.SEND_BODY or bool(self.conn.trailing_data[0])

    def _give_up(self) -> None:
        self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing more has come after an answer."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(HEAD, self._give_up)

    def pause_writing(self) -> None:
        """The client does not take what it is sent."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(UNREAD, self._give_up)

    def resume_writing(self) -> None:
        """It takes it."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

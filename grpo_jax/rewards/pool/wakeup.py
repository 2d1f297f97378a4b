"""How one thread wakes another that waits for connections."""

from multiprocessing import Pipe


class WakeupPipe:
    """A pipe to oneself: `connection`, which a thread waits for beside others, is readable from `wake` to `drain`."""

    def __init__(self) -> None:
        self.connection, self._sender = Pipe(duplex=False)
        self._pending = False

    def wake(self) -> None:
        """Wake the waiting thread. It sees everything that was done before this call."""
        if not self._pending:  # one message is enough, and a pipe that is not read would fill up
            self._pending = True
            self._sender.send_bytes(b"")

    def drain(self) -> None:
        """Take the message. The woken thread calls this before it looks for work."""
        self.connection.recv_bytes()
        self._pending = False

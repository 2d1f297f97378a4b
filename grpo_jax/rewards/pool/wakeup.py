"""How one thread wakes another that waits for connections."""

from multiprocessing import Pipe


class Bell:
    """`connection` can be waited for beside others; it is readable from `ring` until `silence`."""

    def __init__(self) -> None:
        self.connection, self._rope = Pipe(duplex=False)
        self._rings = False

    def ring(self) -> None:
        """Wake the other thread, which then sees all that was done before."""
        if not self._rings:  # a pipe that nobody reads would be full one day
            self._rings = True
            self._rope.send_bytes(b"")

    def silence(self) -> None:
        """For the thread that was woken, before it looks what there is to do."""
        self.connection.recv_bytes()
        self._rings = False

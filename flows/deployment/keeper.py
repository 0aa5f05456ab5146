"""The keeper of the Prefect server that the sessions of a user in the foreground share.

    python -I -S keeper.py LISTENER_FD GATE_FD MEMBER_FD NEWS_FD TELL_FD SERVER_PID COMMAND...

It is the server's parent: it holds the socket at which the server is asked, has the server go on
when somebody connects while it stands still, starts it again when somebody connects after it has
died, tells each session who looks, and ends with the last of them. Run by a bare interpreter, so
that it takes little memory; it takes no CPU while it waits. Needs the standard library alone.
"""

import ctypes
import os
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress

AUTH_STRING = "PREFECT_SERVER_API_AUTH_STRING"
# As in autoexp/flows/concurrency/visits.py, which a bare interpreter does not find.
STARTED, ENDED = b"s", b"e"
_LARGEST = 4096
_BACKLOG = 128
NAME, SERVER = "autoexp-keeper", "autoexp-server"
"""What `ps` shows of the keeper, and of a server that was forked."""
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_ENDS_WITHIN_S = 10.0
# After a start that failed, or the second early end: each connection would cost another start.
_LASTS_S = 60.0
_LEAST_REFUSAL_S, _LONGEST_REFUSAL_S = 30.0, 3600.0


class Keeper:
    """Keeps the server for its members: each is a session at the other end of a socket."""

    def __init__(
        self,
        listener: socket.socket,
        gate: socket.socket,
        first: socket.socket,
        pipe: tuple[int, int],
        command: list[str],
        server: int,
    ) -> None:
        self._listener = listener
        self._gate = gate
        self._command = command
        self._members: set[socket.socket] = set()
        self._last: socket.socket | None = None
        """Who left last, and waits until the server has ended."""
        self._pid: int | None = server or None
        self._stands_still = False
        self._has_started = False
        self._started_at = 0.0
        self._early_ends = 0
        self._refuses_until: float | None = None
        self._libc = ctypes.CDLL(None)
        self._watched = selectors.DefaultSelector()
        self._news, self._tell = pipe
        self._children, self._wake = os.pipe()
        for descriptor in (self._news, self._tell, self._children, self._wake):
            os.set_blocking(descriptor, False)
        gate.setblocking(False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._watch(gate, self._let_in)
        self._watch(self._news, self._pass_on)
        self._watch(self._children, self._note_children)
        self._admit(first)

    def run(self) -> None:
        """Keep the server until the last member has left."""
        self._note_children()  # one that runs may have said something already
        self._need_server()
        while self._members:
            for key, _ in self._watched.select(self._patience_s):
                if self._members:
                    key.data()
            if self._refuses_until is not None and time.monotonic() >= self._refuses_until:
                self._listen()
        self._end()

    @property
    def _patience_s(self) -> float | None:
        if self._refuses_until is None:
            return None
        return max(0.0, self._refuses_until - time.monotonic())

    def _watch(self, what: socket.socket | int, act: Callable[[], None]) -> None:
        self._watched.register(what, selectors.EVENT_READ, act)

    # Members

    def _let_in(self) -> None:
        with suppress(OSError):
            member, _ = self._gate.accept()
            if uid_of(member) != os.geteuid():
                member.close()
                return
            auth_string = os.environ[AUTH_STRING].encode()
            socket.send_fds(member, [auth_string], [self._listener.fileno()])
            self._admit(member)
            self._need_server()

    def _admit(self, member: socket.socket) -> None:
        member.setblocking(False)
        self._members.add(member)
        self._watch(member, lambda: self._hear(member))

    def _hear(self, member: socket.socket) -> None:
        with suppress(BlockingIOError):
            try:
                said = member.recv(_LARGEST)
            except ConnectionError:
                said = b""
            if not said:
                self._leave(member)

    def _leave(self, member: socket.socket) -> None:
        self._watched.unregister(member)
        self._members.remove(member)
        if self._members:
            member.close()
        else:
            self._last = member

    def _pass_on(self) -> None:
        with suppress(BlockingIOError):
            news = os.read(self._news, _LARGEST)
            if STARTED in news:
                self._has_started = True
            self._say(news)

    def _say(self, news: bytes) -> None:
        for member in self._members:
            with suppress(OSError):  # it has enough to read already, or is about to leave
                member.send(news)

    # The server

    def _need_server(self) -> None:
        """Start a server if there is none, and have its socket listen."""
        if self._refuses_until is not None or self._pid is None:
            self._listen()
        if self._pid is None:
            self._start()

    def _listen(self) -> None:
        self._refuses_until = None
        self._listener.listen(_BACKLOG)
        if self._pid is None:
            self._await_connection()

    def _await_connection(self) -> None:
        if self._listener not in self._watched.get_map():
            self._watch(self._listener, self._answer)

    def _await_none(self) -> bool:
        """Leave connections to the server; False if they are already."""
        with suppress(KeyError):
            self._watched.unregister(self._listener)
            return True
        return False

    def _answer(self) -> None:
        """Somebody connects: the server goes on, or a new one starts."""
        if not self._await_none():
            return
        if self._pid is None:
            self._start()
        elif self._stands_still:
            self._stands_still = False
            os.kill(self._pid, signal.SIGCONT)

    def _start(self) -> None:
        self._has_started, self._started_at = False, time.monotonic()
        keeper, kept = os.getpid(), (self._listener.fileno(), self._tell)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
                for descriptor in kept:
                    os.set_inheritable(descriptor, True)
                if os.getppid() == keeper:
                    os.execv(self._command[0], [*self._command, *map(str, kept)])
            finally:
                os._exit(127)

    def _note_children(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._children, _LARGEST):
                pass
        while self._pid is not None:
            wanted = os.WSTOPPED | os.WEXITED | os.WNOHANG
            seen = os.waitid(os.P_PID, self._pid, wanted)
            if seen is None:
                return
            if seen.si_code == os.CLD_STOPPED:
                self._stands_still = True
                self._await_connection()
            else:
                self._note_end()

    def _note_end(self) -> None:
        self._pass_on()  # what it has said before
        self._pid, self._stands_still = None, False
        self._say(ENDED)
        has_lasted = time.monotonic() - self._started_at >= _LASTS_S
        self._early_ends = 0 if has_lasted else self._early_ends + 1
        if self._has_started and self._early_ends < 2:
            self._await_connection()
        else:
            self._refuse()

    def _refuse(self) -> None:
        """Refuse connections at once, for longer and longer."""
        refusal_s = min(_LEAST_REFUSAL_S * 2**self._early_ends, _LONGEST_REFUSAL_S)
        self._refuses_until = time.monotonic() + refusal_s
        self._await_none()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # the port stays taken

    def _end(self) -> None:
        """End the server, once it has written all it holds; who comes now begins anew."""
        self._gate.close()
        signal.set_wakeup_fd(-1)
        if self._pid is None:
            return
        for signum in (signal.SIGTERM, signal.SIGCONT):
            os.kill(self._pid, signum)
        deadline = time.monotonic() + _ENDS_WITHIN_S
        while os.waitpid(self._pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
                return
            time.sleep(0.02)


def name_process(name: str) -> None:
    """Have `ps` show this process by a name, as far as its arguments have room for it."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NAME, name.encode())
    with suppress(OSError, IndexError, ValueError), open("/proc/self/stat") as file:  # noqa: PTH123
        # Where the kernel finds the arguments: proc(5), arg_start and arg_end.
        begin, end = map(int, file.read().rpartition(")")[2].split()[45:47])
        if begin and end > begin:
            ctypes.memmove(
                begin, name.encode()[: end - begin - 1].ljust(end - begin, b"\0"), end - begin
            )


def uid_of(peer: socket.socket) -> int:
    """The user at the other end of a socket of this machine."""
    size = struct.calcsize("3i")
    return int(struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[1])


def main(arguments: list[str]) -> None:
    """Keep a server for whoever holds the other end of the first member's socket, and others."""
    name_process(NAME)
    *numbers, server = map(int, arguments[:6])
    listener, gate, first = (socket.socket(fileno=descriptor) for descriptor in numbers[:3])
    Keeper(listener, gate, first, (numbers[3], numbers[4]), arguments[6:], server).run()


if __name__ == "__main__":
    main(sys.argv[1:])

"""What holds for all tests, wherever they are started from."""

import signal


def pytest_configure() -> None:
    """A script's background ignores SIGINT, and so would whatever the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

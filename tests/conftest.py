"""What holds for all tests, wherever they are started from."""

import os
import signal
import sys
import tempfile

import pytest

# What tests share asserts too: its failures show values as theirs do.
pytest.register_assert_rewrite(
    *(f"tests.{name}" for name in ("core", "flows", "slurm", "fakes", "builders", "hostile")),
    *(f"tests.{name}" for name in ("killing", "patience", "processes", "sources")),
)

# Matrices are tiny here: threads of BLAS spin while they wait for each other, and a test that takes
# four seconds takes forty where somebody else is at work. Read when NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Where nothing that is compiled is kept, each process that a test starts compiles all of ours anew:
# more than half of what its imports cost.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Another Prefect of this user may have brought the database in ~/.prefect to another version: what
# is started here, on any of the workers, has one of its own, made once.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _prefect_home = tempfile.TemporaryDirectory(prefix="autoexp-tests-prefect-")
    os.environ["PREFECT_HOME"] = _prefect_home.name

# A script's background ignores SIGINT, and nohup SIGHUP: so would whatever the tests start.
for ignored, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, usual)


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one more than there are cores, for tests wait much of their time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 1 + (cores or 1)

"""What holds for all tests."""

import os
import signal

# Matrices are tiny here: threads of BLAS spin while they wait for each other, and a test that takes
# four seconds takes forty where somebody else is at work. Read when NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A script's background ignores SIGINT, and so would all that tests start there and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

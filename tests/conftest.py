"""What holds for all tests."""

import os

# Matrices are tiny here: threads of BLAS spin while they wait for each other, and a test that takes
# four seconds takes forty where somebody else is at work. Read when NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

"""Two test processes share the machine's cores, and so do the lessons and tools that they start."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # set before torch is imported
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

"""Settings that every test needs before torch is imported, and where real photographs lie if there are any."""

import os

# one thread: two test processes on two cores must not fight, and sums come out the same everywhere
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

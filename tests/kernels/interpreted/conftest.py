"""Tests of Triton kernels on CPU tensors, in Triton's interpreter: run by ../test_triton.py, or by

    TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted

Triton reads the variable once, so they have a process of their own and any other leaves them out.
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]

"""Triton kernels: functions on contiguous tensors that trust their arguments; the ops of `cpgr_kernels` check them.

Importing a module of this package imports Triton; importing the package does not. Modules whose name begins with an
underscore are shared by the others, which each hold kernels and `AOT_CASES`, the cases that are compiled ahead of time
in tests.
"""

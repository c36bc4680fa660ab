"""The kernels in other people's code, without editing it. Each module needs its own library; none is imported here."""

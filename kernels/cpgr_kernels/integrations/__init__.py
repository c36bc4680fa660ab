"""The kernels inside other people's libraries, one module a library; each imports its library when it is first used."""

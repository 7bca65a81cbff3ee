"""hostd: the daemon of a GPU machine. It admits clients and gives each its worker process.

Python decides, C++ moves bytes: no byte of a CUDA call passes through this package. `main` is the
only place where objects are wired; `core` decides and touches nothing; `adapters` touch the
machine, one file a port; `api` talks to clients and to the command line.
"""

"""gpupool: GPUs of one machine, shared by unmodified CUDA programs.

In a checkout this folder holds symbolic links to the source folders (`hostd`, `wire`, `controller`, `cli`, `guest`), so that
`import gpupool.hostd` works with the checkout on PYTHONPATH. In an installed package they are real folders.
"""

__version__ = "0.1.0"

"""The guest agent: makes a virtual machine's programs find the vGPU that its host gives it.

Python 3.8, standard library only: it runs on whatever the guest has. It needs no network and no
NVIDIA driver, and no byte of a CUDA call passes through it. docs/vms.md is for its users.
"""

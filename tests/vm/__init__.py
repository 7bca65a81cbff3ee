"""Real guests: QEMU without KVM, Debian's kernel, the host's own root read-only over 9p."""

"""What touches the machine, one file for each port of `hostd.core.ports`."""

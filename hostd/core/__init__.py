"""Pure decisions of hostd: no sockets, files, processes or clocks in here, only through `ports`."""

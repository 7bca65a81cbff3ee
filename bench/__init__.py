"""How fast forwarded programs are beside native ones: `gpupool bench`, and `./run demo`."""

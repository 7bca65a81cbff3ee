"""The `gpupool` command: one file a noun, `main` reads the command line."""

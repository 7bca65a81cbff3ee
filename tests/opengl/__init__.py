"""OpenGL through gpupool, against the same programs on the host's own OpenGL."""

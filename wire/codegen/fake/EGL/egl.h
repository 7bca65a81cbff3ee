/* The EGL types that cudaEGL.h mentions; the library itself is never needed. */
typedef int EGLint;

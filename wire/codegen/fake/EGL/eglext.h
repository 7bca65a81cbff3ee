/* The EGL types that cudaEGL.h mentions; the library itself is never needed. */
typedef void *EGLStreamKHR;
typedef void *EGLImageKHR;
typedef void *EGLSyncKHR;

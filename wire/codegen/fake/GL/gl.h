/* The OpenGL types that cudaGL.h mentions; the library itself is never needed. */
typedef unsigned int GLuint;
typedef unsigned int GLenum;

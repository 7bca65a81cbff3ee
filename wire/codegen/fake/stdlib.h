/* Stands in for the C library when the C parser reads cuda.h: only names matter there, no sizes. */
#ifndef GPUPOOL_CODEGEN_STDLIB_H
#define GPUPOOL_CODEGEN_STDLIB_H
typedef unsigned long size_t;
#endif

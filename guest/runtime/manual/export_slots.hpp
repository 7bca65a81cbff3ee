// The functions in the export tables (export_tables.cpp), named by what they do.
#pragma once

#include <cuda.h>

#include "guest/runtime/objects.hpp"
#include "wire/cpp/types.hpp"

namespace gpupool::guest::export_slots {

using StorageDestructor = void (*)(CUcontext context, void* key, void* value);

// 6bd5fb6c: what the runtime uses for itself. The extra arguments of the extended forms are link options of
// its own.
CUresult load_fatbin(CUmodule* module, const void* wrapper);
CUresult load_fatbin_extended(CUmodule* module, const void* wrapper, void* first, void* second, u32 third);
CUresult load_fatbin_from(const void* fatbin, CUmodule* module, void* first, void* second, u32 third);
CUresult primary_context(CUcontext* context, CUdevice device);
CUresult ignore_size(size_t bytes);
CUresult load_compilers();

// 42d85a81
CUresult current_context(CUcontext* context);

// a094798c: static, zeroed, writable memory
CUresult large_buffer(void** buffer, size_t* bytes);
CUresult small_buffer(void** buffer, size_t* bytes);

// c693336e: values kept with a context
CUresult storage_put(CUcontext context, void* key, void* value, StorageDestructor destructor);
CUresult storage_delete(CUcontext context, void* key);
CUresult storage_get(void** value, CUcontext context, void* key);

// 263e8860
CUresult query_hook(CUcontext context, u32* flag, void** out);
// A slot whose caller is known to cope with a refusal.
CUresult refuse();
CUresult succeed();

// 21318c60
CUresult blas_query(CUcontext context, u32* out);
CUresult blas_stream(CUcontext context, CUstream stream, Stream** resolved, int per_thread);
CUresult blas_stream_id(CUcontext context, Stream* resolved, u64* id);

// 6e163fbe
int fft_enumerate(CUcontext context, CUmodule module, void (*callback)(void*, CUfunction), void* user);

// 0ca50b8c
CUresult create_context(CUcontext* context, unsigned int flags, CUdevice device);

}  // namespace gpupool::guest::export_slots

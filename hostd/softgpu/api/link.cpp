// The linker. One input at a time: what it "links" is PTX, and the result is that PTX, checked.
// cuModuleLoadData takes it like any other image. Several inputs would need a real linker, so the second one
// is refused.
#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>

#include "hostd/softgpu/api/module.hpp"

namespace gpupool::softgpu {

namespace {

struct Linker {
  CUlinkState handle = nullptr;
  std::vector<CUjit_option> options;
  void** values =
      nullptr;  // the program's array: error logs are written through it until the linker is destroyed
  std::string ptx;
  bool complete = false;

  JitOptions jit() const { return {static_cast<u32>(options.size()), options.data(), values}; }
};

Registry<Linker, CUlinkState>& linkers() {
  static auto* registry = new Registry<Linker, CUlinkState>(15);
  return *registry;
}

void add(CUlinkState handle, CUjitInputType type, const void* data, size_t size) {
  const auto linker = linkers().get(handle);
  require(data != nullptr && size != 0 && !linker->complete);
  require(linker->ptx.empty(), CUDA_ERROR_NOT_SUPPORTED);
  switch (type) {
    case CU_JIT_INPUT_PTX: {
      const auto* text = static_cast<const char*>(data);
      const std::string copy(text, strnlen(text, size));  // the end need not be marked by a zero
      linker->ptx = ptx_of(copy.c_str(), linker->jit());
      return;
    }
    case CU_JIT_INPUT_FATBINARY:
      linker->ptx = ptx_of(data, linker->jit());
      return;
    case CU_JIT_INPUT_CUBIN:
      fail(CUDA_ERROR_NO_BINARY_FOR_GPU);
    default:
      fail(CUDA_ERROR_NOT_SUPPORTED);
  }
}

}  // namespace

GPUPOOL_CUDA CUresult cuLinkCreate_v2(unsigned int count, CUjit_option* options, void** values,
                                      CUlinkState* out) {
  return call([&] {
    require(out != nullptr && (count == 0 || (options != nullptr && values != nullptr)));
    current_context();
    auto linker = std::make_shared<Linker>();
    linker->options.assign(options, options + count);
    linker->values = values;
    *out = linkers().add(std::move(linker));
  });
}

GPUPOOL_CUDA CUresult cuLinkAddData_v2(CUlinkState handle, CUjitInputType type, void* data, size_t size,
                                       const char*, unsigned int, CUjit_option*, void**) {
  return call([&] { add(handle, type, data, size); });
}

GPUPOOL_CUDA CUresult cuLinkAddFile_v2(CUlinkState handle, CUjitInputType type, const char* path,
                                       unsigned int, CUjit_option*, void**) {
  return call([&] {
    require(path != nullptr);
    std::ifstream file(path, std::ios::binary);
    require(file.is_open(), CUDA_ERROR_FILE_NOT_FOUND);
    const std::string image{std::istreambuf_iterator<char>(file), {}};
    require(!file.bad(), CUDA_ERROR_FILE_NOT_FOUND);
    add(handle, type, image.data(), image.size());
  });
}

GPUPOOL_CUDA CUresult cuLinkComplete(CUlinkState handle, void** image, size_t* size) {
  return call([&] {
    require(image != nullptr);
    const auto linker = linkers().get(handle);
    require(!linker->ptx.empty());
    program_of(linker->ptx, linker->jit());
    linker->complete = true;
    *image = linker->ptx.data();  // valid until the linker is destroyed
    if (size != nullptr) *size = linker->ptx.size() + 1;
  });
}

GPUPOOL_CUDA CUresult cuLinkDestroy(CUlinkState handle) {
  return call([&] { require(linkers().take(handle) != nullptr, CUDA_ERROR_INVALID_HANDLE); });
}

}  // namespace gpupool::softgpu

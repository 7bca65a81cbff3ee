// What cannot be generated of texture references: colours are four numbers behind a plain pointer.
#include "guest/runtime/message.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest::api {

CUresult cuTexRefSetBorderColor(CUtexref reference, float* color) {
  if (reference == nullptr || color == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuTexRefSetBorderColor);
  call.put(reinterpret_cast<u64>(reference));
  for (int i = 0; i < 4; ++i) call.put(color[i]);
  return call.wait();
}

CUresult cuTexRefGetBorderColor(float* color, CUtexref reference) {
  if (reference == nullptr || color == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuTexRefGetBorderColor);
  call.put(reinterpret_cast<u64>(reference));
  const CUresult result = call.wait();
  for (int i = 0; i < 4 && result == CUDA_SUCCESS; ++i) color[i] = call.get<float>();
  return result;
}

}  // namespace gpupool::guest::api

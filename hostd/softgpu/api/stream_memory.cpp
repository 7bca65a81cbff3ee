// Stores to memory and waits on memory in stream order: cuStreamWriteValue, cuStreamWaitValue,
// cuStreamBatchMemOp.
#include <atomic>
#include <chrono>
#include <thread>

#include "hostd/softgpu/api/memory.hpp"
#include "hostd/softgpu/api/operations.hpp"

namespace gpupool::softgpu {

namespace {

constexpr u32 kWaitConditions = 3;  // GEQ, EQ, AND, NOR: the low two bits

bool satisfied(u64 seen, u64 value, u32 condition, bool wide) {
  switch (condition) {
    case CU_STREAM_WAIT_VALUE_EQ:
      return seen == value;
    case CU_STREAM_WAIT_VALUE_AND:
      return (seen & value) != 0;
    case CU_STREAM_WAIT_VALUE_NOR:
      return (~(seen | value) & (wide ? ~0ull : 0xffff'ffffull)) != 0;
    default:  // GEQ, cyclic as cuda.h defines it
      return wide ? static_cast<i64>(seen - value) >= 0
                  : static_cast<i32>(static_cast<u32>(seen) - static_cast<u32>(value)) >= 0;
  }
}

template <typename T>
u64 load(u64 address) {
  return std::atomic_ref<T>(*reinterpret_cast<T*>(address)).load(std::memory_order_acquire);
}

template <typename T>
void store(u64 address, u64 value) {
  std::atomic_ref<T>(*reinterpret_cast<T*>(address)).store(static_cast<T>(value), std::memory_order_release);
}

bool is_wide(CUstreamBatchMemOpType operation) {
  return operation == CU_STREAM_MEM_OP_WAIT_VALUE_64 || operation == CU_STREAM_MEM_OP_WRITE_VALUE_64;
}

// Polls memory that anybody may write: briefly at full speed, then with growing sleeps up to a millisecond.
// Ends without success when the context faults or goes away.
CUresult wait_value(const CUstreamBatchMemOpParams& step, const Context& context) {
  const bool wide = is_wide(step.operation);
  const u64 address = step.waitValue.address;
  const u64 value = wide ? step.waitValue.value64 : step.waitValue.value;
  const u32 condition = step.waitValue.flags & kWaitConditions;
  auto pause = std::chrono::microseconds(1);
  for (u32 round = 0;; ++round) {
    if (!memory_table().covers(address, wide ? 8 : 4)) return CUDA_ERROR_ILLEGAL_ADDRESS;
    if (satisfied(wide ? load<u64>(address) : load<u32>(address), value, condition, wide))
      return CUDA_SUCCESS;
    if (context.state() != CUDA_SUCCESS || context.destroyed.load()) return CUDA_SUCCESS;
    if (round < 64) {
      std::this_thread::yield();
      continue;
    }
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, std::chrono::microseconds(1000));
  }
}

CUresult write_value(const CUstreamBatchMemOpParams& step) {
  const bool wide = is_wide(step.operation);
  const u64 address = step.writeValue.address;
  if (!memory_table().covers(address, wide ? 8 : 4)) return CUDA_ERROR_ILLEGAL_ADDRESS;
  if (wide)
    store<u64>(address, step.writeValue.value64);
  else
    store<u32>(address, step.writeValue.value);
  return CUDA_SUCCESS;
}

void require_word(u64 address, u64 bytes) {
  require(address % bytes == 0);
  require_device_range(address, bytes);
}

CUstreamBatchMemOpParams make_step(CUstreamBatchMemOpType operation, u64 address, u64 value, u32 flags) {
  CUstreamBatchMemOpParams step{};
  step.operation = operation;
  step.writeValue.address = address;  // waitValue has the same layout
  step.writeValue.value64 = is_wide(operation) ? value : static_cast<u32>(value);
  step.writeValue.flags = flags;
  return step;
}

CUresult put(CUstream stream, CUstreamBatchMemOpType operation, u64 address, u64 value, u32 flags) {
  return call([&] {
    const CUstreamBatchMemOpParams step = make_step(operation, address, value, flags);
    put_on_stream(resolve_stream(stream), make_value_operation(&step, 1));
  });
}

}  // namespace

std::shared_ptr<ValueOperation> make_value_operation(const CUstreamBatchMemOpParams* steps, u32 count) {
  require(steps != nullptr && count != 0 && count <= 256);
  for (u32 i = 0; i < count; ++i) {
    const CUstreamBatchMemOpParams& step = steps[i];
    switch (step.operation) {
      case CU_STREAM_MEM_OP_WAIT_VALUE_32:
      case CU_STREAM_MEM_OP_WAIT_VALUE_64:
        require((step.waitValue.flags & ~(kWaitConditions | CU_STREAM_WAIT_VALUE_FLUSH)) == 0);
        require((step.waitValue.flags & CU_STREAM_WAIT_VALUE_FLUSH) == 0, CUDA_ERROR_NOT_SUPPORTED);
        require_word(step.waitValue.address, is_wide(step.operation) ? 8 : 4);
        break;
      case CU_STREAM_MEM_OP_WRITE_VALUE_32:
      case CU_STREAM_MEM_OP_WRITE_VALUE_64:
        require((step.writeValue.flags & ~static_cast<u32>(CU_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER)) == 0);
        require_word(step.writeValue.address, is_wide(step.operation) ? 8 : 4);
        break;
      case CU_STREAM_MEM_OP_BARRIER:
        break;  // every step here is ordered after the one before
      case CU_STREAM_MEM_OP_FLUSH_REMOTE_WRITES:
        fail(CUDA_ERROR_NOT_SUPPORTED);  // as the device attribute says
      default:
        fail(CUDA_ERROR_INVALID_VALUE);
    }
  }
  auto operation = std::make_shared<ValueOperation>();
  operation->steps.assign(steps, steps + count);
  return operation;
}

CUresult ValueOperation::run(Context& context) const {
  for (const CUstreamBatchMemOpParams& step : steps) {
    CUresult result = CUDA_SUCCESS;
    switch (step.operation) {
      case CU_STREAM_MEM_OP_WAIT_VALUE_32:
      case CU_STREAM_MEM_OP_WAIT_VALUE_64:
        result = wait_value(step, context);
        break;
      case CU_STREAM_MEM_OP_WRITE_VALUE_32:
      case CU_STREAM_MEM_OP_WRITE_VALUE_64:
        result = write_value(step);
        break;
      default:
        std::atomic_thread_fence(std::memory_order_seq_cst);
        break;
    }
    if (result != CUDA_SUCCESS) return result;
    if (context.state() != CUDA_SUCCESS || context.destroyed.load()) return CUDA_SUCCESS;
  }
  return CUDA_SUCCESS;
}

GPUPOOL_CUDA CUresult cuStreamWriteValue32_v2(CUstream stream, CUdeviceptr address, cuuint32_t value,
                                              unsigned int flags) {
  return put(stream, CU_STREAM_MEM_OP_WRITE_VALUE_32, address, value, flags);
}

GPUPOOL_CUDA CUresult cuStreamWriteValue64_v2(CUstream stream, CUdeviceptr address, cuuint64_t value,
                                              unsigned int flags) {
  return put(stream, CU_STREAM_MEM_OP_WRITE_VALUE_64, address, value, flags);
}

GPUPOOL_CUDA CUresult cuStreamWaitValue32_v2(CUstream stream, CUdeviceptr address, cuuint32_t value,
                                             unsigned int flags) {
  return put(stream, CU_STREAM_MEM_OP_WAIT_VALUE_32, address, value, flags);
}

GPUPOOL_CUDA CUresult cuStreamWaitValue64_v2(CUstream stream, CUdeviceptr address, cuuint64_t value,
                                             unsigned int flags) {
  return put(stream, CU_STREAM_MEM_OP_WAIT_VALUE_64, address, value, flags);
}

GPUPOOL_CUDA CUresult cuStreamBatchMemOp_v2(CUstream stream, unsigned int count,
                                            CUstreamBatchMemOpParams* steps, unsigned int flags) {
  return call([&] {
    require(flags == 0);
    put_on_stream(resolve_stream(stream), make_value_operation(steps, count));
  });
}

}  // namespace gpupool::softgpu

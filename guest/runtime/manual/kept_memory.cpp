#include "guest/runtime/manual/kept_memory.hpp"

#include <algorithm>
#include <mutex>
#include <set>
#include <vector>

#include "guest/runtime/manual/capture.hpp"
#include "guest/runtime/manual/context.hpp"
#include "guest/runtime/message.hpp"
#include "guest/runtime/thread_state.hpp"

namespace gpupool::guest {
namespace {

// So much may be missing to other sessions of the GPU. docs/memory.md says it.
constexpr u64 kMostBytes = 64u << 20;
constexpr size_t kMostBlocks = 256;

struct Block {
  Allocation allocation;
  Stream* stream = nullptr;  // where it was freed, for memory of a pool
};

// A list, newest last: programs free and allocate in much the same order, so the match is near the front.
struct Kept {
  std::mutex mutex;
  std::vector<Block> blocks;
  u64 bytes = 0;
  std::set<u64> never;  // by address
};

Kept& kept() {
  static auto& all = *new Kept();
  return all;
}

void free_in_worker(const Block& block) {
  const bool ordered = block.stream != nullptr && !block.stream->capturing.load(std::memory_order_acquire);
  const ScopedContext scope(block.allocation.context);
  // A stream that captures by now would take the call for a node of its graph.
  Call call(ordered ? wire::Function::cuMemFreeAsync : wire::Function::cuMemFree_v2);
  if (ordered) call.on(*block.stream);
  call.put<u64>(block.allocation.address);
  static_cast<void>(call.send());  // a session that has failed has nothing to free
}

// With the mutex held: removes what `which` says and returns it.
template <typename Which>
std::vector<Block> remove(Kept& all, const Which& which) {
  std::vector<Block> removed;
  std::erase_if(all.blocks, [&](const Block& block) {
    if (!which(block)) return false;
    all.bytes -= block.allocation.size;
    removed.push_back(block);
    return true;
  });
  g_kept_blocks.store(static_cast<u32>(all.blocks.size()), std::memory_order_release);
  return removed;
}

[[maybe_unused]] const bool kRegistered =
    at_context_end([](Context& context) { give_back_kept(nullptr, &context); });

}  // namespace

CUresult take_kept(Allocation& allocation, const Stream* stream, bool& found) {
  found = false;
  if (g_kept_blocks.load(std::memory_order_acquire) == 0) return CUDA_SUCCESS;
  // Waiting for the context, below, is not possible while one of its streams is captured.
  if (stream == nullptr && g_active_captures.load(std::memory_order_acquire) != 0) return CUDA_SUCCESS;
  {
    Kept& all = kept();
    const std::lock_guard lock(all.mutex);
    const auto match = std::ranges::find_if(all.blocks, [&](const Block& block) {
      const Allocation& has = block.allocation;
      return has.size == allocation.size && has.kind == allocation.kind &&
             has.context == allocation.context && has.pool == allocation.pool && block.stream == stream;
    });
    if (match == all.blocks.end()) return CUDA_SUCCESS;
    allocation.address = match->allocation.address;
    all.bytes -= match->allocation.size;
    all.blocks.erase(match);
    g_kept_blocks.store(static_cast<u32>(all.blocks.size()), std::memory_order_release);
  }
  found = true;
  if (stream != nullptr) return CUDA_SUCCESS;
  const CUresult result = Session::current()->synchronize(*allocation.context);
  if (result != CUDA_SUCCESS) free_in_worker({allocation, nullptr});
  return result;
}

bool keep_freed(const Allocation& allocation, Stream* stream) {
  std::vector<Block> too_many;
  {
    Kept& all = kept();
    const std::lock_guard lock(all.mutex);
    if (allocation.size > kMostBytes || all.never.erase(allocation.address) != 0) return false;
    all.blocks.push_back({allocation, stream});
    all.bytes += allocation.size;
    u64 excess = all.bytes > kMostBytes ? all.bytes - kMostBytes : 0;
    size_t surplus = all.blocks.size() > kMostBlocks ? 1 : 0;
    too_many = remove(all, [&](const Block& block) {  // the oldest
      if (excess == 0 && surplus == 0) return false;
      excess -= std::min(excess, block.allocation.size);
      surplus = 0;
      return true;
    });
  }
  for (const Block& block : too_many) free_in_worker(block);
  return true;
}

bool give_back_kept(const Stream* stream, const Context* context) {
  std::vector<Block> blocks;
  {
    Kept& all = kept();
    const std::lock_guard lock(all.mutex);
    blocks = remove(all, [&](const Block& block) {
      return (stream == nullptr || block.stream == stream) &&
             (context == nullptr || block.allocation.context == context);
    });
  }
  for (const Block& block : blocks) free_in_worker(block);
  return !blocks.empty();
}

void never_keep(u64 address) {
  Kept& all = kept();
  const std::lock_guard lock(all.mutex);
  all.never.insert(address);
}

}  // namespace gpupool::guest

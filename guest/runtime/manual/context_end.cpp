// What a program loses with its context: modules and memory. A destroyed context's would go with it in the
// worker too; a primary context lives on there, and the next retain must find it empty.
#include "guest/runtime/manual/address_space.hpp"
#include "guest/runtime/manual/context.hpp"
#include "guest/runtime/manual/memory.hpp"
#include "guest/runtime/manual/module.hpp"
#include "guest/runtime/message.hpp"

namespace gpupool::guest {
namespace {

void free_allocation(Session& session, const Allocation& allocation) {
  switch (allocation.kind) {
    case MemoryKind::device:
    case MemoryKind::stream_ordered: {
      Call call(wire::Function::cuMemFree_v2);
      call.put<u64>(allocation.address);
      static_cast<void>(call.send());  // a session that has failed has nothing to free
      return;
    }
    case MemoryKind::managed:
      forget_advice(allocation);
      [[fallthrough]];
    case MemoryKind::pinned:
      give_back(session, allocation);
      return;
    case MemoryKind::graph:
    case MemoryKind::graphics:
    case MemoryKind::mapped:
    case MemoryKind::global:
      return;  // not the context's, or gone with its module or graph
    case MemoryKind::imported:
      forget_imported(allocation);
      return;
    case MemoryKind::registered:
      static_cast<void>(unmap_registered(allocation));
      return;
  }
}

void free_modules_and_memory(Context& context) {
  unload_modules(context);
  Session* session = Session::current();
  for (const Allocation& allocation : address_space().take_context(&context))
    free_allocation(*session, allocation);
}

[[maybe_unused]] const bool kRegistered = at_context_end(&free_modules_and_memory);

}  // namespace
}  // namespace gpupool::guest

// Shared memory of the client's that it registers: the file behind it is mapped here at the client's own
// address and registered, so that the GPU reaches it under one address, as the window.
//
// The client keeps its rights on the file and may cut it short at any time; a touch of what is gone then ends
// this process, and this session only (bus_error() in main.cpp).
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <map>

#include "hostd/worker/log.hpp"
#include "hostd/worker/parcels.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

constexpr u64 kPage = 4096;
constexpr u64 kUserSpaceEnd = 1ull << 47;
constexpr size_t kMostMappings = 1024;

// By address. Only the dispatcher's thread comes here.
std::map<u64, u64>& host_mappings() {
  static thread_local std::map<u64, u64> mappings;
  return mappings;
}

// Only memory that is nothing but memory: pages of other file systems cannot be pinned for long, and reading
// them may wait for whoever serves the file system.
bool is_shared_memory(int fd, u64 bytes_needed) {
  struct stat facts {};
  struct statfs system {};
  if (fstat(fd, &facts) != 0 || fstatfs(fd, &system) != 0) return false;
  return S_ISREG(facts.st_mode) && static_cast<u64>(facts.st_size) >= bytes_needed &&
         (system.f_type == TMPFS_MAGIC || system.f_type == HUGETLBFS_MAGIC);
}

}  // namespace

// u64 address, u64 bytes, u64 offset in the file, u64 parcel. NOT_SUPPORTED: the client does without.
CUresult handle_host_map(Worker& worker, Request& request) {
  const auto address = request.in.get<u64>();
  const auto bytes = request.in.get<u64>();
  const auto offset = request.in.get<u64>();
  const auto parcel = request.in.get<u64>();
  request.in.finish();
  if (!worker.shared_memory || worker.bell_socket >= 0)
    throw wire::ProtocolError("host_map from another machine");
  const Descriptor file = worker.parcels.take(parcel);
  if (file.get() < 0) throw wire::ProtocolError("host_map names a descriptor that did not come");
  if ((address | bytes | offset) % kPage != 0 || bytes == 0 || bytes > kUserSpaceEnd ||
      address > kUserSpaceEnd - bytes || offset > kUserSpaceEnd)
    throw wire::ProtocolError("host_map outside user space");
  if (host_mappings().size() >= kMostMappings || !is_shared_memory(file.get(), offset + bytes))
    return CUDA_ERROR_NOT_SUPPORTED;
  // NOT_SUPPORTED: the client then copies, which pins nothing.
  if (!worker.pinned.take(worker.caps, address, bytes)) return CUDA_ERROR_NOT_SUPPORTED;
  auto* wanted = reinterpret_cast<void*>(address);
  void* got = mmap(wanted, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, file.get(),
                   static_cast<off_t>(offset));
  if (got == MAP_FAILED) {  // taken here, or the file may not be written to
    worker.pinned.give_back(address);
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  const CUresult result = got == wanted ? worker.register_host(wanted, bytes) : CUDA_ERROR_NOT_SUPPORTED;
  if (result != CUDA_SUCCESS) {
    munmap(got, bytes);
    worker.pinned.give_back(address);
    return result;
  }
  host_mappings()[address] = bytes;
  return CUDA_SUCCESS;
}

// u64 address
CUresult handle_host_unmap(Worker& worker, Request& request) {
  const auto address = request.in.get<u64>();
  request.in.finish();
  const auto mapping = host_mappings().find(address);
  if (mapping == host_mappings().end()) throw wire::ProtocolError("host_unmap of what is not mapped");
  const CUresult result = worker.unregister_host(reinterpret_cast<void*>(address));
  if (result == CUDA_SUCCESS) {
    munmap(reinterpret_cast<void*>(address), mapping->second);
    host_mappings().erase(mapping);
    worker.pinned.give_back(address);
  }
  return result;
}

}  // namespace gpupool::worker

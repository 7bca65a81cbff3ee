// What a client says of memory, arrays and textures that it wants is checked before the driver reads it.
#include <doctest/doctest.h>
#include <sys/mman.h>

#include <cstring>

#include "hostd/worker/dispatcher.hpp"
#include "wire/cpp/layout.hpp"
#include "wire/cpp/reader.hpp"

namespace gpupool::worker {
namespace {

using wire::Function;

int g_calls = 0;  // of the driver

template <typename T>
T with_enum(T properties, size_t offset, u32 number) {
  std::memcpy(reinterpret_cast<u8*>(&properties) + offset, &number, sizeof number);
  return properties;
}

class Session {
 public:
  Session() {
    g_calls = 0;
    worker.window = {static_cast<u8*>(mmap(nullptr, wire::kWindowMinBytes, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)),
                     wire::kWindowMinBytes};
    worker.devices = {0};
    worker.driver.cuMemCreate = [](CUmemGenericAllocationHandle* block, size_t,
                                   const CUmemAllocationProp* properties, unsigned long long) {
      CHECK(properties->win32HandleMetaData == nullptr);
      *block = static_cast<CUmemGenericAllocationHandle>(++g_calls);
      return CUDA_SUCCESS;
    };
    worker.driver.cuMemGetAllocationGranularity = [](size_t* granularity, const CUmemAllocationProp*,
                                                     CUmemAllocationGranularity_flags) {
      ++g_calls;
      *granularity = 4096;
      return CUDA_SUCCESS;
    };
    worker.driver.cuMemPoolCreate = [](CUmemoryPool* pool, const CUmemPoolProps* properties) {
      CHECK(properties->win32SecurityAttributes == nullptr);
      *pool = reinterpret_cast<CUmemoryPool>(static_cast<u64>(++g_calls));
      return CUDA_SUCCESS;
    };
    worker.driver.cuTexObjectCreate = [](CUtexObject* object, const CUDA_RESOURCE_DESC*,
                                         const CUDA_TEXTURE_DESC*, const CUDA_RESOURCE_VIEW_DESC*) {
      *object = static_cast<CUtexObject>(++g_calls);
      return CUDA_SUCCESS;
    };
    worker.driver.cuArrayCreate_v2 = [](CUarray* array, const CUDA_ARRAY_DESCRIPTOR*) {
      *array = reinterpret_cast<CUarray>(static_cast<u64>(++g_calls));
      return CUDA_SUCCESS;
    };
    worker.caps.scrub = false;
    worker.driver.cuGraphCreate = [](CUgraph* graph, unsigned) {
      *graph = reinterpret_cast<CUgraph>(u64{0x10});
      return CUDA_SUCCESS;
    };
    worker.driver.cuGraphAddMemAllocNode = [](CUgraphNode* node, CUgraph, const CUgraphNode*, size_t,
                                              CUDA_MEM_ALLOC_NODE_PARAMS* params) {
      CHECK(params->poolProps.win32SecurityAttributes == nullptr);
      *node = reinterpret_cast<CUgraphNode>(static_cast<u64>(++g_calls));
      return CUDA_SUCCESS;
    };
  }
  ~Session() { munmap(worker.window.base, worker.window.size); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  CUresult call(Function function, const wire::Writer& message) {
    wire::Slot slot{};
    slot.function = static_cast<u16>(function);
    slot.flags = wire::kReply;
    if (message.bytes().size() <= wire::kInlineBytes) {
      slot.inline_size = static_cast<u32>(message.bytes().size());
      std::memcpy(slot.payload, message.bytes().data(), slot.inline_size);
    } else {
      slot.flags |= wire::kBulkIn | wire::kPayloadInBulk;
      slot.bulk_offset = wire::kStagingOffset;
      slot.bulk_size = message.bytes().size();
      std::memcpy(worker.at(wire::kStagingOffset), message.bytes().data(), slot.bulk_size);
    }
    dispatcher.execute(slot, ticket_++);
    return static_cast<CUresult>(worker.window.reply(0).status);
  }

  CUresult create(const CUmemAllocationProp& properties) {
    wire::Writer message;
    message.put<u64>(1u << 21);
    message.put<u64>(0);
    message.put(properties);
    return call(Function::cuMemCreate, message);
  }
  CUresult granularity(const CUmemAllocationProp& properties) {
    wire::Writer message;
    message.put<u32>(CU_MEM_ALLOC_GRANULARITY_MINIMUM);
    message.put(properties);
    return call(Function::cuMemGetAllocationGranularity, message);
  }
  CUresult pool(const CUmemPoolProps& properties) {
    wire::Writer message;
    message.put(properties);
    return call(Function::cuMemPoolCreate, message);
  }
  CUresult array(const CUDA_ARRAY_DESCRIPTOR& shape) {
    wire::Writer message;
    message.put(wire::Handle::make(wire::HandleKind::array, 1, ++arrays_));
    message.put(shape);
    return call(Function::cuArrayCreate_v2, message);
  }
  CUresult texture(const CUDA_RESOURCE_DESC& resource, const CUDA_TEXTURE_DESC& sampling,
                   const CUDA_RESOURCE_VIEW_DESC& view) {
    wire::Writer message;
    message.put(resource);
    message.put(sampling);
    message.put<u32>(1);
    message.put(view);
    return call(Function::cuTexObjectCreate, message);
  }
  CUresult node(const CUmemPoolProps& properties, const CUmemAccessDesc& access) {
    REQUIRE(call(Function::cuGraphCreate, {}) == CUDA_SUCCESS);
    wire::Handle graph;
    std::memcpy(&graph, worker.window.reply(0).payload, sizeof graph);
    wire::Writer message;
    message.put(graph);
    message.put<u64>(0);  // dependencies
    message.put<u64>(0);  // their edges
    message.put(properties);
    message.put_array(&access, 1);
    message.put<u64>(4096);
    return call(Function::cuGraphAddMemAllocNode, message);
  }

  Worker worker;
  Dispatcher dispatcher{worker};

 private:
  u64 ticket_ = 0;
  u32 arrays_ = 0;
};

const CUmemAllocationProp kBlock{.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                 .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                                 .location = {CU_MEM_LOCATION_TYPE_DEVICE, {0}},
                                 .win32HandleMetaData = &g_calls,
                                 .allocFlags = {}};

CUmemPoolProps pool_properties() {
  CUmemPoolProps properties{};
  properties.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location = kBlock.location;
  properties.win32SecurityAttributes = &g_calls;
  return properties;
}

constexpr u32 kNoEnum = 0x8000'0000;

}  // namespace

TEST_CASE("blocks of memory are of a known kind") {
  Session session;
  CHECK(session.create(kBlock) == CUDA_SUCCESS);
  CHECK(session.granularity(kBlock) == CUDA_SUCCESS);
  CHECK(g_calls == 2);
  for (const size_t offset :
       {offsetof(CUmemAllocationProp, type), offsetof(CUmemAllocationProp, requestedHandleTypes)}) {
    CHECK(session.create(with_enum(kBlock, offset, kNoEnum)) == CUDA_ERROR_INVALID_VALUE);
    CHECK(session.granularity(with_enum(kBlock, offset, kNoEnum)) == CUDA_ERROR_INVALID_VALUE);
  }
  const auto elsewhere = with_enum(kBlock, offsetof(CUmemAllocationProp, location), kNoEnum);
  CHECK(session.create(elsewhere) == CUDA_ERROR_NOT_SUPPORTED);
  CHECK(g_calls == 2);
}

TEST_CASE("pools of memory are of a known kind") {
  Session session;
  const CUmemPoolProps good = pool_properties();
  CHECK(session.pool(good) == CUDA_SUCCESS);
  for (const size_t offset : {offsetof(CUmemPoolProps, allocType), offsetof(CUmemPoolProps, handleTypes)})
    CHECK(session.pool(with_enum(good, offset, kNoEnum)) == CUDA_ERROR_INVALID_VALUE);
  CHECK(g_calls == 1);
}

TEST_CASE("what a graph allocates is of a known kind, and open to devices in a known way") {
  Session session;
  const CUmemPoolProps good = pool_properties();
  const CUmemAccessDesc access{kBlock.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  CHECK(session.node(good, access) == CUDA_SUCCESS);
  CHECK(session.node(with_enum(good, offsetof(CUmemPoolProps, allocType), kNoEnum), access) ==
        CUDA_ERROR_INVALID_VALUE);
  CHECK(session.node(good, with_enum(access, offsetof(CUmemAccessDesc, flags), kNoEnum)) ==
        CUDA_ERROR_INVALID_VALUE);
  CHECK(g_calls == 1);
}

TEST_CASE("textures sample what they know in ways that exist") {
  Session session;
  CUDA_RESOURCE_DESC resource{};
  resource.resType = CU_RESOURCE_TYPE_LINEAR;
  const CUDA_TEXTURE_DESC sampling{};
  const CUDA_RESOURCE_VIEW_DESC view{};
  CHECK(session.texture(resource, sampling, view) == CUDA_SUCCESS);
  for (const size_t offset :
       {offsetof(CUDA_TEXTURE_DESC, addressMode) + 2 * sizeof(u32), offsetof(CUDA_TEXTURE_DESC, filterMode),
        offsetof(CUDA_TEXTURE_DESC, mipmapFilterMode)})
    CHECK(session.texture(resource, with_enum(sampling, offset, 257), view) == CUDA_ERROR_INVALID_VALUE);
  CHECK(
      session.texture(resource, sampling, with_enum(view, offsetof(CUDA_RESOURCE_VIEW_DESC, format), 257)) ==
      CUDA_ERROR_INVALID_VALUE);
  CHECK_THROWS_AS(
      session.texture(with_enum(resource, offsetof(CUDA_RESOURCE_DESC, resType), 257), sampling, view),
      wire::ProtocolError);
  CHECK(g_calls == 1);
}

TEST_CASE("arrays have a format") {
  Session session;
  const CUDA_ARRAY_DESCRIPTOR shape{4, 4, CU_AD_FORMAT_FLOAT, 1};
  CHECK(session.array(shape) == CUDA_SUCCESS);
  CHECK(session.array(with_enum(shape, offsetof(CUDA_ARRAY_DESCRIPTOR, Format), kNoEnum)) ==
        CUDA_ERROR_INVALID_VALUE);
  CHECK(g_calls == 1);
}

}  // namespace gpupool::worker

// Target: the account of a vGPU's memory, by what a client can make its worker ask of the driver. The input
// is a sequence of calls on the software GPU, through the table in which the account stands before the
// driver: any order and any sizes, addresses that were never given out, things that are freed twice, a quota
// that hostd changes meanwhile, a second worker of the same vGPU that takes and gives back, and one that has
// been taken over and lies. Handles are right, as the tables of handles see to that (fuzz_session). What must
// hold:
//  - the row of the session is what the session counts, and nobody else's row is touched;
//  - memory and arrays count as what was asked for, and are given only within the quota;
//  - when everything has been given back nothing is charged.
// The software GPU has no mipmapped arrays; they are counted as arrays are.
#include <map>
#include <vector>

#include "hostd/worker/array_bytes.hpp"
#include "hostd/worker/memory_account.hpp"
#include "hostd/worker/memory_ledger.hpp"
#include "tests/fuzz/quota_world.hpp"

using namespace gpupool;
using namespace gpupool::fuzz;

namespace {

constexpr u32 kMostSteps = 48;

struct Stream {
  wire::Handle handle;
  CUstream stream;
};

struct Mapping {
  CUdeviceptr address;
  u64 size;
};

class Play {
 public:
  Play(World& world, Input& input) : world_(world), driver_(world.worker.driver), input_(input) {
    for (u32 device = 0; device < kDevices; ++device) limit(device, (device == 0 ? 4 : 8) * kMib);
    enter(0);
    make_stream();
  }

  void run() {
    for (u32 step = 0; step < kMostSteps && !input_.empty(); ++step) {
      one();
      check();
    }
  }

  void give_back() {
    for (u32 device = 0; device < kDevices; ++device) {
      enter(device);
      driver_.cuCtxSynchronize();
    }
    for (const CUdeviceptr address : of_graphs_) driver_.cuMemFree_v2(address);  // as far as launches took it
    for (CUgraphExec exec : execs_) driver_.cuGraphExecDestroy(exec);
    for (CUgraph graph : graphs_) driver_.cuGraphDestroy(graph);
    for (const auto& [address, bytes] : linear_) driver_.cuMemFree_v2(address);
    for (const CUdeviceptr address : ordered_) driver_.cuMemFreeAsync(address, nullptr);
    for (const auto& [array, bytes] : arrays_) driver_.cuArrayDestroy(array);
    linear_.clear();
    arrays_.clear();
    for (const Mapping& one : mapped_) driver_.cuMemUnmap(one.address, one.size);
    for (const Mapping& one : reserved_) driver_.cuMemAddressFree(one.address, one.size);
    for (const CUmemGenericAllocationHandle block : blocks_) driver_.cuMemRelease(block);
    for (u8 token = 0; token < 4; ++token) export_dropped(token_of(token));
    for (u32 device = 0; device < kDevices; ++device) {
      enter(device);
      driver_.cuCtxSetLimit(CU_LIMIT_MALLOC_HEAP_SIZE, 0);
      driver_.cuCtxSynchronize();
    }
    for (CUmemoryPool pool : pools_) driver_.cuMemPoolDestroy(pool);
    while (!streams_.empty()) end_stream(&streams_.back());
    for (u32 device = 0; device < kDevices; ++device) {
      limit(device, 16 * kMib);
      world_.other[device].give_back(~u64{0});
      world_.account[device]->row[kLiar].bytes.store(0);
      enter(device);
      driver_.cuCtxSynchronize();
      driver_.cuDeviceGraphMemTrim(static_cast<CUdevice>(device));
      CUmemoryPool standard = nullptr;
      driver_.cuDeviceGetDefaultMemPool(&standard, static_cast<CUdevice>(device));
      driver_.cuMemPoolTrimTo(standard, 0);
      size_t left = 0;
      size_t all = 0;
      driver_.cuMemGetInfo_v2(&left, &all);
      check();
      require(world_.worker.memory[device].own_bytes() == 0, "something is charged and nothing is there");
    }
  }

 private:
  void enter(u32 device) {
    device_ = device;
    driver_.cuCtxSetCurrent(world_.contexts[device]);
  }
  void limit(u32 device, u64 bytes) { world_.quota.vgpu[device].memory_bytes.store(bytes); }
  [[nodiscard]] u64 limit() const { return world_.worker.memory[device_].limit_bytes(); }
  template <typename T>
  T* some(std::vector<T>& of) {
    const u8 which = input_.byte();
    return of.empty() ? nullptr : &of[which % of.size()];
  }
  template <typename T>
  static void drop(std::vector<T>& of, T* one) {
    of.erase(of.begin() + (one - of.data()));
  }
  CUstream stream() {
    const u8 which = input_.byte();
    return which % 4 == 0 || streams_.empty() ? nullptr : streams_[which % streams_.size()].stream;
  }
  // The account looks at the streams that the worker knows.
  void make_stream() {
    StreamEntry entry;
    if (driver_.cuStreamCreate(&entry.stream, CU_STREAM_NON_BLOCKING) != CUDA_SUCCESS) return;
    const auto handle = wire::Handle::make(wire::HandleKind::stream, 1, ++made_streams_);
    world_.worker.streams.put(handle, entry);
    streams_.push_back({handle, entry.stream});
  }
  void end_stream(Stream* one) {
    world_.worker.streams.take(one->handle);
    driver_.cuStreamDestroy_v2(one->stream);
    drop(streams_, one);
  }
  static wire::ShareToken token_of(u8 number) {
    wire::ShareToken token{};
    token.bytes[0] = number;
    return token;
  }
  // One that was given out, or was given back already, or is no address at all, or in the middle of one.
  CUdeviceptr address() {
    const u8 kind = input_.byte();
    if (known_.empty() || kind >= 250) return input_.number();
    return known_[kind % known_.size()] + (kind >= 240 ? input_.byte() : 0u);
  }

  // What memory and arrays that are there count for on a device.
  [[nodiscard]] u64 plain(u32 device) const {
    u64 sum = 0;
    for (const auto& [address, on] : linear_) sum += on.first == device ? on.second : 0;
    for (const auto& [array, on] : arrays_) sum += on.first == device ? on.second : 0;
    return sum;
  }

  void check() {
    for (u32 device = 0; device < kDevices; ++device) {
      const AccountPage& page = *world_.account[device];
      const u64 own = world_.worker.memory[device].own_bytes();
      require(page.row[kOurs].bytes.load() == own, "the row is not what is counted");
      require(page.row[kOurs].reserving.load() == 0, "the row is left undecided");
      require(page.row[kOther].bytes.load() == world_.other[device].own_bytes(), "another's row was touched");
      require(world_.worker.usage->device[device].memory_bytes.load() == own, "hostd is told something else");
      if (only_plain_) require(own == plain(device), "memory and arrays do not add up");
      require(own >= plain(device), "less is charged than is there");
    }
  }

  void given(u64 before) {
    const u64 most = limit();
    if (most == 0 || world_.worker.memory[device_].own_bytes() <= before) return;
    if (only_plain_)
      require(world_.worker.memory[device_].all_bytes() <= most, "more than the quota was given");
  }

  void one() {
    const u64 before = world_.worker.memory[device_].own_bytes();
    switch (input_.byte() % 24) {
      case 0:
      case 1:
        return allocate(before);
      case 2:
      case 3:
        return free_one();
      case 4:
      case 6:
        return make_array(before);
      case 5:
        if (!arrays_.empty()) {
          const auto at = std::next(arrays_.begin(), input_.byte() % static_cast<int>(arrays_.size()));
          driver_.cuArrayDestroy(at->first);
          arrays_.erase(at);
        }
        return;
      case 7:
      case 8:
        return allocate_ordered();
      case 9: {
        only_plain_ = false;
        const CUdeviceptr at = address();
        if (driver_.cuMemFreeAsync(at, stream()) == CUDA_SUCCESS) gone(at);
        return;
      }
      case 10:
        return pool();
      case 11:
        return block();
      case 12:
        return map();
      case 13:
        return graph();
      case 14:
        return run_graph();
      case 15:
        return streams();
      case 16: {
        size_t left = 0;
        size_t all = 0;
        if (driver_.cuMemGetInfo_v2(&left, &all) == CUDA_SUCCESS)
          require(left <= all, "more is left than there is");
        return;
      }
      case 17:
        if (driver_.cuCtxSetLimit(CU_LIMIT_MALLOC_HEAP_SIZE, input_.size() % (16 * kMib)) == CUDA_SUCCESS)
          only_plain_ = false;
        return;
      case 18:
        return limit(device_, input_.byte() < 40 ? 0 : input_.size());
      case 19:
        if (!world_.other[device_].reserve(input_.size())) return;
        return require(limit() == 0 || world_.other[device_].all_bytes() <= limit(),
                       "the other got too much");
      case 20:
        return world_.other[device_].give_back(input_.size());
      case 21:
        return world_.account[device_]->row[kLiar].bytes.store(input_.byte() < 128 ? 0 : input_.size());
      case 22:
        return look_at_idle_memory();
      default:
        return enter(input_.byte() % kDevices);
    }
  }

  void gone(CUdeviceptr at) {
    linear_.erase(at);
    std::erase(ordered_, at);
  }

  void allocate(u64 before) {
    const u64 bytes = input_.size();
    CUdeviceptr made = 0;
    if (driver_.cuMemAlloc_v2(&made, bytes) != CUDA_SUCCESS) return;
    gone(made);
    linear_[made] = {device_, in_granules(bytes)};
    known_.push_back(made);
    given(before);
  }

  void free_one() {
    const CUdeviceptr at = address();
    if (driver_.cuMemFree_v2(at) == CUDA_SUCCESS) gone(at);
  }

  void make_array(u64 before) {
    CUDA_ARRAY3D_DESCRIPTOR shape{};
    shape.Width = input_.size();
    shape.Height = input_.byte() < 128 ? 0 : input_.size();
    shape.Depth = input_.byte() < 200 ? 0 : input_.size();
    shape.Format = input_.byte() < 128 ? CU_AD_FORMAT_FLOAT : CU_AD_FORMAT_UNSIGNED_INT8;
    shape.NumChannels = 1u << input_.byte() % 3;
    CUarray made = nullptr;
    const bool flat = input_.byte() < 100 && shape.Depth == 0;
    const CUDA_ARRAY_DESCRIPTOR plane{shape.Width, shape.Height, shape.Format, shape.NumChannels};
    const CUresult result =
        flat ? driver_.cuArrayCreate_v2(&made, &plane) : driver_.cuArray3DCreate_v2(&made, &shape);
    if (result != CUDA_SUCCESS) return;
    arrays_[made] = {device_, in_granules(array_bytes(shape))};
    given(before);
  }

  void allocate_ordered() {
    only_plain_ = false;
    const u64 bytes = input_.size();
    CUmemoryPool* from = input_.byte() < 100 ? some(pools_) : nullptr;
    CUdeviceptr made = 0;
    const CUresult result = from == nullptr ? driver_.cuMemAllocAsync(&made, bytes, stream())
                                            : driver_.cuMemAllocFromPoolAsync(&made, bytes, *from, stream());
    if (result != CUDA_SUCCESS) return;
    gone(made);
    ordered_.push_back(made);
    known_.push_back(made);
  }

  void pool() {
    only_plain_ = false;
    CUmemoryPool* one = some(pools_);
    const u8 what = input_.byte();
    if (one != nullptr && what < 80) {
      driver_.cuMemPoolTrimTo(*one, input_.size());
    } else if (one != nullptr && what < 160) {
      driver_.cuMemPoolDestroy(*one);
      drop(pools_, one);
    } else if (one != nullptr && what < 200) {
      cuuint64_t keep = input_.size();
      driver_.cuMemPoolSetAttribute(*one, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keep);
    } else {
      CUmemPoolProps properties{};
      properties.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
      properties.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = what % static_cast<int>(kDevices)};
      CUmemoryPool made = nullptr;
      if (driver_.cuMemPoolCreate(&made, &properties) == CUDA_SUCCESS) pools_.push_back(made);
    }
  }

  void block() {
    only_plain_ = false;
    CUmemGenericAllocationHandle* one = some(blocks_);
    const u8 what = input_.byte();
    if (one != nullptr && what < 100) {
      driver_.cuMemRelease(*one);
      return drop(blocks_, one);
    }
    if (one != nullptr && what < 130) return block_exported(*one, token_of(what % 4));
    if (what < 140) return export_dropped(token_of(what % 4));
    CUmemGenericAllocationHandle made = 0;
    if (what < 170) {  // another handle of one that is mapped
      const CUdeviceptr at = mapped_.empty() ? address() : mapped_[what % mapped_.size()].address;
      if (driver_.cuMemRetainAllocationHandle(&made, reinterpret_cast<void*>(at)) == CUDA_SUCCESS)
        blocks_.push_back(made);
      return;
    }
    CUmemAllocationProp properties{};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = what % static_cast<int>(kDevices)};
    const u64 bytes = input_.byte() < 220 ? (u64{input_.byte()} % 4 + 1) * 2 * kMib : input_.size();
    if (driver_.cuMemCreate(&made, bytes, &properties, 0) == CUDA_SUCCESS) blocks_.push_back(made);
  }

  void map() {
    only_plain_ = false;
    CUmemGenericAllocationHandle* one = some(blocks_);
    const u8 what = input_.byte();
    if (what < 100 && !mapped_.empty()) {
      Mapping& gone = mapped_[what % mapped_.size()];
      const u64 size = what < 80 ? gone.size : input_.size();
      if (driver_.cuMemUnmap(gone.address, size) == CUDA_SUCCESS && size == gone.size) drop(mapped_, &gone);
      return;
    }
    const u64 size = (u64{input_.byte()} % 4 + 1) * 2 * kMib;
    if (reserved_.empty() || what < 150) {
      CUdeviceptr made = 0;
      if (driver_.cuMemAddressReserve(&made, size, 0, 0, 0) == CUDA_SUCCESS)
        reserved_.push_back({made, size});
      return;
    }
    if (one == nullptr) return;
    const CUdeviceptr at = what > 250 ? address() : reserved_[what % reserved_.size()].address;
    const u64 offset = what > 245 ? input_.size() : 0;
    if (driver_.cuMemMap(at, size, offset, *one, 0) == CUDA_SUCCESS) mapped_.push_back({at, size});
  }

  void graph() {
    only_plain_ = false;
    CUgraph* one = some(graphs_);
    const u8 what = input_.byte();
    if (one == nullptr || what < 60) {
      CUgraph made = nullptr;
      if (driver_.cuGraphCreate(&made, 0) == CUDA_SUCCESS) graphs_.push_back(made);
      return;
    }
    if (what < 180) {
      CUDA_MEM_ALLOC_NODE_PARAMS params{};
      params.poolProps.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
      params.poolProps.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE,
                                   .id = what % static_cast<int>(kDevices)};
      params.bytesize = input_.size();
      CUgraphNode node = nullptr;
      if (driver_.cuGraphAddMemAllocNode(&node, *one, nullptr, 0, &params) != CUDA_SUCCESS) return;
      gone(params.dptr);
      of_graphs_.push_back(params.dptr);
      known_.push_back(params.dptr);
      return;
    }
    if (what < 240) {
      CUDA_GRAPH_INSTANTIATE_PARAMS params{};
      params.flags = what < 210 ? CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH : 0;
      CUgraphExec made = nullptr;
      if (driver_.cuGraphInstantiateWithParams(&made, *one, &params) == CUDA_SUCCESS) execs_.push_back(made);
      return;
    }
    driver_.cuGraphDestroy(*one);
    drop(graphs_, one);
  }

  void run_graph() {
    CUgraphExec* one = some(execs_);
    const u8 what = input_.byte();
    if (one == nullptr) return;
    if (what < 120) {
      driver_.cuGraphLaunch(*one, stream());
    } else if (what < 160) {
      driver_.cuGraphUpload(*one, stream());
    } else if (what < 200) {
      driver_.cuDeviceGraphMemTrim(static_cast<CUdevice>(device_));
    } else {
      driver_.cuGraphExecDestroy(*one);
      drop(execs_, one);
    }
  }

  void streams() {
    Stream* one = some(streams_);
    const u8 what = input_.byte();
    if (one == nullptr || (what < 60 && streams_.size() < 4)) {
      make_stream();
    } else if (what < 180) {
      driver_.cuStreamSynchronize(one->stream);
    } else {
      end_stream(one);
    }
  }

  using On = std::pair<u32, u64>;  // device, bytes

  World& world_;
  const DriverApi& driver_;
  Input& input_;
  u32 device_ = 0;
  bool only_plain_ = true;  // nothing but memory and arrays so far: the sum is known exactly
  std::map<CUdeviceptr, On> linear_;
  std::map<CUarray, On> arrays_;
  std::vector<CUdeviceptr> known_, ordered_, of_graphs_;
  std::vector<Stream> streams_;
  u32 made_streams_ = 0;
  std::vector<CUmemoryPool> pools_;
  std::vector<CUmemGenericAllocationHandle> blocks_;
  std::vector<Mapping> reserved_, mapped_;
  std::vector<CUgraph> graphs_;
  std::vector<CUgraphExec> execs_;
};

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name
extern "C" int LLVMFuzzerTestOneInput(const u8* data, size_t size) {
  static auto& world = *new World();
  Input input(data, size);
  Play play(world, input);
  play.run();
  play.give_back();
  return 0;
}

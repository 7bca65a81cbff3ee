// Calls the generated entry points of the toy API; each goes through its stub, its message and its handler to
// a driver made of the functions below. Prints the first thing that is not as it must be and returns 1.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "fuzz_entries.hpp"
#include "guest/runtime/gate.hpp"
#include "guest/runtime/message.hpp"
#include "guest/runtime/profile.hpp"
#include "guest/runtime/session.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"
#include "guest_proc_table.hpp"
#include "worker_dispatch.hpp"
#include "worker_manual.hpp"

extern "C" CUresult cuToyHidden();
extern "C" unsigned cuToyFlag;

using namespace gpupool;  // a test of generated names

namespace {

worker::Worker g_worker;
guest::Session g_session;
bool g_connected = false;
CUresult g_failed = CUDA_SUCCESS;
std::string g_seen;
const char* g_unsupported = "";
std::string g_failure;
wire::Handle g_stream;
int g_per_thread = 0;

void check(bool good, int line, const char* what) {
  if (good) return;
  std::printf("line %d: %s; driver saw \"%s\"\n", line, what, g_seen.c_str());
  std::exit(1);
}
#define CHECK(condition) check(condition, __LINE__, #condition)

template <typename T>
T pointer(unsigned long value) {
  return reinterpret_cast<T>(value);
}

CUresult toy_device_limit(size_t* value, CUtoyLimit limit, CUdevice device) {
  *value = 1000 + static_cast<size_t>(limit) * 10 + static_cast<size_t>(device);
  return CUDA_SUCCESS;
}
CUresult toy_fill(CUdeviceptr dst, unsigned char value, size_t bytes, CUstream) {
  g_seen = std::to_string(dst) + " " + std::to_string(value) + " " + std::to_string(bytes);
  return CUDA_SUCCESS;
}
CUresult toy_find(CUdeviceptr* address, size_t* bytes, CUmodule module, const char* name) {
  g_seen = std::string(name) + (module == pointer<CUmodule>(0x10) ? " in m" : " in ?");
  if (address != nullptr) *address = 77;
  if (bytes != nullptr) *bytes = 88;
  return CUDA_SUCCESS;
}
CUresult toy_graph_create(CUgraph* graph, unsigned flags) {
  *graph = pointer<CUgraph>(0x100 + flags);
  return CUDA_SUCCESS;
}
CUresult toy_graph_destroy(CUgraph graph) {
  return graph == pointer<CUgraph>(0x105) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult toy_graph_link(CUgraph, const CUgraphNode* from, const CUgraphNode* to, const CUtoyEdge* edges,
                        size_t count) {
  g_seen.clear();
  for (size_t i = 0; i < count; ++i)
    g_seen += std::to_string(reinterpret_cast<unsigned long>(from[i])) + ">" +
              std::to_string(reinterpret_cast<unsigned long>(to[i])) + ":" +
              (edges == nullptr ? "none" : std::to_string(edges[i].port)) + " ";
  return CUDA_SUCCESS;
}
CUresult toy_graph_nodes(CUgraph, CUgraphNode* nodes, size_t* count) {
  if (nodes != nullptr)
    for (size_t i = 0; i < *count; ++i) nodes[i] = i < 2 ? pointer<CUgraphNode>(0x1000 + i) : nullptr;
  *count = 2;
  return CUDA_SUCCESS;
}

}  // namespace

namespace gpupool::guest {

Gate g_gate;

Session* Session::current() {
  return g_connected ? &g_session : nullptr;
}
CUresult Session::failed() const {
  return g_failed;
}
void log_failure(const char* name, int result) {
  g_failure = std::string(name) + " " + std::to_string(result);
}
void log_unsupported(const char* name) {
  g_unsupported = name;
}
Stream* resolve_stream(CUstream stream, CUresult& error) {
  static Stream one{wire::Handle::make(wire::HandleKind::stream, 0, 3)};
  g_per_thread = g_per_thread_depth;
  if (stream == nullptr) return &one;
  error = CUDA_ERROR_INVALID_HANDLE;
  return nullptr;
}
Module* find(CUmodule handle) {
  static Module one{wire::Handle::make(wire::HandleKind::module, 1, 1)};
  return handle == pointer<CUmodule>(1) ? &one : nullptr;
}
HandleAllocator& handles(wire::HandleKind) {
  static HandleAllocator one;
  return one;
}
CUresult carry(wire::Function function, wire::Handle stream, std::vector<u8> bytes, std::vector<u8>& answer) {
  g_stream = stream;
  wire::Writer out;
  worker::Request request;
  request.in = wire::Reader(bytes);
  request.out = &out;
  const CUresult result = worker::kHandlers[static_cast<u16>(function)](g_worker, request);
  answer.assign(out.bytes().begin(), out.bytes().end());
  return result;
}

}  // namespace gpupool::guest

namespace gpupool::guest::api {
CUresult cuToyInit(unsigned flags) {
  g_connected = flags == 0;
  return CUDA_SUCCESS;
}
CUresult cuToyCopy(const CUtoyCopy*) {
  return CUDA_SUCCESS;
}
}  // namespace gpupool::guest::api

namespace gpupool::worker {
CUresult handle_ping(Worker&, Request&) {
  return CUDA_SUCCESS;
}
CUresult handle_cuToyCopy(Worker&, Request&) {
  return CUDA_SUCCESS;
}
}  // namespace gpupool::worker

namespace {

void check_start() {
  size_t value = 0;
  CHECK(cuToyDeviceLimit(&value, CU_TOY_LIMIT_HEAP, 0) == CUDA_ERROR_NOT_INITIALIZED);
  CHECK(cuToyInit(0) == CUDA_SUCCESS);
  guest::g_gate.bits = 0;
  CHECK(cuToyDeviceLimit(&value, CU_TOY_LIMIT_HEAP, 0) == CUDA_ERROR_NOT_SUPPORTED);  // the driver lacks it
  g_worker.driver = worker::DriverApi{
      .cuToyDeviceLimit = toy_device_limit,
      .cuToyFillAsync = toy_fill,
      .cuToyFind = toy_find,
      .cuToyGraphCreate = toy_graph_create,
      .cuToyGraphDestroy = toy_graph_destroy,
      .cuToyGraphLink = toy_graph_link,
      .cuToyGraphNodes = toy_graph_nodes,
  };
  g_worker.devices = {5, 6};
  g_worker.modules.put(wire::Handle::make(wire::HandleKind::module, 1, 1), {pointer<CUmodule>(0x10)});
}

void check_values() {
  size_t value = 0;
  CHECK(cuToyDeviceLimit(&value, CU_TOY_LIMIT_HEAP, 0) == CUDA_SUCCESS && value == 1026);
  CHECK(cuToyDeviceLimit(&value, CU_TOY_LIMIT_HEAP, 1) == CUDA_ERROR_INVALID_DEVICE);
  CHECK(g_failure == "cuToyDeviceLimit 101");
  CHECK(cuToyDeviceLimit(&value, static_cast<CUtoyLimit>(3), 0) == CUDA_ERROR_INVALID_VALUE);
  CHECK(cuToyDeviceLimit(nullptr, CU_TOY_LIMIT_HEAP, 0) == CUDA_ERROR_INVALID_VALUE);
  CHECK(cuToyFill(9, 8, 7) == CUDA_SUCCESS && g_seen == "9 8 7" && g_stream.index() == 3 &&
        g_per_thread == 0);
  CHECK(cuToyFillAsync_ptsz(9, 8, 6, nullptr) == CUDA_SUCCESS && g_seen == "9 8 6" && g_per_thread == 1);
  CHECK(cuToyFillAsync(9, 8, 7, pointer<CUstream>(4)) == CUDA_ERROR_INVALID_HANDLE);
  CUdeviceptr address = 0;
  CHECK(cuToyFind(&address, nullptr, pointer<CUmodule>(1), "x") == CUDA_SUCCESS && address == 77);
  CHECK(g_seen == "x in m");
  CHECK(cuToyFind(nullptr, &value, pointer<CUmodule>(1), "") == CUDA_SUCCESS && value == 88);
  CHECK(cuToyFind(nullptr, &value, pointer<CUmodule>(2), "x") == CUDA_ERROR_INVALID_HANDLE);
  CHECK(cuToyFind(nullptr, &value, pointer<CUmodule>(1), nullptr) == CUDA_ERROR_INVALID_VALUE);
  CHECK(cuToyHidden() == CUDA_ERROR_NOT_SUPPORTED && std::string(g_unsupported) == "cuToyHidden");
  CHECK(cuToyFlag == 0);
}

void check_profile() {
  const int before = guest::g_profiled_calls;
  size_t value = 0;
  CHECK(cuToyDeviceLimit(&value, CU_TOY_LIMIT_HEAP, 0) == CUDA_SUCCESS);
  CHECK(guest::g_profiled_calls == before);
  guest::g_gate.bits = guest::kGateProfiled;
  CHECK(cuToyDeviceLimit(&value, CU_TOY_LIMIT_HEAP, 0) == CUDA_SUCCESS && value == 1026);
  CHECK(guest::g_profiled_calls == before + 1 && guest::g_profiled == wire::Function::cuToyDeviceLimit);
  CHECK(cuToyFillAsync_ptsz(9, 8, 6, nullptr) == CUDA_SUCCESS && g_per_thread == 1);
  CHECK(guest::g_profiled_calls == before + 2 && guest::g_profiled == wire::Function::cuToyFillAsync);
  CHECK(cuToyInit(0) == CUDA_SUCCESS && guest::g_profiled == wire::Function::cuToyInit);
  guest::g_gate.bits = 0;
}

void check_handles() {
  CUgraph graph = nullptr;
  CHECK(cuToyGraphCreate(&graph, 5) == CUDA_SUCCESS);
  const wire::Handle name{reinterpret_cast<u64>(graph)};
  CHECK(name.kind() == wire::HandleKind::graph && *g_worker.graphs.find(name) == pointer<CUgraph>(0x105));
  size_t count = 0;
  CHECK(cuToyGraphNodes(graph, nullptr, &count) == CUDA_SUCCESS && count == 2);
  CUgraphNode nodes[3] = {nullptr, nullptr, pointer<CUgraphNode>(1)};
  count = 3;
  CHECK(cuToyGraphNodes(graph, nodes, &count) == CUDA_SUCCESS && count == 2);
  CHECK(nodes[0] != nullptr && nodes[1] != nullptr && nodes[0] != nodes[1] && nodes[2] == nullptr);
  CUgraphNode again[2] = {};
  CHECK(cuToyGraphNodes(graph, again, &count) == CUDA_SUCCESS && again[0] == nodes[0] &&
        again[1] == nodes[1]);
  const CUgraphNode to[2] = {nodes[1], nodes[0]};
  const CUtoyEdge edges[2] = {{3, {}}, {4, {}}};
  CHECK(cuToyGraphLink(graph, nodes, to, edges, 2) == CUDA_SUCCESS && g_seen == "4096>4097:3 4097>4096:4 ");
  CHECK(cuToyGraphLink(graph, nodes, to, nullptr, 1) == CUDA_SUCCESS && g_seen == "4096>4097:none ");
  CHECK(cuToyGraphLink(graph, nullptr, nullptr, nullptr, 0) == CUDA_SUCCESS && g_seen.empty());
  CHECK(cuToyGraphLink(graph, nullptr, to, nullptr, 1) == CUDA_ERROR_INVALID_VALUE);
  const CUgraphNode wild[1] = {pointer<CUgraphNode>(12345)};
  CHECK(cuToyGraphLink(graph, wild, to, nullptr, 1) == CUDA_ERROR_INVALID_HANDLE);
  CHECK(cuToyGraphNodes(nullptr, nullptr, &count) == CUDA_ERROR_INVALID_VALUE);
  CHECK(cuToyGraphDestroy(graph) == CUDA_SUCCESS);
  CHECK(guest::handles(wire::HandleKind::graph).given_back.size() == 1);
  CHECK(cuToyGraphDestroy(graph) == CUDA_ERROR_INVALID_HANDLE);
}

CUresult decode(wire::Function function, std::vector<u8> bytes) {
  std::vector<u8> answer;
  return guest::carry(function, {}, std::move(bytes), answer);
}

void check_bad_messages() {
  for (const worker::FuzzEntry& entry : worker::kFuzzEntries) {
    const std::vector<u8> seed = entry.seed();
    CHECK(worker::kHandlers[static_cast<u16>(entry.function)] != nullptr);
    if (seed.empty()) continue;
    (void)decode(entry.function, seed);  // well-formed: must not throw
    bool refused = false;
    try {
      (void)decode(entry.function, {seed.begin(), seed.end() - 1});
    } catch (const wire::ProtocolError&) {
      refused = true;
    }
    CHECK(refused);
    refused = false;
    std::vector<u8> longer = seed;
    longer.resize(seed.size() + 8);
    try {
      (void)decode(entry.function, longer);
    } catch (const wire::ProtocolError&) {
      refused = true;
    }
    CHECK(refused);
  }
}

void check_tables() {
  CHECK(guest::kProcTableSize == 2);
  CHECK(std::string(guest::kProcTable[0].name) == "cuToyFillAsync" && guest::kProcTable[0].since == 3020);
  CHECK(guest::kProcTable[0].entry == reinterpret_cast<void*>(&::cuToyFillAsync));
  CHECK(guest::kProcTable[0].per_thread == reinterpret_cast<void*>(&::cuToyFillAsync_ptsz));
  CHECK(guest::kProcTable[0].per_thread_since == 7000);
  CHECK(guest::kProcTable[1].per_thread == nullptr);
  CHECK(std::string(wire::function_name(wire::Function::cuToyCopy)) == "cuToyCopy");
  CHECK(static_cast<u16>(wire::Function::cuToyInit) == 64 && static_cast<u16>(wire::Function::ping) == 7);
  CHECK(worker::kHandlers[64] == nullptr);  // local: no message
}

}  // namespace

int main() {
  check_start();
  check_values();
  check_profile();
  check_handles();
  check_bad_messages();
  check_tables();
  g_failed = CUDA_ERROR_OUT_OF_MEMORY;
  guest::g_gate.bits = guest::kGateShut;
  CHECK(cuToyFill(1, 2, 3) == CUDA_ERROR_OUT_OF_MEMORY);
  std::puts("ok");
  return 0;
}

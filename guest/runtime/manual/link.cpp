// The linker (cuLink*). A linker state lives in the worker; the client keeps what the program's pointers must
// outlive: the log buffers given at creation and the finished cubin.
#include <unordered_map>

#include "guest/runtime/manual/context.hpp"
#include "guest/runtime/manual/image.hpp"
#include "guest_api.hpp"

namespace gpupool::guest {

namespace {

struct LinkState {
  wire::Handle handle;
  const Context* context = nullptr;  // it ends with it
  JitOptions options;
  std::vector<u8> cubin;
};

// CUlinkState is the wire handle itself: a link is rare, and its worker's answers are what counts.
struct LinkStates {
  std::mutex mutex;
  std::unordered_map<u64, std::shared_ptr<LinkState>> states;
};

LinkStates& link_states() {
  static auto& all = *new LinkStates();
  return all;
}

// The worker destroys its side with the rest of the context.
void forget_states(Context& context) {
  LinkStates& all = link_states();
  const std::lock_guard lock(all.mutex);
  std::erase_if(all.states, [&context](const auto& each) {
    if (each.second->context != &context) return false;
    handles(wire::HandleKind::link_state).give_back(each.second->handle);
    return true;
  });
}

[[maybe_unused]] const bool kRegistered = at_context_end(&forget_states);

std::shared_ptr<LinkState> find_state(CUlinkState state) {
  LinkStates& all = link_states();
  const std::lock_guard lock(all.mutex);
  const auto known = all.states.find(reinterpret_cast<u64>(state));
  return known == all.states.end() ? nullptr : known->second;
}

// An answer is the driver's result and then what the logs hold by now.
CUresult wait(Call& call, LinkState& state) {
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  const auto result = static_cast<CUresult>(call.get<i32>());
  const CUresult taken = state.options.take(call);
  return result == CUDA_SUCCESS ? taken : result;
}

CUresult add(LinkState& state, CUjitInputType type, const void* data, size_t size, const char* name,
             unsigned int count, CUjit_option* options, void** values) {
  if (data == nullptr || size == 0 || size > wire::kMaxImageBytes) return CUDA_ERROR_INVALID_VALUE;
  if (static_cast<u32>(type) >= CU_JIT_NUM_INPUT_TYPES) return CUDA_ERROR_INVALID_VALUE;
  JitOptions own;
  if (const CUresult result = own.read(count, options, values); result != CUDA_SUCCESS) return result;
  CUresult error = CUDA_SUCCESS;
  Session& session = *Session::current();
  const Bulk bulk = session.heap_allocate(size, false, error);
  if (!bulk) return error;
  std::memcpy(bulk.address, data, size);
  Call call(wire::Function::cuLinkAddData_v2);
  call.put(state.handle);
  call.put<u32>(static_cast<u32>(type));
  // The name only appears in messages: as much of it as fits a slot beside the options.
  const std::string_view text = name == nullptr ? "" : name;
  const u64 kept = std::min<u64>(text.size(), 16);
  call.put_array(text.data() + (text.size() - kept), kept);
  own.put(call);
  call.attach(bulk.offset, size, wire::kBulkIn);
  const CUresult result = wait(call, state);
  session.heap_free(bulk);
  return result;
}

}  // namespace

namespace api {

CUresult cuLinkCreate_v2(unsigned int numOptions, CUjit_option* options, void** optionValues,
                         CUlinkState* stateOut) {
  if (stateOut == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = check_context(current_context()); result != CUDA_SUCCESS) return result;
  auto state = std::make_shared<LinkState>();
  state->context = current_context();
  CUresult result = state->options.read(numOptions, options, optionValues);
  if (result != CUDA_SUCCESS) return result;
  state->handle = handles(wire::HandleKind::link_state).take();
  if (!state->handle) return CUDA_ERROR_OUT_OF_MEMORY;
  Call call(wire::Function::cuLinkCreate_v2);
  call.put(state->handle);
  state->options.put(call);
  if (result = wait(call, *state); result != CUDA_SUCCESS) {
    handles(wire::HandleKind::link_state).give_back(state->handle);
    return result;
  }
  LinkStates& all = link_states();
  const std::lock_guard lock(all.mutex);
  all.states.emplace(state->handle.bits, state);
  *stateOut = reinterpret_cast<CUlinkState>(state->handle.bits);
  return CUDA_SUCCESS;
}

CUresult cuLinkAddData_v2(CUlinkState state, CUjitInputType type, void* data, size_t size, const char* name,
                          unsigned int numOptions, CUjit_option* options, void** optionValues) {
  const std::shared_ptr<LinkState> found = find_state(state);
  if (found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  return add(*found, type, data, size, name, numOptions, options, optionValues);
}

CUresult cuLinkAddFile_v2(CUlinkState state, CUjitInputType type, const char* path, unsigned int numOptions,
                          CUjit_option* options, void** optionValues) {
  const std::shared_ptr<LinkState> found = find_state(state);
  if (found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  std::vector<u8> bytes;
  if (const CUresult result = read_image_file(path, bytes); result != CUDA_SUCCESS) return result;
  // The NUL that was appended belongs to texts only.
  const u64 size = type == CU_JIT_INPUT_PTX ? bytes.size() : bytes.size() - 1;
  return add(*found, type, bytes.data(), size, path, numOptions, options, optionValues);
}

CUresult cuLinkComplete(CUlinkState state, void** cubinOut, size_t* sizeOut) {
  if (cubinOut == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const std::shared_ptr<LinkState> found = find_state(state);
  if (found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  Call complete(wire::Function::cuLinkComplete);
  complete.put(found->handle);
  complete.put<u32>(0);
  if (const CUresult result = wait(complete, *found); result != CUDA_SUCCESS) return result;
  // Now that its size is known, fetch it.
  found->cubin.resize(complete.get<u64>());
  Call fetch(wire::Function::cuLinkComplete);
  fetch.put(found->handle);
  fetch.put<u32>(1);
  fetch.expect_answer(found->cubin.size() + 64);
  if (const CUresult result = fetch.wait(); result != CUDA_SUCCESS) return result;
  if (fetch.get_array(found->cubin.data(), found->cubin.size()) != found->cubin.size())
    return CUDA_ERROR_UNKNOWN;
  *cubinOut = found->cubin.data();
  if (sizeOut != nullptr) *sizeOut = found->cubin.size();
  return CUDA_SUCCESS;
}

CUresult cuLinkDestroy(CUlinkState state) {
  std::shared_ptr<LinkState> found;
  {
    LinkStates& all = link_states();
    const std::lock_guard lock(all.mutex);
    const auto known = all.states.find(reinterpret_cast<u64>(state));
    if (known == all.states.end()) return CUDA_ERROR_INVALID_HANDLE;
    found = known->second;
    all.states.erase(known);
  }
  Call call(wire::Function::cuLinkDestroy);
  call.put(found->handle);
  const CUresult result = call.send();
  handles(wire::HandleKind::link_state).give_back(found->handle);
  return result;
}

}  // namespace api

}  // namespace gpupool::guest

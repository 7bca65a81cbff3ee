#include "guest/runtime/manual/look_up.hpp"

#include <algorithm>

#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/device.hpp"
#include "guest/runtime/manual/function.hpp"
#include "guest/runtime/message.hpp"
#include "wire/cpp/launch_message.hpp"

namespace gpupool::guest {

namespace {

// Of names that are worth having: beyond, a program uses few of a module's functions (cuBLAS has thousands).
constexpr u64 kNamesBytes = 32 * 1024;

u64 next_ticket() {
  return Session::current()->tickets();
}

wire::Handle owner_of(const Function& function) {
  return function.module != nullptr ? function.module->handle : function.library->handle;
}

// Fills in the look-up of one function. `device`: -1 for no description.
void put_look_up(Call& call, const Function& function, int device) {
  call.put(owner_of(function));
  call.put(function.handle);
  call.put<i32>(device < 0 ? -1 : session_device(device));
  call.put_string(function.name.c_str());
}

wire::Function message_of(const Function& function) {
  return function.module != nullptr ? wire::Function::cuModuleGetFunction
                                    : wire::Function::cuLibraryGetKernel;
}

CUresult ask(Function& function, int device) {
  Call call(message_of(function));
  put_look_up(call, function, device);
  CUresult result = call.wait();
  if (result == CUDA_SUCCESS) result = static_cast<CUresult>(call.get<i32>());
  if (result != CUDA_SUCCESS || device < 0) return result;
  if (const CUresult described = read_description(call, function, device); described != CUDA_SUCCESS)
    log_debug("kernel %s is not described yet: %d", function.name.c_str(), static_cast<int>(described));
  return CUDA_SUCCESS;
}

CUresult tell(const Function& function) {
  Call call(message_of(function));
  put_look_up(call, function, -1);
  return call.send();
}

// Asks for the names once. An error is the session's, or that of a call before; without names look-ups wait.
CUresult ask_names(LookUps& known, const Function& function) {
  known.asked = true;
  Call call(wire::Function::function_names);
  call.put(owner_of(function));
  call.put<u64>(kNamesBytes);
  call.expect_answer(kNamesBytes + 64);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  if (static_cast<CUresult>(call.get<i32>()) != CUDA_SUCCESS) return CUDA_SUCCESS;
  std::vector<char> text(kNamesBytes);
  text.resize(std::min(kNamesBytes, call.get_array(text.data(), kNamesBytes)));
  for (auto begin = text.begin(); begin != text.end();) {
    const auto end = std::find(begin, text.end(), '\0');
    known.names.emplace(begin, end);
    begin = end == text.end() ? end : end + 1;
  }
  return CUDA_SUCCESS;
}

// A look-up right behind another one, with no other message between: more are likely to come. A program that
// uses each function once it has it (PyTorch) never gets here.
bool in_a_row(const LookUps& known) {
  return known.next_ticket != 0 && known.next_ticket == next_ticket();
}

// The function and those that were looked up after it, then those before; at most kMaxDescribed.
std::vector<Function*> choose(const std::vector<Function*>& pending, Function& function) {
  const auto first = std::find(pending.begin(), pending.end(), &function);
  std::vector<Function*> chosen(first, pending.end());
  chosen.insert(chosen.end(), pending.begin(), first);
  chosen.resize(std::min<u64>(chosen.size(), wire::kMaxDescribed));
  return chosen;
}

CUresult describe_together(LookUps& known, Function& function, int device) {
  if (!function.pending.load(std::memory_order_relaxed)) return CUDA_SUCCESS;  // another thread was faster
  const std::vector<Function*> chosen = choose(known.pending, function);
  std::vector<wire::Handle> handles;
  for (const Function* each : chosen) handles.push_back(each->handle);
  Call call(wire::Function::functions_describe);
  call.put<i32>(session_device(device));
  call.put_array(handles.data(), handles.size());
  call.expect_answer(wire::kDescribedBytes);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  // Those without an answer, and those whose look-up failed while nobody waited, stay pending: their own
  // first use comes here again.
  function.pending.store(false, std::memory_order_release);
  CUresult first = CUDA_SUCCESS;
  for (u64 i = 0; i < chosen.size() && call.get<u32>() != 0; ++i) {
    const CUresult result = read_description(call, *chosen[i], device);
    if (i == 0) first = result;
    if (result != CUDA_ERROR_INVALID_HANDLE) chosen[i]->pending.store(false, std::memory_order_release);
  }
  std::erase_if(known.pending, [](const Function* each) { return !each->pending.load(); });
  return first == CUDA_ERROR_INVALID_HANDLE ? ask(function, device) : CUDA_SUCCESS;
}

}  // namespace

CUresult look_up(LookUps& known, Function& made, LookUp how, int device) {
  if (how == LookUp::listed) return tell(made);
  if (!known.asked && in_a_row(known)) {
    if (const CUresult result = ask_names(known, made); result != CUDA_SUCCESS) return result;
  }
  if (known.names.contains(made.name)) {
    if (const CUresult result = tell(made); result != CUDA_SUCCESS) return result;
    known.pending.push_back(&made);
    made.pending.store(true, std::memory_order_release);
    return CUDA_SUCCESS;
  }
  const CUresult result = ask(made, device);
  known.next_ticket = result == CUDA_SUCCESS ? next_ticket() : 0;
  return result;
}

CUresult describe_pending(Function& function, int device) {
  if (function.module != nullptr) {
    const std::lock_guard lock(function.module->mutex);
    return describe_together(function.module->look_ups, function, device);
  }
  const std::lock_guard lock(function.library->mutex);
  return describe_together(function.library->look_ups, function, device);
}

}  // namespace gpupool::guest

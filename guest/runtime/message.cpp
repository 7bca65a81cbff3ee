#include "guest/runtime/message.hpp"

#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/graph.hpp"
#include "guest/runtime/manual/kept_memory.hpp"
#include "guest/runtime/profile.hpp"
#include "guest/runtime/statistics.hpp"

namespace gpupool::guest {

Call::~Call() {
  Session* session = Session::current();
  if (session == nullptr) return;
  if (payload_bulk_) session->release(payload_bulk_, Completion{0, ticket_ + 1});
  if (answer_bulk_) session->release(answer_bulk_, Completion{0, ticket_ + 1});
}

u8* Call::grow(u64 bytes, u64 alignment) {
  const u64 start = (used_ + alignment - 1) / alignment * alignment;
  const u64 end = start + bytes;
  if (spill_.empty() && end <= sizeof inline_) {
    if (start > used_)
      std::memset(inline_ + used_, 0, start - used_);  // padding must not carry stale stack bytes
    used_ = end;
    return inline_ + start;
  }
  if (spill_.empty()) {
    spill_.reserve(end < 4096 ? 4096 : end);
    spill_.assign(inline_, inline_ + used_);
  }
  spill_.resize(end);
  used_ = end;
  return spill_.data() + start;
}

CUresult Call::dispatch(u16 extra_flags) {
  Session* session = Session::current();
  if (session == nullptr) return CUDA_ERROR_NOT_INITIALIZED;
  if (const CUresult failed = session->failed(); failed != CUDA_SUCCESS) return failed;
  u16 flags = static_cast<u16>(flags_ | extra_flags);
  u64 bulk_offset = bulk_offset_;
  u64 bulk_size = bulk_size_;
  CUresult error = CUDA_SUCCESS;
  if (!spill_.empty()) {
    payload_bulk_ =
        used_ <= Session::kMaxStaging ? session->stage(used_) : session->heap_allocate(used_, false, error);
    if (!payload_bulk_) return error != CUDA_SUCCESS ? error : session->failed();
    std::memcpy(payload_bulk_.address, spill_.data(), used_);
    flags |= wire::kBulkIn | wire::kPayloadInBulk;
    bulk_offset = payload_bulk_.offset;
    bulk_size = used_;
  } else if (answer_capacity_ > wire::kReplyBytes) {
    answer_bulk_ = answer_capacity_ <= Session::kMaxStaging
                       ? session->stage(answer_capacity_)
                       : session->heap_allocate(answer_capacity_, false, error);
    if (!answer_bulk_) return error != CUDA_SUCCESS ? error : session->failed();
    flags |= wire::kBulkOut | wire::kAnswerInBulk;
    bulk_offset = answer_bulk_.offset;
    bulk_size = answer_capacity_;
  }
  // A code image, or a payload too long for a slot; copies count their own.
  if ((flags & wire::kBulkIn) != 0) profile_bytes(bulk_size, 0);
  const Claim claim = session->claim();
  if (claim.slot == nullptr) {
    const CUresult failed = session->failed();
    return failed != CUDA_SUCCESS ? failed : CUDA_ERROR_OUT_OF_MEMORY;  // more than wire::kThreads threads
  }
  ticket_ = claim.ticket;
  wire::Slot& slot = *claim.slot;
  slot.function = static_cast<u16>(function_);
  slot.flags = flags;
  slot.bulk_offset = bulk_offset;
  slot.bulk_size = bulk_size;
  if (stream_ != nullptr) slot.stream = stream_->handle;
  if (spill_.empty()) {
    slot.inline_size = static_cast<u32>(used_);
    std::memcpy(slot.payload, inline_, used_);
  }
  session->publish(claim, stream_);
  return CUDA_SUCCESS;
}

CUresult Call::send() {
  return dispatch(0);
}

CUresult Call::wait() {
  if (!leave_kept_ && g_kept_blocks.load(std::memory_order_acquire) != 0) give_back_kept();
  if (const CUresult result = dispatch(wire::kReply); result != CUDA_SUCCESS) return result;
  count_wait(function_);
  const ProfiledWait waiting;
  Session* session = Session::current();
  wire::ReplyBox* box = nullptr;
  if (const CUresult result = session->wait_reply(ticket_, box); result != CUDA_SUCCESS) return result;
  note_graph_change(function_);
  const bool in_bulk = static_cast<bool>(answer_bulk_);
  const u64 capacity = in_bulk ? answer_bulk_.size : u64{wire::kReplyBytes};
  const u64 size = box->size < capacity ? box->size : capacity;
  const u8* data = in_bulk ? answer_bulk_.address : box->payload;
  answer_.assign(data, data + size);
  answer_used_ = 0;
  return static_cast<CUresult>(box->status);
}

const u8* Call::take_bytes(u64 bytes, u64 alignment) {
  const u64 start = (answer_used_ + alignment - 1) / alignment * alignment;
  if (start > answer_.size() || bytes > answer_.size() - start) {
    log_line("the worker's answer to %s is too short", wire::function_name(function_));
    answer_used_ = answer_.size();
    return nullptr;
  }
  answer_used_ = start + bytes;
  return answer_.data() + start;
}

void Call::take(void* out, u64 bytes, u64 alignment) {
  const u8* data = take_bytes(bytes, alignment);
  if (data != nullptr) std::memcpy(out, data, bytes);
}

}  // namespace gpupool::guest

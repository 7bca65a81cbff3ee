// How a stream runs its work: queue, executor thread, order between streams.
#include <algorithm>
#include <thread>

#include "hostd/softgpu/api/memory.hpp"
#include "hostd/softgpu/api/stream.hpp"

namespace gpupool::softgpu {

// Fills in what the operation must wait for and makes it the stream's newest work.
Work Stream::prepare(OperationPtr operation, std::vector<Fence> after) {
  if (legacy) {
    for (const auto& other : context->streams)
      if (other->blocking() && other->last_ && !other->last_->done()) after.push_back(other->last_);
  } else if (blocking() && context->legacy) {
    const Fence& fence = context->legacy->last_;
    if (fence && !fence->done()) after.push_back(fence);
  }
  std::erase_if(context->gates, [](const Fence& gate) { return gate->done(); });
  after.insert(after.end(), context->gates.begin(), context->gates.end());
  last_ = std::make_shared<Completion>();
  return Work{std::move(after), std::move(operation), last_};
}

void Stream::enqueue(Work work) {
  const std::lock_guard lock(queue_mutex_);
  queue_.push_back(std::move(work));
  if (!started_) {
    started_ = true;
    std::thread([self = shared_from_this()] { self->executor_loop(); }).detach();
  } else {
    queue_changed_.notify_all();
  }
}

void Stream::execute(Work& work) {
  for (const Fence& fence : work.after) fence->wait();
  if (context->state() == CUDA_SUCCESS || work.operation->runs_after_fault()) {
    CUresult result = CUDA_ERROR_UNKNOWN;
    try {
      result = work.operation->run(*context);
    } catch (const Error& error) {
      result = error.result;
    } catch (const std::bad_alloc&) {
      result = CUDA_ERROR_OUT_OF_MEMORY;
    } catch (const std::exception& error) {
      log_line("an operation failed inside: %s", error.what());
    }
    if (result != CUDA_SUCCESS) context->set_fault(result);
  }
  // What it owned goes before anybody hears that it is done: memory of a graph that is gone already is
  // counted until its last launch lets go.
  work.operation.reset();
  work.after.clear();
  work.done->set();
}

void Stream::executor_loop() {
  std::unique_lock lock(queue_mutex_);
  for (;;) {
    queue_changed_.wait(lock, [this] { return !busy_ && (!queue_.empty() || closing_); });
    if (queue_.empty()) break;
    Work work = std::move(queue_.front());
    queue_.pop_front();
    busy_ = true;
    lock.unlock();
    execute(work);
    work.done.reset();
    lock.lock();
    busy_ = false;
    queue_changed_.notify_all();
  }
  lock.unlock();
  const std::lock_guard submit(context->submit_mutex);
  std::erase_if(context->streams, [this](const auto& stream) { return stream.get() == this; });
}

Fence Stream::submit(OperationPtr operation, std::vector<Fence> after) {
  const std::lock_guard lock(context->submit_mutex);
  Work work = prepare(std::move(operation), std::move(after));
  Fence done = work.done;
  enqueue(std::move(work));
  return done;
}

// Runs it in the caller's thread when the stream has nothing else to do and, with `at_once`, when it has
// nothing to wait for either; else it is queued.
Fence Stream::run_or_submit(OperationPtr operation, bool at_once) {
  Work work;
  Fence done;
  {
    const std::lock_guard submit_lock(context->submit_mutex);
    work = prepare(std::move(operation), {});
    done = work.done;
    bool here = !at_once || std::ranges::all_of(work.after, [](const Fence& fence) { return fence->done(); });
    {
      const std::lock_guard lock(queue_mutex_);
      here = here && queue_.empty() && !busy_;
      if (here) busy_ = true;
    }
    if (!here) {
      enqueue(std::move(work));
      return done;
    }
  }
  execute(work);
  const std::lock_guard lock(queue_mutex_);
  busy_ = false;
  queue_changed_.notify_all();
  return done;
}

CUresult Stream::submit_and_wait(OperationPtr operation) {
  run_or_submit(std::move(operation), false)->wait();
  return context->state();
}

void Stream::submit_quick(OperationPtr operation) {
  run_or_submit(std::move(operation), true);
}

Fence Stream::newest() {
  const std::lock_guard lock(context->submit_mutex);
  return last_;
}

// Waiting for the legacy stream is waiting for the blocking ones too.
std::vector<Fence> Stream::outstanding() {
  std::vector<Fence> fences;
  const std::lock_guard lock(context->submit_mutex);
  if (last_ && !last_->done()) fences.push_back(last_);
  if (legacy)
    for (const auto& other : context->streams)
      if (other->blocking() && other->last_ && !other->last_->done()) fences.push_back(other->last_);
  return fences;
}

bool Stream::idle() {
  return outstanding().empty();
}

CUresult Stream::synchronize() {
  for (const Fence& fence : outstanding()) fence->wait();
  see_frees();
  return context->state();
}

void Stream::close() {
  bool idle = false;
  {
    const std::lock_guard lock(queue_mutex_);
    closing_ = true;
    idle = !started_;
    queue_changed_.notify_all();
  }
  if (!idle) return;  // the executor leaves the context's list when it has finished
  const std::lock_guard submit(context->submit_mutex);
  std::erase_if(context->streams, [this](const auto& stream) { return stream.get() == this; });
}

CUresult Context::synchronize() {
  std::vector<Fence> fences;
  std::vector<std::shared_ptr<Stream>> all;
  {
    const std::lock_guard lock(submit_mutex);
    all = streams;
  }
  for (const auto& stream : all)
    if (Fence fence = stream->newest()) fences.push_back(std::move(fence));
  for (const Fence& fence : fences) fence->wait();
  see_frees();
  return state();
}

void synchronize_device(const Device& device) {
  for (const auto& context : contexts().all())
    if (context->device == &device) context->synchronize();
}

void synchronize_everything() {
  for (const auto& context : contexts().all()) context->synchronize();
}

}  // namespace gpupool::softgpu

// The messages gl_batch and gl_manage.
#include "gl_dispatch.hpp"  // generated
#include "hostd/worker/log.hpp"
#include "hostd/worker/manual/graphics_resource.hpp"
#include "hostd/worker/opengl/probe.hpp"
#include "hostd/worker/opengl/server.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

GlServer& server_of(Worker& worker) {
  if (worker.opengl == nullptr) throw wire::ProtocolError("OpenGL before gl_manage open");
  return *worker.opengl;
}

template <typename T>
T last(Request& request) {
  const T value = request.in.get<T>();
  request.in.finish();
  return value;
}

void execute(GlContext& context, GlCommand& command) {
  const GlHandler handler = command.function() < kGlHandlerCount ? kGlHandlers[command.function()] : nullptr;
  if (handler == nullptr) throw wire::ProtocolError("no such command of OpenGL");
  handler(context, command);
}

// While nothing more has come the GPU may begin: the driver may keep what it has until it is full.
bool has_next(const Worker& worker, const Request& request) {
  const u64 next = request.ticket + 1;
  return worker.window.slot(next).sequence.load(std::memory_order_relaxed) == next + 1;
}

}  // namespace

u64* probe_room(bool second) {
  static std::array<std::vector<u64>, 2> rooms;
  std::vector<u64>& room = rooms[second ? 1 : 0];
  if (room.empty()) room.resize(kProbeBytes / sizeof(u64));
  return room.data();
}

CUresult handle_gl_manage(Worker& worker, Request& request) {
  const auto what = request.in.get<wire::GlManage>();
  i32 error = gl::EGL_SUCCESS;
  std::string text;
  switch (what) {
    case wire::GlManage::open: {
      request.in.finish();
      if (!worker.may_use_opengl) {
        text = "hostd's configuration does not allow it; it says limits.generated_opengl = false";
      } else if (worker.opengl == nullptr) {
        auto server = std::make_shared<GlServer>();
        if (server->open(worker, text))
          worker.drawing = worker.opengl = std::move(server);
        else
          log(LogLevel::warning, "no OpenGL for this session", text);
      }
      if (worker.opengl == nullptr) error = gl::EGL_NOT_INITIALIZED;
      break;
    }
    case wire::GlManage::create_context: {
      const auto wish = last<wire::GlContextWish>(request);
      error = server_of(worker).create_context(wish);
      if (error == gl::EGL_SUCCESS) opengl_context_made(wish.index, wish.share);
      break;
    }
    case wire::GlManage::destroy_context: {
      const u32 index = last<u32>(request);
      opengl_context_ends(worker, index);
      server_of(worker).destroy_context(index);
      break;
    }
    case wire::GlManage::create_surface:
      error = server_of(worker).create_surface(last<wire::GlSurfaceWish>(request));
      break;
    case wire::GlManage::destroy_surface:
      server_of(worker).destroy_surface(last<u32>(request));
      break;
    case wire::GlManage::use_surfaces: {
      const u32 index = request.in.get<u32>();
      const u32 draw = request.in.get<u32>();
      error = server_of(worker).use_surfaces(index, draw, last<u32>(request));
      break;
    }
    default:
      throw wire::ProtocolError("gl_manage of something unknown");
  }
  request.out->put(error);
  for (const char letter : text.substr(0, 512)) request.out->put(letter);
  return CUDA_SUCCESS;
}

void execute_last(Worker& worker, GlContext& context, Request& request, wire::CommandHead head,
                  std::span<const u8> bytes) {
  const bool in_window = (request.flags & wire::kBulkOut) != 0;
  std::span<u8> window;
  if (in_window) window = {worker.at(request.bulk_offset), request.bulk_size};
  GlCommand command(head, bytes);
  command.allow_answer(*request.out, in_window ? request.bulk_size : u64{wire::kReplyBytes} - 64, window);
  execute(context, command);
  if (!in_window) return;
  u64 answered = command.in_window();
  const std::span<const u8> small = request.out->bytes();
  if (!small.empty()) {
    if (small.size() > request.bulk_size) throw wire::ProtocolError("too little room for the answer");
    std::memcpy(worker.at(request.bulk_offset), small.data(), small.size());
    answered = small.size();
    request.out->clear();
  }
  request.out->put(answered);
}

// All commands of a batch but the last are not answered; the last one is, if the client waits for the slot.
CUresult handle_gl_batch(Worker& worker, Request& request) {
  GlServer& server = server_of(worker);
  if (request.in.left() > wire::kMostGlBatch) throw wire::ProtocolError("a batch that is too long");
  const auto head = request.in.get<wire::BatchHead>();
  GlContext* const context = server.use(head.context);
  // Destroyed by another thread, which is a mistake of the program's: nothing happens.
  if (context == nullptr) return CUDA_SUCCESS;
  if (context->waits) throw wire::ProtocolError("a batch of a context whose thread waits");
  server.draws(*context);
  const bool waits = (request.flags & wire::kReply) != 0;
  const bool content = (request.flags & wire::kBulkIn) != 0 && (request.flags & wire::kPayloadInBulk) == 0;
  while (request.in.left() != 0) {
    const auto command_head = request.in.get<wire::CommandHead>();
    if (command_head.bytes < sizeof command_head || command_head.bytes % 8 != 0)
      throw wire::ProtocolError("a command of a length that cannot be");
    const std::span<const u8> bytes = request.in.get_span(command_head.bytes - sizeof command_head);
    if (waits && !content && request.in.left() == 0) {
      server.ends_waiting();
      const bool for_gpu = GlServer::waits_for_gpu(command_head, bytes);
      if (for_gpu && server.may_wait(request)) {
        server.wait_in_driver(*context, request, command_head, bytes);
        return CUDA_SUCCESS;
      }
      request.answered_later = for_gpu && server.hold_answer(*context, request, command_head, bytes);
      if (!request.answered_later) execute_last(worker, *context, request, command_head, bytes);
      return CUDA_SUCCESS;
    }
    GlCommand command(command_head, bytes);
    if (content) command.allow_bulk({worker.at(request.bulk_offset), request.bulk_size});
    execute(*context, command);
  }
  if (!content && !has_next(worker, request)) server.begin(*context);
  return CUDA_SUCCESS;
}

}  // namespace gpupool::worker

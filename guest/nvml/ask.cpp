// One question to hostd and its answer. Everything that comes back is checked before it is used.
#include <sys/socket.h>

#include <cerrno>
#include <ctime>

#include "guest/nvml/library.hpp"
#include "guest/runtime/log.hpp"
#include "guest/runtime/transport/endpoint.hpp"
#include "guest/runtime/transport/secure.hpp"
#include "wire/cpp/hello.hpp"
#include "wire/cpp/version.hpp"

namespace gpupool::guest::nvml {
namespace {

constexpr int kDialTimeoutSeconds = 3;
// The whole answer; hostd answers in a millisecond, but may just be starting workers on a busy machine.
constexpr int kAnswerTimeoutSeconds = 10;

time_t now_s() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec;
}

// Fills `data` to its end before `deadline_s`.
bool receive(int fd, time_t deadline_s, void* data, size_t size, std::string& why) {
  u8* next = static_cast<u8*>(data);
  while (size > 0) {
    const time_t left = deadline_s - now_s();
    if (left <= 0) {
      why = "the host did not answer in " + std::to_string(kAnswerTimeoutSeconds) + " s";
      return false;
    }
    set_timeout(fd, SO_RCVTIMEO, static_cast<int>(left));
    const ssize_t got = recv(fd, next, size, 0);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (got <= 0) {
      why = got == 0 ? "the host closed the connection before it answered; its log says why"
                     : std::string("no answer from the host: ") + std::strerror(errno);
      return false;
    }
    next += got;
    size -= static_cast<size_t>(got);
  }
  return true;
}

// Reads `count` records of `stride` bytes each, of which a later host may have appended some.
template <typename T>
bool receive_records(int fd, time_t deadline_s, u32 count, u32 stride, std::vector<T>& records,
                     std::string& why) {
  std::vector<u8> raw(stride);
  for (u32 i = 0; i < count; ++i) {
    if (!receive(fd, deadline_s, raw.data(), raw.size(), why)) return false;
    std::memcpy(static_cast<void*>(&records.emplace_back()), raw.data(), sizeof(T));
  }
  return true;
}

// The rest of a Welcome that is a refusal.
bool receive_refusal(int fd, time_t deadline_s, const wire::Report& head, std::string& why) {
  wire::Welcome welcome;
  static_assert(sizeof(wire::Welcome) > sizeof(wire::Report));
  u8* raw = reinterpret_cast<u8*>(&welcome);
  std::memcpy(raw, &head, sizeof head);
  if (receive(fd, deadline_s, raw + sizeof head, sizeof welcome - sizeof head, why))
    why = text_of(welcome.text);
  return false;
}

bool receive_report(int fd, Snapshot& snapshot, std::string& why) {
  const time_t deadline_s = now_s() + kAnswerTimeoutSeconds;
  wire::Report& head = snapshot.head;
  if (!receive(fd, deadline_s, &head, sizeof head, why)) return false;
  if (head.magic == wire::kWelcomeMagic) return receive_refusal(fd, deadline_s, head, why);
  constexpr u32 kMaxRecord = 4096;
  const bool sane = head.bytes >= sizeof head && head.bytes <= kMaxRecord &&
                    head.gpu_bytes >= sizeof(wire::GpuReport) && head.gpu_bytes <= kMaxRecord &&
                    head.process_bytes >= sizeof(wire::ProcessReport) && head.process_bytes <= kMaxRecord &&
                    head.gpu_count <= wire::kReportMaxGpus && head.process_count <= wire::kReportMaxProcesses;
  if (head.magic != wire::kReportMagic || !sane) {
    why = "the peer is not a gpupool host, or one of another version";
    return false;
  }
  std::vector<u8> appended(head.bytes - sizeof head);
  return receive(fd, deadline_s, appended.data(), appended.size(), why) &&
         receive_records(fd, deadline_s, head.gpu_count, head.gpu_bytes, snapshot.gpus, why) &&
         receive_records(fd, deadline_s, head.process_count, head.process_bytes, snapshot.processes, why);
}

bool make_query(wire::Query& query, std::string& why) {
  query.protocol_major = wire::kProtocolMajor;
  query.protocol_minor = wire::kProtocolMinor;
  query.bytes = sizeof query;
  std::strncpy(query.client_version, wire::kVersion, sizeof query.client_version - 1);
  query.pid = static_cast<u32>(getpid());
  return read_token(query.token, why) && read_vgpu(query.vgpu, why) &&
         read_number("GPUPOOL_COMPUTE_PERCENT", 100, query.compute_percent, why) &&
         read_number("GPUPOOL_MEMORY_MIB", 1u << 24, query.memory_mib, why);
}

}  // namespace

bool ask_host(Snapshot& snapshot, std::string& why) {
  std::vector<Endpoint> endpoints;
  wire::Query query;
  if (!candidates(endpoints, why) || !make_query(query, why)) return false;
  for (const Endpoint& endpoint : endpoints) {
    if (!check_transport(endpoint, why)) continue;
    Secured secured;  // outlives the socket, whose end ends its thread
    std::vector<Descriptor> dialled;
    dialled.emplace_back(dial_socket(endpoint, kDialTimeoutSeconds, why));
    if (dialled.front().get() < 0) continue;
    if (endpoint.kind == wire::TransportKind::tls &&
        !secured.start(endpoint, dialled, kDialTimeoutSeconds, why))
      return false;
    const Descriptor& fd = dialled.front();
    // A host that refuses may have closed already: its answer is there to be read all the same.
    if (!send_all(fd.get(), &query, sizeof query))
      why = "the host closed the connection: " + std::string(std::strerror(errno));
    return receive_report(fd.get(), snapshot, why);
  }
  return false;
}

}  // namespace gpupool::guest::nvml

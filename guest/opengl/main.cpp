// gpupool-opengl: where a guest's OpenGL meets its host (docs/opengl.md).
//
//   gpupool-opengl serve --socket PATH [--socket PATH...] [--parent PID] [--any-user yes]
//       listens where Mesa's virpipe driver dials and gives each connection a session on the host. Prints
//       "ready" when it does. Ends with that parent; sessions that are under way go on.
//   gpupool-opengl exec --socket PATH [--optional yes] -- PROGRAM...
//       runs a program with the fixed name that older Mesa dials leading to PATH; where that cannot be, only
//       if it is optional.
//   gpupool-opengl run [--direct] -- PROGRAM...
//       both for one program, with the variables set: for containers, where there is no `gpupool run`.
//
// A process each connection: it is the session's client to the host, and what breaks there ends one program.
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "guest/opengl/dial.hpp"
#include "guest/opengl/direct.hpp"
#include "guest/opengl/pump.hpp"
#include "guest/opengl/room.hpp"
#include "guest/opengl/window.hpp"
#include "guest/runtime/log.hpp"
#include "wire/cpp/descriptor_passing.hpp"
#include "wire/cpp/opengl.hpp"

namespace gpupool::guest::opengl {
namespace {

constexpr int kUsage = 64;  // sysexits.h
constexpr int kFailed = 125;
constexpr int kNotExecutable = 126;
constexpr int kNotFound = 127;
constexpr int kBacklog = 128;
constexpr u32 kMostSessions = 256;  // more than a vGPU has
constexpr int kEndGraceMs = 2000;
constexpr char kHelpText[] = R"(OpenGL of programs on a gpupool vGPU, without Python (docs/opengl.md).

usage:
  gpupool-opengl run [--direct] -- PROGRAM [ARGUMENTS]
      runs a program whose OpenGL is drawn on the vGPU, through Mesa. --direct: what it draws without a
      display goes through gpupool's own EGL, libEGL_gpupool.so, at native speed; windows stay Mesa's.
  gpupool-opengl serve --socket PATH [--socket PATH] [--parent PID] [--any-user yes]
      serves programs that have GALLIUM_DRIVER=virpipe, LIBGL_ALWAYS_SOFTWARE=1 and VTEST_SOCKET_NAME=PATH
      in their environment, until it or that parent is ended.
  gpupool-opengl exec --socket PATH [--optional yes] -- PROGRAM [ARGUMENTS]
      runs a program whose Mesa, before 23.1, knows no VTEST_SOCKET_NAME.

Where the host is, and which vGPU: GPUPOOL_ENDPOINT, GPUPOOL_VGPU and the like (docs/configuration.md).
exit codes: the program's; 64 the command line is wrong; 125 it was not run, stderr says why;
126 the program cannot be run; 127 it was not found
)";

struct Options {
  std::vector<std::string> sockets;
  pid_t parent = 0;
  bool any_user = false;
  bool optional = false;
  bool direct = false;
  bool help = false;
};

int open_pidfd(pid_t pid) {
  return static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
}

// Whoever made the connection, or nobody when another user did.
bool identify(int fd, bool any_user, Program& program) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return false;
  if (!any_user && peer.uid != geteuid() && peer.uid != 0) return false;
  program.pid = static_cast<u32>(peer.pid);
  const Descriptor comm(open(("/proc/" + std::to_string(peer.pid) + "/comm").c_str(), O_RDONLY | O_CLOEXEC));
  if (comm.get() < 0) return true;  // it has left already
  const ssize_t got = read(comm.get(), program.name, sizeof program.name - 1);
  if (got > 0 && program.name[got - 1] == '\n') program.name[got - 1] = 0;
  return true;
}

// The host speaks with the program itself; this process is only there so that the session has a client that
// ends. Waits for whichever ends first.
void step_aside(const Program& program, Session& session, Descriptor connection) {
  const u8 byte = 0;
  if (wire::send_with_descriptor(session.socket.get(), &byte, 1, connection.get(), MSG_NOSIGNAL) != 1) return;
  connection.reset(-1);  // or the program would never see the session's end
  const Descriptor its(open_pidfd(static_cast<pid_t>(program.pid)));
  pollfd ends[2] = {{session.socket.get(), POLLIN, 0}, {its.get(), POLLIN, 0}};
  while (poll(ends, 2, -1) < 0 && errno == EINTR) continue;
  if (ends[0].revents == 0) {
    // Its socket may be another's by now, a child's: the host sees that one's end.
    while (poll(ends, 1, kEndGraceMs) < 0 && errno == EINTR) continue;
    if (ends[0].revents == 0)
      while (poll(ends, 1, -1) < 0 && errno == EINTR) continue;
  }
  char text[wire::kMostNotice + 1] = {};
  const ssize_t got = recv(session.socket.get(), text, wire::kMostNotice, MSG_DONTWAIT);
  if (got > 0) log_line("OpenGL of %s (%u): %s", program.name, program.pid, text);
}

FirstEnd carry(int program, const Session& session) {
  const int host = session.socket.get();
  if (session.slot == nullptr) return pump(program, host);
  return pump_window(program, host, wire::ByteRings(session.slot, session.slot_bytes));
}

[[noreturn]] void serve_connection(const Options& options, Descriptor connection) {
  Program program;
  if (!identify(connection.get(), options.any_user, program)) _exit(0);
  prctl(PR_SET_NAME, program.name);
  std::string why;
  Session session;
  if (!dial(program, session, why)) {
    log_line("no OpenGL for %s (%u): %s", program.name, program.pid, why.c_str());
    _exit(1);
  }
  if (session.shared) {
    step_aside(program, session, std::move(connection));
  } else if (carry(connection.get(), session) == FirstEnd::host) {
    log_line("OpenGL of %s (%u): the host has ended the session; its log says why", program.name,
             program.pid);
  }
  _exit(0);
}

int listen_at(const std::string& path, bool any_user) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    errno = ENAMETOOLONG;
    return -1;
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  Descriptor listener(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  struct stat facts {};
  // Of a relay before this one; what is another user's stays, and bind() fails. At the fixed name nobody
  // keeps anything but an empty file (room.cpp), which root may take away from anybody.
  if (lstat(path.c_str(), &facts) == 0) {
    const bool fixed = path == kFixedName && geteuid() == 0 && !S_ISDIR(facts.st_mode);
    if (fixed || (facts.st_uid == geteuid() && S_ISSOCK(facts.st_mode))) unlink(path.c_str());
  }
  const mode_t before = umask(any_user ? 0 : 0177);
  const bool bound = bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  umask(before);
  return bound && listen(listener.get(), kBacklog) == 0 ? listener.release() : -1;
}

void collect_children(u32& sessions) {
  while (sessions > 0 && waitpid(-1, nullptr, WNOHANG) > 0) --sessions;
}

void accept_one(const Options& options, int listener, u32& sessions) {
  Descriptor connection(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
  if (connection.get() < 0) return;
  if (sessions >= kMostSessions) {
    log_line("more than %u programs use OpenGL here; another one is refused", kMostSessions);
    return;
  }
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGCHLD, SIG_DFL);
    serve_connection(options, std::move(connection));
  }
  if (child > 0) ++sessions;
  if (child < 0) log_line("no process for an OpenGL session: %s", std::strerror(errno));
}

// With the folder that was made for it alone, by run() or `gpupool run`, which may have been killed.
void remove_socket(const std::string& path) {
  unlink(path.c_str());
  const std::string folder = path.substr(0, path.rfind('/'));
  if (folder.find("/gpupool-opengl-") == std::string::npos) return;
  unlink((folder + kVendorFile).c_str());
  rmdir(folder.c_str());
}

bool listen_at_all(const Options& options, std::vector<pollfd>& waits) {
  for (const std::string& path : options.sockets) {
    const int listener = listen_at(path, options.any_user);
    if (listener < 0) {
      log_line("cannot listen at %s: %s", path.c_str(), std::strerror(errno));
      return false;
    }
    waits.push_back({listener, POLLIN, 0});
  }
  return true;
}

// Until `parent` has ended; a negative one never does.
int serve_until(const Options& options, std::vector<pollfd> waits, const Descriptor& parent) {
  const size_t listeners = waits.size();
  waits.push_back({parent.get(), POLLIN, 0});
  u32 sessions = 0;
  while (waits.back().revents == 0) {
    if (poll(waits.data(), waits.size(), sessions > 0 ? 1000 : -1) < 0 && errno != EINTR) return kFailed;
    collect_children(sessions);
    for (size_t i = 0; i < listeners; ++i)
      if (waits[i].revents != 0) accept_one(options, waits[i].fd, sessions);
  }
  for (const std::string& path : options.sockets) remove_socket(path);
  return 0;
}

int serve(const Options& options) {
  std::vector<pollfd> listeners;
  if (!listen_at_all(options, listeners)) return kFailed;
  const Descriptor parent(options.parent > 0 ? open_pidfd(options.parent) : -1);
  if (options.parent > 0 && parent.get() < 0) return 0;  // it has ended already
  std::printf("ready\n");
  std::fclose(stdout);
  return serve_until(options, listeners, parent);
}

// The program, in this process's place.
int start(char** words) {
  execvp(words[0], words);
  const int code = errno == ENOENT ? kNotFound : kNotExecutable;
  log_line("%s: %s", words[0], std::strerror(errno));
  return code;
}

int execute(const Options& options, char** words) {
  std::string why;
  if (!enter(options.sockets.front(), why)) {
    if (!options.optional) {
      log_line("no place for this Mesa's OpenGL: %s. Mesa 23.1 and later need none", why.c_str());
      return kFailed;
    }
    log_debug("no place for this Mesa's OpenGL: %s", why.c_str());
  }
  return start(words);
}

// Older Mesa's name leads here: in a mount namespace, or, where there can be none (most containers, which
// have a /tmp of their own), because the relay listens there itself.
void take_fixed_name(Options& options, std::vector<pollfd>& listeners) {
  std::string why;
  if (enter(options.sockets.front(), why)) return;
  struct stat facts {};
  const bool ours = lstat(kFixedName, &facts) == 0 && facts.st_uid == geteuid();
  if (ours && S_ISREG(facts.st_mode) && facts.st_size == 0) unlink(kFixedName);  // enter() has made it
  const int listener = listen_at(kFixedName, false);
  if (listener < 0) return log_debug("no place for older Mesa's OpenGL: %s", why.c_str());
  listeners.push_back({listener, POLLIN, 0});
  options.sockets.emplace_back(kFixedName);
}

// In TMPDIR, unless that is too long for the name of a socket. Empty with a line that says why.
std::string make_folder() {
  constexpr char kName[] = "/gpupool-opengl-XXXXXX";
  constexpr size_t kMostPlace = sizeof(sockaddr_un::sun_path) - sizeof kName - sizeof "/socket";
  const char* named = std::getenv("TMPDIR");
  // A colon separates names where GLVND is told of them.
  const bool fits = named != nullptr && *named == '/' && std::strlen(named) <= kMostPlace &&
                    std::strchr(named, ':') == nullptr;
  const std::string place = fits ? named : "/tmp";
  std::string folder = place + kName;
  if (mkdtemp(folder.data()) != nullptr) return folder;
  log_line("cannot make a folder in %s: %s", place.c_str(), std::strerror(errno));
  return "";
}

// Whoever does not become the program removes the sockets with their folder.
int give_up(const Options& options) {
  for (const std::string& path : options.sockets) remove_socket(path);
  return kFailed;
}

// The program takes this process over; the relay is a child, which lives as long, and removes the folder.
int run(Options options, char** words) {
  const std::string folder = make_folder();
  if (folder.empty()) return kFailed;
  options.sockets = {folder + "/socket"};
  std::string why;
  if (options.direct && !choose_direct(folder, why)) {
    log_line("--direct: %s", why.c_str());
    return give_up(options);
  }
  std::vector<pollfd> listeners;
  const Descriptor self(open_pidfd(getpid()));
  if (self.get() < 0) log_line("this kernel has no pidfd: %s; Linux 5.3 is needed", std::strerror(errno));
  if (self.get() < 0 || !listen_at_all(options, listeners)) return give_up(options);
  take_fixed_name(options, listeners);
  const pid_t child = fork();
  if (child < 0) {
    log_line("no process for the relay: %s", std::strerror(errno));
    return give_up(options);
  }
  if (child == 0) {
    setsid();  // what the terminal's keys end is the program
    // Who reads the program's output reads to its end, not to ours.
    const Descriptor nothing(open("/dev/null", O_RDWR | O_CLOEXEC));
    dup2(nothing.get(), STDIN_FILENO);
    dup2(nothing.get(), STDOUT_FILENO);
    _exit(serve_until(options, listeners, self));
  }
  setenv("GALLIUM_DRIVER", "virpipe", 1);
  setenv("LIBGL_ALWAYS_SOFTWARE", "1", 1);
  setenv("VTEST_SOCKET_NAME", options.sockets.front().c_str(), 1);
  setenv("__GLX_VENDOR_LIBRARY_NAME", "mesa", 0);
  return start(words);
}

bool parse(int argc, char** argv, Options& options) {
  enum { kSocket = 1, kParent, kAnyUser, kOptional, kDirect, kHelp };
  static constexpr option kOptions[] = {{"socket", required_argument, nullptr, kSocket},
                                        {"parent", required_argument, nullptr, kParent},
                                        {"any-user", required_argument, nullptr, kAnyUser},
                                        {"optional", required_argument, nullptr, kOptional},
                                        {"direct", no_argument, nullptr, kDirect},
                                        {"help", no_argument, nullptr, kHelp},
                                        {nullptr, 0, nullptr, 0}};
  for (int found; (found = getopt_long(argc, argv, "+", kOptions, nullptr)) != -1;) {
    if (found == '?') return false;
    if (found == kSocket) options.sockets.emplace_back(optarg);
    if (found == kParent) options.parent = std::atoi(optarg);
    if (found == kOptional) options.optional = std::strcmp(optarg, "yes") == 0;
    if (found == kDirect) options.direct = true;
    if (found == kHelp) options.help = true;
    if (found == kAnyUser) options.any_user = std::strcmp(optarg, "yes") == 0;
  }
  return true;
}

}  // namespace
}  // namespace gpupool::guest::opengl

int main(int argc, char** argv) {
  using namespace gpupool::guest::opengl;  // main() cannot live in the namespace it belongs to
  Options options;
  const std::string what = argc > 1 ? argv[1] : "";
  const bool understood = argc > 1 && parse(argc - 1, argv + 1, options);
  char** rest = argv + 1 + optind;
  if (what == "--help" || what == "-h" || (understood && options.help)) {
    std::fputs(kHelpText, stdout);
    return 0;
  }
  if (understood && what == "run" && *rest != nullptr) return run(options, rest);
  if (understood && !options.direct && what == "serve" && !options.sockets.empty()) return serve(options);
  if (understood && !options.direct && what == "exec" && !options.sockets.empty() && *rest != nullptr)
    return execute(options, rest);
  gpupool::guest::log_line("gpupool-opengl run [--direct] -- PROGRAM; gpupool-opengl --help has the rest");
  return kUsage;
}

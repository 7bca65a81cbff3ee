// Stands in for a virtual machine's vsock device: connections to context 2, port N, arrive at the unix socket
// named by VSOCK_FOLDER, "/port-" and N, as with hypervisors that have vsock in user space. Preloaded into
// the client.
#include <dlfcn.h>
#include <linux/vm_sockets.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstdio>
#include <cstdlib>

extern "C" int socket(int family, int type, int protocol) {
  using Function = int (*)(int, int, int);
  static const auto real = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "socket"));
  return real(family == AF_VSOCK ? AF_UNIX : family, type, protocol);
}

extern "C" int connect(int fd, const sockaddr* address, socklen_t size) {
  using Function = int (*)(int, const sockaddr*, socklen_t);
  static const auto real = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "connect"));
  if (address->sa_family != AF_VSOCK) return real(fd, address, size);
  const auto* wanted = reinterpret_cast<const sockaddr_vm*>(address);
  sockaddr_un there{};
  there.sun_family = AF_UNIX;
  if (wanted->svm_cid != VMADDR_CID_HOST) return -1;
  std::snprintf(there.sun_path, sizeof there.sun_path, "%s/port-%u", std::getenv("VSOCK_FOLDER"),
                wanted->svm_port);
  return real(fd, reinterpret_cast<const sockaddr*>(&there), sizeof there);
}

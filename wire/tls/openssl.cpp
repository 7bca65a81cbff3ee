#include "wire/tls/openssl.hpp"

#include <dlfcn.h>

#include <mutex>

namespace gpupool::tls {
namespace {

struct Entry {
  const char* name;
  void** where;
  const char* older = nullptr;  // its name in OpenSSL 1.1.1
};

bool fill(void* library, OpenSsl& found, std::string& why) {
#define ENTRY(name) {#name, reinterpret_cast<void**>(&found.name)}
  const Entry entries[] = {
      ENTRY(OPENSSL_init_ssl),
      ENTRY(TLS_client_method),
      ENTRY(TLS_server_method),
      ENTRY(SSL_CTX_new),
      ENTRY(SSL_CTX_free),
      ENTRY(SSL_CTX_ctrl),
      ENTRY(SSL_CTX_set_verify),
      ENTRY(SSL_CTX_set_ciphersuites),
      ENTRY(SSL_CTX_set_num_tickets),
      ENTRY(SSL_CTX_set_default_read_buffer_len),
      ENTRY(SSL_CTX_set_default_verify_paths),
      ENTRY(SSL_CTX_load_verify_locations),
      ENTRY(SSL_CTX_use_certificate_chain_file),
      ENTRY(SSL_CTX_use_PrivateKey_file),
      ENTRY(SSL_CTX_check_private_key),
      ENTRY(SSL_new),
      ENTRY(SSL_free),
      ENTRY(SSL_set_fd),
      ENTRY(SSL_set_connect_state),
      ENTRY(SSL_set_accept_state),
      ENTRY(SSL_do_handshake),
      ENTRY(SSL_read),
      ENTRY(SSL_write),
      ENTRY(SSL_has_pending),
      ENTRY(SSL_shutdown),
      ENTRY(SSL_key_update),
      ENTRY(SSL_get_error),
      ENTRY(SSL_ctrl),
      ENTRY(SSL_get0_param),
      ENTRY(SSL_get_verify_result),
      {"SSL_get1_peer_certificate", reinterpret_cast<void**>(&found.SSL_get1_peer_certificate),
       "SSL_get_peer_certificate"},
      ENTRY(X509_VERIFY_PARAM_set1_host),
      ENTRY(X509_VERIFY_PARAM_set1_ip_asc),
      ENTRY(X509_verify_cert_error_string),
      ENTRY(X509_digest),
      ENTRY(EVP_sha256),
      ENTRY(X509_free),
      ENTRY(ERR_get_error),
      ENTRY(ERR_reason_error_string),
      ENTRY(ERR_clear_error),
  };
#undef ENTRY
  for (const Entry& entry : entries) {
    *entry.where = dlsym(library, entry.name);  // looks in libcrypto, too, which libssl needs
    if (*entry.where == nullptr && entry.older != nullptr) *entry.where = dlsym(library, entry.older);
    if (*entry.where != nullptr) continue;
    why = std::string("this OpenSSL has no ") + entry.name + "; TLS needs OpenSSL 1.1.1 or later";
    return false;
  }
  return true;
}

}  // namespace

const OpenSsl* openssl(std::string& why) {
  static std::mutex mutex;
  static OpenSsl library;
  static bool loaded = false;
  const std::lock_guard lock(mutex);
  if (loaded) return &library;
  void* handle = nullptr;
  for (const char* name : {"libssl.so.3", "libssl.so.1.1"})
    if (handle == nullptr) handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    why =
        "TLS needs OpenSSL, and neither libssl.so.3 nor libssl.so.1.1 can be loaded here; install it "
        "(libssl3)";
    return nullptr;
  }
  if (!fill(handle, library, why)) {
    dlclose(handle);
    return nullptr;
  }
  // Programs call CUDA from their exit handlers, so the library must not tear itself down before them. Where
  // the program has initialised it before us, its own choice stays.
  if (library.OPENSSL_init_ssl(kNoAtExit, nullptr) != 1) {
    why = "OpenSSL does not initialise: " + reason(library);
    return nullptr;
  }
  loaded = true;
  return &library;
}

std::string reason(const OpenSsl& library) {
  const unsigned long error = library.ERR_get_error();
  const char* text = error == 0 ? nullptr : library.ERR_reason_error_string(error);
  library.ERR_clear_error();
  return text == nullptr ? "" : text;
}

}  // namespace gpupool::tls

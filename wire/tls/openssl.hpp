// OpenSSL, found when it is first needed: a program that never dials tls:// needs none, and the guest library
// links nothing that an old system lacks. Only what TLS 1.3 on a socket takes is declared here, with the
// types of OpenSSL's documentation (man section 3); numbers are from its public headers and part of its ABI,
// the same in 1.1.1 and 3.x.
#pragma once

#include <cstddef>
#include <string>

#include "wire/cpp/types.hpp"

namespace gpupool::tls {

// Objects of the library's; nothing is known of them.
struct Ssl;
struct Context;
struct Method;
struct Certificate;
struct Digest;
struct VerifyParameters;

struct OpenSsl {
  int (*OPENSSL_init_ssl)(u64 options, const void* settings);
  const Method* (*TLS_client_method)();
  const Method* (*TLS_server_method)();
  Context* (*SSL_CTX_new)(const Method*);
  void (*SSL_CTX_free)(Context*);
  long (*SSL_CTX_ctrl)(Context*, int what, long number, void* pointer);
  void (*SSL_CTX_set_verify)(Context*, int mode, void* callback);
  int (*SSL_CTX_set_ciphersuites)(Context*, const char*);
  int (*SSL_CTX_set_num_tickets)(Context*, size_t);
  void (*SSL_CTX_set_default_read_buffer_len)(Context*, size_t);
  int (*SSL_CTX_set_default_verify_paths)(Context*);
  int (*SSL_CTX_load_verify_locations)(Context*, const char* file, const char* folder);
  int (*SSL_CTX_use_certificate_chain_file)(Context*, const char*);
  int (*SSL_CTX_use_PrivateKey_file)(Context*, const char*, int type);
  int (*SSL_CTX_check_private_key)(const Context*);
  Ssl* (*SSL_new)(Context*);
  void (*SSL_free)(Ssl*);
  int (*SSL_set_fd)(Ssl*, int);
  void (*SSL_set_connect_state)(Ssl*);
  void (*SSL_set_accept_state)(Ssl*);
  int (*SSL_do_handshake)(Ssl*);
  int (*SSL_read)(Ssl*, void*, int);
  int (*SSL_write)(Ssl*, const void*, int);
  int (*SSL_has_pending)(const Ssl*);
  int (*SSL_shutdown)(Ssl*);
  int (*SSL_key_update)(Ssl*, int kind);
  int (*SSL_get_error)(const Ssl*, int result);
  long (*SSL_ctrl)(Ssl*, int what, long number, void* pointer);
  VerifyParameters* (*SSL_get0_param)(Ssl*);
  long (*SSL_get_verify_result)(const Ssl*);
  Certificate* (*SSL_get1_peer_certificate)(const Ssl*);  // SSL_get_peer_certificate in 1.1.1
  // libcrypto's
  int (*X509_VERIFY_PARAM_set1_host)(VerifyParameters*, const char*, size_t);
  int (*X509_VERIFY_PARAM_set1_ip_asc)(VerifyParameters*, const char*);
  const char* (*X509_verify_cert_error_string)(long);
  int (*X509_digest)(const Certificate*, const Digest*, unsigned char*, unsigned*);
  const Digest* (*EVP_sha256)();
  void (*X509_free)(Certificate*);
  unsigned long (*ERR_get_error)();
  const char* (*ERR_reason_error_string)(unsigned long);
  void (*ERR_clear_error)();
};

inline constexpr int kErrorSsl = 1, kErrorWantRead = 2, kErrorWantWrite = 3, kErrorZeroReturn = 6;  // ssl.h
inline constexpr int kVerifyNone = 0, kVerifyPeer = 1;
inline constexpr int kPem = 1;                     // SSL_FILETYPE_PEM
inline constexpr int kControlMode = 33;            // SSL_CTRL_MODE
inline constexpr int kControlReadAhead = 41;       // SSL_CTRL_SET_READ_AHEAD
inline constexpr int kControlSessionCache = 44;    // SSL_CTRL_SET_SESS_CACHE_MODE
inline constexpr int kControlServerName = 55;      // SSL_CTRL_SET_TLSEXT_HOSTNAME
inline constexpr int kControlLowestVersion = 123;  // SSL_CTRL_SET_MIN_PROTO_VERSION
inline constexpr long kPartialWrite = 1 | 2;   // SSL_MODE_ENABLE_PARTIAL_WRITE, _ACCEPT_MOVING_WRITE_BUFFER
inline constexpr long kTls13 = 0x0304;         // TLS1_3_VERSION
inline constexpr u64 kNoAtExit = 0x0008'0000;  // OPENSSL_INIT_NO_ATEXIT

// The library, loaded once and kept; null with `why`, which names what is missing.
const OpenSsl* openssl(std::string& why);
// The oldest error of this thread that the library has noted, in its words; "" when there is none.
std::string reason(const OpenSsl& library);

}  // namespace gpupool::tls

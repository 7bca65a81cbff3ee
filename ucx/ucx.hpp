// The part of UCX that the relay uses, with owners. UCX reads its own settings from UCX_* variables: UCX_TLS
// chooses the transports (rc, ud, dc: RDMA; tcp; shm), UCX_NET_DEVICES the adapters.
#pragma once

#include <ucp/api/ucp.h>

#include <stdexcept>
#include <string>

namespace gpupool::ucx {

class UcxError : public std::runtime_error {
 public:
  UcxError(const char* what, ucs_status_t status)
      : std::runtime_error(std::string(what) + ": " + ucs_status_string(status)) {}
};

inline void check(ucs_status_t status, const char* what) {
  if (status != UCS_OK) throw UcxError(what, status);
}

class UcxContext {
 public:
  UcxContext() {
    ucp_config_t* config = nullptr;
    check(ucp_config_read(nullptr, nullptr, &config), "ucp_config_read");
    ucp_params_t params{};
    params.field_mask = UCP_PARAM_FIELD_FEATURES;
    params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
    const ucs_status_t status = ucp_init(&params, config, &handle_);
    ucp_config_release(config);
    check(status, "ucp_init");
  }
  ~UcxContext() { ucp_cleanup(handle_); }
  UcxContext(const UcxContext&) = delete;
  UcxContext& operator=(const UcxContext&) = delete;
  [[nodiscard]] ucp_context_h get() const { return handle_; }

 private:
  ucp_context_h handle_ = nullptr;
};

class UcxWorker {
 public:
  explicit UcxWorker(const UcxContext& context) {
    ucp_worker_params_t params{};
    params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
    params.thread_mode = UCS_THREAD_MODE_SINGLE;
    check(ucp_worker_create(context.get(), &params, &handle_), "ucp_worker_create");
    const ucs_status_t status = ucp_worker_get_efd(handle_, &efd_);
    if (status == UCS_OK) return;
    ucp_worker_destroy(handle_);
    throw UcxError("ucp_worker_get_efd", status);
  }
  ~UcxWorker() { ucp_worker_destroy(handle_); }
  UcxWorker(const UcxWorker&) = delete;
  UcxWorker& operator=(const UcxWorker&) = delete;

  [[nodiscard]] ucp_worker_h get() const { return handle_; }
  // Readable when there is something to progress, after arm() has said true.
  [[nodiscard]] int efd() const { return efd_; }
  // True when something has happened.
  bool progress() { return ucp_worker_progress(handle_) != 0; }
  // False when there is something to progress now.
  bool arm() { return ucp_worker_arm(handle_) == UCS_OK; }

 private:
  ucp_worker_h handle_ = nullptr;
  int efd_ = -1;  // the worker's own
};

}  // namespace gpupool::ucx

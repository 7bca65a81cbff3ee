// libvirglrenderer, loaded at run time: a host without it has no OpenGL for guests, and everything else
// works.
#pragma once

#include <virgl/virglrenderer.h>

#include <string>

namespace gpupool::renderer {

#define GPUPOOL_VIRGL_FUNCTIONS(apply)                                                             \
  apply(virgl_renderer_init) apply(virgl_renderer_poll) apply(virgl_renderer_context_create)       \
      apply(virgl_renderer_resource_create) apply(virgl_renderer_resource_unref)                   \
          apply(virgl_renderer_resource_attach_iov) apply(virgl_renderer_resource_detach_iov)      \
              apply(virgl_renderer_ctx_attach_resource) apply(virgl_renderer_ctx_detach_resource)  \
                  apply(virgl_renderer_transfer_read_iov) apply(virgl_renderer_transfer_write_iov) \
                      apply(virgl_renderer_submit_cmd) apply(virgl_renderer_get_cap_set)           \
                          apply(virgl_renderer_fill_caps) apply(virgl_renderer_create_fence)

struct VirglLibrary {
#define GPUPOOL_DECLARE(name) decltype(&::name) name = nullptr;
  GPUPOOL_VIRGL_FUNCTIONS(GPUPOOL_DECLARE)
#undef GPUPOOL_DECLARE
  // Where text goes; a later library may have given it up.
  decltype(&::virgl_set_debug_callback) virgl_set_debug_callback = nullptr;

  // False with `error`, which says what to install.
  bool load(std::string& error);
};

}  // namespace gpupool::renderer

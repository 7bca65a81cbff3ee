# gpupool-ucx, which carries connections over UCX (docs/rdma.md). Only where UCX is (Debian: libucx-dev); nothing else
# links it.
find_path(GPUPOOL_UCX_INCLUDE ucp/api/ucp.h)
find_library(GPUPOOL_UCX_UCP ucp)
find_library(GPUPOOL_UCX_UCS ucs)
if(GPUPOOL_UCX_INCLUDE AND GPUPOOL_UCX_UCP AND GPUPOOL_UCX_UCS)
  add_executable(ucx_relay ucx/main.cpp ucx/link.cpp)
  target_link_libraries(ucx_relay PRIVATE gpupool_flags gpupool_sanitize ${GPUPOOL_UCX_UCP} ${GPUPOOL_UCX_UCS})
  target_include_directories(ucx_relay SYSTEM PRIVATE ${GPUPOOL_UCX_INCLUDE})
  set_target_properties(ucx_relay PROPERTIES OUTPUT_NAME gpupool-ucx
                        RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/libexec)
  install(TARGETS ucx_relay RUNTIME DESTINATION gpupool/native/libexec)
else()
  message(STATUS "UCX is not there (libucx-dev): gpupool-ucx is not built")
endif()

# What bench/ needs besides Python: loops around driver calls, a relay that delays, a stand-in for vsock, and
# a guest without a VM.
add_library(bench_loops SHARED bench/native/loops.cpp)
add_library(bench_vsock SHARED bench/native/vsock.cpp)
add_executable(bench_relay bench/native/relay.cpp)
add_executable(bench_vsock-guest bench/native/vsock_guest.cpp)
foreach(part bench_loops bench_vsock bench_relay bench_vsock-guest)
  string(REPLACE bench_ gpupool-bench- name ${part})
  target_link_libraries(${part} PRIVATE gpupool_flags ${CMAKE_DL_LIBS})
  set_target_properties(${part} PROPERTIES OUTPUT_NAME ${name} CXX_VISIBILITY_PRESET default
                        LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib/bench
                        RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib/bench)
endforeach()
install(TARGETS bench_loops bench_vsock bench_relay bench_vsock-guest
        LIBRARY DESTINATION gpupool/native/bench RUNTIME DESTINATION gpupool/native/bench)

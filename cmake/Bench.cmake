# What bench/ needs besides Python: loops around driver calls, a relay that delays, and a stand-in for vsock.
add_library(bench_loops SHARED bench/native/loops.cpp)
add_library(bench_vsock SHARED bench/native/vsock.cpp)
add_executable(bench_relay bench/native/relay.cpp)
foreach(part bench_loops bench_vsock bench_relay)
  string(REPLACE bench_ gpupool-bench- name ${part})
  target_link_libraries(${part} PRIVATE gpupool_flags ${CMAKE_DL_LIBS})
  set_target_properties(${part} PROPERTIES OUTPUT_NAME ${name} CXX_VISIBILITY_PRESET default
                        LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib/bench
                        RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib/bench)
endforeach()
install(TARGETS bench_loops bench_vsock bench_relay
        LIBRARY DESTINATION gpupool/native/bench RUNTIME DESTINATION gpupool/native/bench)

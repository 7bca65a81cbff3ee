# The libraries that programs load. Included twice: by the build itself, and by guest/portable, which builds them for
# old systems with another compiler. Needs GPUPOOL_ROOT, GPUPOOL_GENERATED_DIR, GPUPOOL_GENERATED_GUEST,
# GPUPOOL_GENERATED_NVML, GPUPOOL_GENERATED_OPENGL_GUEST, GPUPOOL_GUEST_FOLDER (where they go) and the targets gpupool_flags, gpupool_codegen,
# gpupool_nvml_codegen and gpupool_opengl_codegen.

# The guest runtime. It lives inside other people's programs: nothing but cu* leaves it, and it brings its own
# libstdc++.
file(GLOB GUEST_SOURCES CONFIGURE_DEPENDS ${GPUPOOL_ROOT}/guest/runtime/*.cpp ${GPUPOOL_ROOT}/guest/runtime/manual/*.cpp
     ${GPUPOOL_ROOT}/guest/runtime/transport/*.cpp ${GPUPOOL_ROOT}/wire/tls/*.cpp)
# Compiled once for the library and for its tests, as the worker and the software GPU's engine below.
add_library(guest_objects OBJECT ${GUEST_SOURCES} ${GPUPOOL_GENERATED_GUEST})
target_link_libraries(guest_objects PRIVATE gpupool_flags)
target_include_directories(guest_objects PRIVATE ${GPUPOOL_GENERATED_DIR})
add_dependencies(guest_objects gpupool_codegen)
add_library(guest_runtime SHARED $<TARGET_OBJECTS:guest_objects>)
target_link_libraries(guest_runtime PRIVATE gpupool_flags ${CMAKE_DL_LIBS})
# nodelete: threads that have called us run our clean-up when they end, even after a dlclose.
target_link_options(guest_runtime PRIVATE $<$<CXX_COMPILER_ID:GNU>:-static-libstdc++;-static-libgcc;-Wl,--exclude-libs,ALL>
                    $<IF:$<CXX_COMPILER_ID:GNU>,-Wl$<COMMA>-Bsymbolic-functions,-Wl$<COMMA>-Bsymbolic>
                    -Wl,-soname,libcuda.so.1 -Wl,-z,now -Wl,-z,nodelete -Wl,-z,defs
                    -Wl,--version-script=${GPUPOOL_ROOT}/guest/runtime/exports.map)
set_target_properties(guest_runtime PROPERTIES OUTPUT_NAME cuda PREFIX lib SUFFIX .so.1
                      LINK_DEPENDS ${GPUPOOL_ROOT}/guest/runtime/exports.map
                      LINKER_LANGUAGE CXX
                      LIBRARY_OUTPUT_DIRECTORY ${GPUPOOL_GUEST_FOLDER})
add_custom_command(TARGET guest_runtime POST_BUILD
  COMMAND ${CMAKE_COMMAND} -E create_symlink libcuda.so.1 ${GPUPOOL_GUEST_FOLDER}/libcuda.so)

# NVML for guests, beside libcuda.so.1: the same way to dial, nothing else of the guest runtime.
file(GLOB TLS_SOURCES CONFIGURE_DEPENDS ${GPUPOOL_ROOT}/wire/tls/*.cpp)
file(GLOB NVML_SOURCES CONFIGURE_DEPENDS ${GPUPOOL_ROOT}/guest/nvml/*.cpp)
add_library(guest_nvml SHARED ${NVML_SOURCES} ${GPUPOOL_GENERATED_NVML} ${GPUPOOL_ROOT}/guest/runtime/log.cpp
            ${GPUPOOL_ROOT}/guest/runtime/marker.cpp ${GPUPOOL_ROOT}/guest/runtime/transport/endpoint.cpp
            ${GPUPOOL_ROOT}/guest/runtime/transport/guest_file.cpp ${GPUPOOL_ROOT}/guest/runtime/transport/secure.cpp ${TLS_SOURCES})
target_link_libraries(guest_nvml PRIVATE gpupool_flags ${CMAKE_DL_LIBS})
# Older and newer names of a function are told apart, as above.
target_compile_definitions(guest_nvml PRIVATE NVML_NO_UNVERSIONED_FUNC_DEFS)
target_link_options(guest_nvml PRIVATE $<$<CXX_COMPILER_ID:GNU>:-static-libstdc++;-static-libgcc;-Wl,--exclude-libs,ALL>
                    $<IF:$<CXX_COMPILER_ID:GNU>,-Wl$<COMMA>-Bsymbolic-functions,-Wl$<COMMA>-Bsymbolic>
                    -Wl,-soname,libnvidia-ml.so.1 -Wl,-z,now -Wl,-z,defs
                    -Wl,--version-script=${GPUPOOL_ROOT}/guest/nvml/exports.map)
set_target_properties(guest_nvml PROPERTIES OUTPUT_NAME nvidia-ml PREFIX lib SUFFIX .so.1
                      LINK_DEPENDS ${GPUPOOL_ROOT}/guest/nvml/exports.map
                      LINKER_LANGUAGE CXX
                      CXX_VISIBILITY_PRESET default
                      LIBRARY_OUTPUT_DIRECTORY ${GPUPOOL_GUEST_FOLDER})
add_dependencies(guest_nvml gpupool_nvml_codegen)
add_custom_command(TARGET guest_nvml POST_BUILD
  COMMAND ${CMAKE_COMMAND} -E create_symlink libnvidia-ml.so.1 ${GPUPOOL_GUEST_FOLDER}/libnvidia-ml.so)

# What OpenGL programs reach the host through: a program of its own, beside the libraries.
file(GLOB OPENGL_SOURCES CONFIGURE_DEPENDS ${GPUPOOL_ROOT}/guest/opengl/*.cpp)
add_executable(guest_opengl ${OPENGL_SOURCES} ${GPUPOOL_ROOT}/guest/runtime/log.cpp
               ${GPUPOOL_ROOT}/guest/runtime/transport/endpoint.cpp
               ${GPUPOOL_ROOT}/guest/runtime/transport/guest_file.cpp
               ${GPUPOOL_ROOT}/guest/runtime/transport/secure.cpp
               ${GPUPOOL_ROOT}/guest/runtime/transport/window_offer.cpp ${TLS_SOURCES})
target_link_libraries(guest_opengl PRIVATE gpupool_flags ${CMAKE_DL_LIBS})
target_include_directories(guest_opengl PRIVATE ${GPUPOOL_GENERATED_DIR})
target_link_options(guest_opengl PRIVATE $<$<CXX_COMPILER_ID:GNU>:-static-libstdc++;-static-libgcc> -Wl,-z,now)
add_dependencies(guest_opengl gpupool_codegen)
set_target_properties(guest_opengl PROPERTIES OUTPUT_NAME gpupool-opengl
                      RUNTIME_OUTPUT_DIRECTORY ${GPUPOOL_GUEST_FOLDER})

# OpenGL for guests: a vendor's library for GLVND's libEGL.so.1, beside libcuda.so.1, whose session it shares.
file(GLOB EGL_SOURCES CONFIGURE_DEPENDS ${GPUPOOL_ROOT}/guest/egl/*.cpp)
add_library(guest_egl SHARED ${EGL_SOURCES} ${GPUPOOL_GENERATED_OPENGL_GUEST} ${GPUPOOL_ROOT}/guest/runtime/log.cpp)
target_link_libraries(guest_egl PRIVATE gpupool_flags ${CMAKE_DL_LIBS})
target_include_directories(guest_egl PRIVATE ${GPUPOOL_GENERATED_DIR})
# nodelete: a thread that ends with a context current runs our clean-up, even after a dlclose.
target_link_options(guest_egl PRIVATE $<$<CXX_COMPILER_ID:GNU>:-static-libstdc++;-static-libgcc;-Wl,--exclude-libs,ALL>
                    $<IF:$<CXX_COMPILER_ID:GNU>,-Wl$<COMMA>-Bsymbolic-functions,-Wl$<COMMA>-Bsymbolic>
                    -Wl,-soname,libEGL_gpupool.so -Wl,-z,now -Wl,-z,nodelete -Wl,-z,defs
                    -Wl,--version-script=${GPUPOOL_ROOT}/guest/egl/exports.map)
set_target_properties(guest_egl PROPERTIES OUTPUT_NAME EGL_gpupool PREFIX lib SUFFIX .so
                      LINK_DEPENDS ${GPUPOOL_ROOT}/guest/egl/exports.map
                      LINKER_LANGUAGE CXX
                      LIBRARY_OUTPUT_DIRECTORY ${GPUPOOL_GUEST_FOLDER})
add_dependencies(guest_egl gpupool_codegen gpupool_opengl_codegen)
# Where GLVND finds it: __EGL_VENDOR_LIBRARY_FILENAMES names this file. The library is found beside it.
add_custom_command(TARGET guest_egl POST_BUILD
  COMMAND ${CMAKE_COMMAND} -E copy_if_different ${GPUPOOL_ROOT}/guest/egl/10_gpupool.json ${GPUPOOL_GUEST_FOLDER}/)

# The target portable_guest: the guest libraries for systems with glibc 2.28 and later, in lib/portable. The compiler is
# Zig's clang (PyPI package ziglang), which brings the symbol versions of every glibc; it links its own C++ library in.
# Part of the default build, and of the wheel, with GPUPOOL_PORTABLE_GUEST=ON.
include(ExternalProject)

option(GPUPOOL_PORTABLE_GUEST "The wheel's guest libraries run on glibc 2.28 (needs ziglang)" OFF)

# The name tells ccache and CMake that it is clang.
configure_file(cmake/clang++-portable.in ${CMAKE_BINARY_DIR}/portable/clang++-portable @ONLY
               FILE_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
if(GPUPOOL_PORTABLE_GUEST)
  set(portable_excluded 0)
else()
  set(portable_excluded 1)
endif()
string(REPLACE ";" "|" portable_generated "${GPUPOOL_GENERATED_GUEST}")
string(REPLACE ";" "|" portable_opengl "${GPUPOOL_GENERATED_OPENGL_GUEST}")
string(REPLACE ";" "|" portable_nvml "${GPUPOOL_GENERATED_NVML}")
ExternalProject_Add(
  portable_guest
  SOURCE_DIR ${CMAKE_SOURCE_DIR}/guest/portable
  BINARY_DIR ${CMAKE_BINARY_DIR}/portable/build
  PREFIX ${CMAKE_BINARY_DIR}/portable
  LIST_SEPARATOR |
  CMAKE_GENERATOR Ninja
  CMAKE_ARGS -DCMAKE_MAKE_PROGRAM=${CMAKE_MAKE_PROGRAM}
             -DCMAKE_CXX_COMPILER=${CMAKE_BINARY_DIR}/portable/clang++-portable
             -DCMAKE_BUILD_TYPE=Release
             -DGPUPOOL_ROOT=${CMAKE_SOURCE_DIR}
             -DGPUPOOL_CUDA_INCLUDE=${GPUPOOL_CUDA_INCLUDE}
             -DGPUPOOL_GENERATED_DIR=${GPUPOOL_GENERATED_DIR}
             -DGPUPOOL_GENERATED_GUEST=${portable_generated}
             -DGPUPOOL_GENERATED_NVML=${portable_nvml}
             -DGPUPOOL_GENERATED_OPENGL_GUEST=${portable_opengl}
             -DGPUPOOL_GUEST_FOLDER=${CMAKE_BINARY_DIR}/lib/portable
  DEPENDS gpupool_codegen gpupool_nvml_codegen gpupool_opengl_codegen
  BUILD_ALWAYS 1  # ninja there knows what has changed
  INSTALL_COMMAND ""
  EXCLUDE_FROM_ALL ${portable_excluded})

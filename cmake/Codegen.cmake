# Runs the generator of wire/codegen and says what it writes.
#
# Sets GPUPOOL_CUDA_INCLUDE (folder of cuda.h, from the PyPI package nvidia-cuda-runtime), GPUPOOL_GENERATED_DIR,
# GPUPOOL_GENERATED_GUEST, GPUPOOL_GENERATED_WORKER and GPUPOOL_GENERATED_NVML (sources; for OpenGL
# GPUPOOL_GENERATED_OPENGL_GUEST and GPUPOOL_GENERATED_OPENGL_WORKER), and makes the target gpupool_codegen. The generator
# rewrites only what has changed, so a stamp tells ninja that it ran.
set(GPUPOOL_CODEGEN ${CMAKE_SOURCE_DIR}/wire/codegen/__main__.py)
set(GPUPOOL_GENERATED_DIR ${CMAKE_BINARY_DIR}/generated)

if(NOT GPUPOOL_CUDA_INCLUDE)
  execute_process(COMMAND ${Python3_EXECUTABLE} ${GPUPOOL_CODEGEN} --print-include
                  OUTPUT_VARIABLE GPUPOOL_CUDA_INCLUDE OUTPUT_STRIP_TRAILING_WHITESPACE
                  RESULT_VARIABLE codegen_result ERROR_VARIABLE codegen_error)
  if(NOT codegen_result EQUAL 0)
    message(FATAL_ERROR "${Python3_EXECUTABLE} ${GPUPOOL_CODEGEN}: ${codegen_error}")
  endif()
endif()

set(GPUPOOL_GENERATED_GUEST
    ${GPUPOOL_GENERATED_DIR}/guest_entry.cpp
    ${GPUPOOL_GENERATED_DIR}/guest_proc_table.cpp
    ${GPUPOOL_GENERATED_DIR}/guest_stubs.cpp)
set(GPUPOOL_GENERATED_WORKER
    ${GPUPOOL_GENERATED_DIR}/driver_api.cpp
    ${GPUPOOL_GENERATED_DIR}/worker_dispatch.cpp)
set(codegen_headers
    ${GPUPOOL_GENERATED_DIR}/driver_api.hpp
    ${GPUPOOL_GENERATED_DIR}/fuzz_entries.hpp
    ${GPUPOOL_GENERATED_DIR}/guest_api.hpp
    ${GPUPOOL_GENERATED_DIR}/guest_proc_table.hpp
    ${GPUPOOL_GENERATED_DIR}/wire_functions.hpp
    ${GPUPOOL_GENERATED_DIR}/worker_dispatch.hpp
    ${GPUPOOL_GENERATED_DIR}/worker_manual.hpp)

file(GLOB codegen_inputs CONFIGURE_DEPENDS
     ${CMAKE_SOURCE_DIR}/wire/api/*.txt ${CMAKE_SOURCE_DIR}/wire/api/*.yaml ${CMAKE_SOURCE_DIR}/wire/api/cuda/*.yaml
     ${CMAKE_SOURCE_DIR}/wire/codegen/*.py ${CMAKE_SOURCE_DIR}/wire/codegen/fake/*.h
     ${CMAKE_SOURCE_DIR}/wire/codegen/fake/*/*.h ${CMAKE_SOURCE_DIR}/templates/cuda/*.j2)
add_custom_command(
  OUTPUT ${GPUPOOL_GENERATED_DIR}/codegen.stamp
  BYPRODUCTS ${GPUPOOL_GENERATED_GUEST} ${GPUPOOL_GENERATED_WORKER} ${codegen_headers}
  COMMAND ${Python3_EXECUTABLE} ${GPUPOOL_CODEGEN} --out ${GPUPOOL_GENERATED_DIR} --include ${GPUPOOL_CUDA_INCLUDE}
          --compiler ${CMAKE_CXX_COMPILER}
  COMMAND ${CMAKE_COMMAND} -E touch ${GPUPOOL_GENERATED_DIR}/codegen.stamp
  DEPENDS ${codegen_inputs}
  COMMENT "Generating both ends of the driver API"
  VERBATIM)
add_custom_target(gpupool_codegen DEPENDS ${GPUPOOL_GENERATED_DIR}/codegen.stamp)
set_source_files_properties(${GPUPOOL_GENERATED_GUEST} ${GPUPOOL_GENERATED_WORKER} PROPERTIES GENERATED TRUE)

# The guest's NVML: what it does not answer itself.
set(GPUPOOL_GENERATED_NVML ${GPUPOOL_GENERATED_DIR}/nvml_rest.cpp)
add_custom_command(
  OUTPUT ${GPUPOOL_GENERATED_DIR}/nvml.stamp
  BYPRODUCTS ${GPUPOOL_GENERATED_NVML}
  COMMAND ${Python3_EXECUTABLE} ${GPUPOOL_CODEGEN} --nvml ${GPUPOOL_GENERATED_NVML} --include ${GPUPOOL_CUDA_INCLUDE}
          --compiler ${CMAKE_CXX_COMPILER}
  COMMAND ${CMAKE_COMMAND} -E touch ${GPUPOOL_GENERATED_DIR}/nvml.stamp
  DEPENDS ${CMAKE_SOURCE_DIR}/wire/api/nvml/answered.yaml ${CMAKE_SOURCE_DIR}/wire/codegen/__main__.py
          ${CMAKE_SOURCE_DIR}/wire/codegen/nvml.py ${CMAKE_SOURCE_DIR}/templates/nvml/nvml_rest.cpp.j2
  COMMENT "Generating the rest of NVML"
  VERBATIM)
add_custom_target(gpupool_nvml_codegen DEPENDS ${GPUPOOL_GENERATED_DIR}/nvml.stamp)
set_source_files_properties(${GPUPOOL_GENERATED_NVML} PROPERTIES GENERATED TRUE)

# OpenGL, from Khronos' gl.xml of the PyPI package glad2.
set(GPUPOOL_GENERATED_OPENGL_GUEST ${GPUPOOL_GENERATED_DIR}/gl_client.cpp)
set(GPUPOOL_GENERATED_OPENGL_WORKER ${GPUPOOL_GENERATED_DIR}/gl_dispatch.cpp)
file(GLOB opengl_inputs CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/wire/api/opengl/* ${CMAKE_SOURCE_DIR}/wire/codegen/*.py
     ${CMAKE_SOURCE_DIR}/templates/opengl/*.j2)
add_custom_command(
  OUTPUT ${GPUPOOL_GENERATED_DIR}/opengl.stamp
  BYPRODUCTS ${GPUPOOL_GENERATED_OPENGL_GUEST} ${GPUPOOL_GENERATED_OPENGL_WORKER}
             ${GPUPOOL_GENERATED_DIR}/gl_api.hpp ${GPUPOOL_GENERATED_DIR}/gl_client.hpp
             ${GPUPOOL_GENERATED_DIR}/gl_dispatch.hpp ${GPUPOOL_GENERATED_DIR}/gl_enums.hpp
             ${GPUPOOL_GENERATED_DIR}/gl_messages.hpp
  COMMAND ${Python3_EXECUTABLE} ${GPUPOOL_CODEGEN} --opengl ${GPUPOOL_GENERATED_DIR}
  COMMAND ${CMAKE_COMMAND} -E touch ${GPUPOOL_GENERATED_DIR}/opengl.stamp
  DEPENDS ${opengl_inputs}
  COMMENT "Generating both ends of OpenGL"
  VERBATIM)
add_custom_target(gpupool_opengl_codegen DEPENDS ${GPUPOOL_GENERATED_DIR}/opengl.stamp)
set_source_files_properties(${GPUPOOL_GENERATED_OPENGL_GUEST} ${GPUPOOL_GENERATED_OPENGL_WORKER} PROPERTIES GENERATED TRUE)

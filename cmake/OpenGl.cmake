# gpupool-renderer, which draws what guests' OpenGL programs send (docs/opengl.md). Only where the headers of
# libvirglrenderer and EGL are (Debian: libvirglrenderer-dev, libegl-dev); it loads the libraries at run time.
find_path(GPUPOOL_VIRGL_INCLUDE virgl/virglrenderer.h)
find_path(GPUPOOL_EGL_INCLUDE EGL/eglext.h)
if(GPUPOOL_VIRGL_INCLUDE AND GPUPOOL_EGL_INCLUDE)
  add_executable(renderer
                 hostd/renderer/main.cpp hostd/renderer/connection.cpp hostd/renderer/display.cpp
                 hostd/renderer/formats.cpp hostd/renderer/library.cpp hostd/renderer/resources.cpp
                 hostd/renderer/session.cpp hostd/renderer/turn.cpp hostd/renderer/virgl.cpp
                 hostd/renderer/window.cpp
                 hostd/worker/log.cpp hostd/worker/options.cpp hostd/worker/sandbox.cpp
                 hostd/worker/sandbox_calls.cpp hostd/worker/sandbox_files.cpp hostd/worker/usage_page.cpp
                 hostd/worker/vgpu_memory.cpp)
  target_link_libraries(renderer PRIVATE gpupool_flags gpupool_sanitize ${CMAKE_DL_LIBS})
  target_include_directories(renderer PRIVATE ${GPUPOOL_GENERATED_DIR})
  target_include_directories(renderer SYSTEM PRIVATE ${GPUPOOL_VIRGL_INCLUDE} ${GPUPOOL_EGL_INCLUDE})
  add_dependencies(renderer gpupool_codegen)
  set_target_properties(renderer PROPERTIES OUTPUT_NAME gpupool-renderer
                        RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/libexec)
  install(TARGETS renderer RUNTIME DESTINATION gpupool/native/libexec)
else()
  message(STATUS "No virglrenderer.h or EGL (libvirglrenderer-dev, libegl-dev): gpupool-renderer is not built")
endif()

#include "hostd/softgpu/api/graphics.hpp"

#include <algorithm>
#include <cstring>

#include "hostd/softgpu/api/capture.hpp"
#include "hostd/softgpu/api/stream.hpp"

namespace gpupool::softgpu {
namespace {

// All calls here: they are rare, and two threads may name the same resource.
std::mutex g_mutex;

Registry<GraphicsResource, CUgraphicsResource>& resources() {
  static auto* registry = new Registry<GraphicsResource, CUgraphicsResource>(16);
  return *registry;
}

CUgraphicsResource enter(u32 name, u32 target, u32 flags) {
  auto resource = std::make_shared<GraphicsResource>();
  resource->name = name;
  resource->target = target;
  resource->register_flags = flags;
  resource->context_id = current_context()->id;
  return resources().add(std::move(resource));
}

void map_buffer(GraphicsResource& resource, Context& context) {
  BufferAccess buffer(resource.name);
  const Allocation memory = allocate_device(context, buffer.bytes(), MemoryKind::graphics);
  resource.address = memory.base;
  resource.bytes = memory.size;
  if (resource.reads()) buffer.read(reinterpret_cast<void*>(memory.base));
}

u32 arrays_of(u32 target, const ImageLevel& level) {
  return is_cube(target) ? kCubeFaces : has_layers(target) ? level.depth : 1;
}

// Of a texture with layers OpenGL gives all layers of a level at once.
void map_image(GraphicsResource& resource) {
  ImageAccess image(resource.name, resource.target);
  resource.image = image.describe();
  const PixelLayout& pixels = resource.image.pixels;
  for (u32 level = 0; level < resource.image.levels.size(); ++level) {
    const ImageLevel& size = resource.image.levels[level];
    auto& arrays = resource.arrays.emplace_back();
    CUDA_ARRAY3D_DESCRIPTOR shape{};
    shape.Width = size.width;
    shape.Height = size.height;
    shape.Depth = is_cube(resource.target) || has_layers(resource.target) || size.depth == 1 ? 0 : size.depth;
    shape.Format = pixels.element;
    shape.NumChannels = pixels.channels;
    if ((resource.register_flags & CU_GRAPHICS_REGISTER_FLAGS_SURFACE_LDST) != 0)
      shape.Flags = CUDA_ARRAY3D_SURFACE_LDST;
    for (u32 i = 0; i < arrays_of(resource.target, size); ++i) {
      arrays.push_back(create_array(shape));
      arrays.back()->graphics = true;
      if (resource.reads() && !has_layers(resource.target))
        image.read(pixels, level, i, reinterpret_cast<void*>(arrays.back()->base));
    }
    if (!resource.reads() || !has_layers(resource.target)) continue;
    const u64 layer_bytes = arrays.front()->row_bytes * arrays.front()->rows;
    std::vector<u8> all(layer_bytes * arrays.size());
    image.read(pixels, level, 0, all.data());
    for (size_t i = 0; i < arrays.size(); ++i)
      std::memcpy(reinterpret_cast<void*>(arrays[i]->base), all.data() + i * layer_bytes, layer_bytes);
  }
}

void write_image(GraphicsResource& resource) {
  ImageAccess image(resource.name, resource.target);
  const PixelLayout& pixels = resource.image.pixels;
  for (u32 level = 0; level < resource.arrays.size(); ++level) {
    const auto& arrays = resource.arrays[level];
    const ImageLevel& size = resource.image.levels[level];
    if (!has_layers(resource.target)) {
      for (u32 i = 0; i < arrays.size(); ++i)
        image.write(pixels, size, level, i, reinterpret_cast<const void*>(arrays[i]->base));
      continue;
    }
    const u64 layer_bytes = arrays.front()->row_bytes * arrays.front()->rows;
    std::vector<u8> all;
    for (const auto& array : arrays) {
      const u8* const from = reinterpret_cast<const u8*>(array->base);
      all.insert(all.end(), from, from + layer_bytes);
    }
    image.write(pixels, size, level, 0, all.data());
  }
}

// The memory of a mapping; what it holds is nobody's any more.
void let_go(GraphicsResource& resource) {
  if (const auto memory = memory_table().take(resource.address); resource.address != 0 && memory)
    release_device(*memory);
  for (const auto& level : resource.arrays)
    for (const auto& array : level) arrays().take(array->handle);
  resource.arrays.clear();
  resource.address = resource.bytes = 0;
  resource.mapped = false;
}

void map(GraphicsResource& resource, Context& context) {
  try {
    if (resource.target == 0)
      map_buffer(resource, context);
    else
      map_image(resource);
  } catch (...) {
    let_go(resource);
    throw;
  }
  resource.mapped = true;
}

void unmap(GraphicsResource& resource) {
  if (resource.writes()) {
    if (resource.target == 0) {
      BufferAccess buffer(resource.name);
      require(buffer.bytes() == resource.bytes, CUDA_ERROR_UNMAP_FAILED);
      buffer.write(reinterpret_cast<const void*>(resource.address));
    } else {
      write_image(resource);
    }
  }
  let_go(resource);
}

// Those named, each once; all of them mapped, or none.
std::vector<std::shared_ptr<GraphicsResource>> chosen(u32 count, const CUgraphicsResource* handles,
                                                      bool mapped) {
  require(count != 0 && handles != nullptr);
  std::vector<std::shared_ptr<GraphicsResource>> found;
  for (u32 i = 0; i < count; ++i) {
    found.push_back(resources().get(handles[i]));
    const bool twice = std::ranges::count(found, found.back()) > 1;
    if (mapped)
      require(found.back()->mapped && !twice, CUDA_ERROR_NOT_MAPPED);
    else
      require(!found.back()->mapped && !twice, CUDA_ERROR_ALREADY_MAPPED);
  }
  return found;
}

constexpr u32 kBufferFlags = CU_GRAPHICS_REGISTER_FLAGS_READ_ONLY | CU_GRAPHICS_REGISTER_FLAGS_WRITE_DISCARD;

}  // namespace

void drop_graphics(const Context& context) {
  const std::lock_guard lock(g_mutex);
  for (const auto& resource : resources().all())
    if (resource->context_id == context.id) resources().take(resource->handle);
}

GPUPOOL_CUDA CUresult cuGraphicsGLRegisterBuffer(CUgraphicsResource* out, u32 buffer, unsigned int flags) {
  return call([&] {
    require(out != nullptr && (flags & ~kBufferFlags) == 0 && flags != kBufferFlags);
    current_context();
    const std::lock_guard lock(g_mutex);
    const BufferAccess there(buffer);
    *out = enter(buffer, 0, flags);
  });
}

GPUPOOL_CUDA CUresult cuGraphicsGLRegisterImage(CUgraphicsResource* out, u32 image, u32 target,
                                                unsigned int flags) {
  return call([&] {
    constexpr u32 kMore = CU_GRAPHICS_REGISTER_FLAGS_SURFACE_LDST | CU_GRAPHICS_REGISTER_FLAGS_TEXTURE_GATHER;
    require(out != nullptr && (flags & ~(kBufferFlags | kMore)) == 0 && target != 0);
    current_context();
    const std::lock_guard lock(g_mutex);
    const ImageAccess there(image, target);
    static_cast<void>(there.describe());
    *out = enter(image, target, flags);
  });
}

GPUPOOL_CUDA CUresult cuGraphicsUnregisterResource(CUgraphicsResource handle) {
  return call([&] {
    const std::lock_guard lock(g_mutex);
    const auto resource = resources().get(handle);
    if (resource->mapped) {
      current_context()->synchronize();
      unmap(*resource);
    }
    resources().take(handle);
  });
}

GPUPOOL_CUDA CUresult cuGraphicsMapResources(unsigned int count, CUgraphicsResource* handles,
                                             CUstream stream) {
  return call([&] {
    refuse_while_capturing(*resolve_stream(stream));
    const auto context = current_context();
    const std::lock_guard lock(g_mutex);
    const auto all = chosen(count, handles, false);
    require_opengl();
    for (size_t i = 0; i < all.size(); ++i) try {
        map(*all[i], *context);
      } catch (...) {
        for (size_t before = 0; before < i; ++before) let_go(*all[before]);
        throw;
      }
  });
}

GPUPOOL_CUDA CUresult cuGraphicsUnmapResources(unsigned int count, CUgraphicsResource* handles,
                                               CUstream stream) {
  return call([&] {
    const auto on = resolve_stream(stream);
    refuse_while_capturing(*on);
    const std::lock_guard lock(g_mutex);
    const auto all = chosen(count, handles, true);
    require_opengl();
    if (const CUresult result = on->synchronize(); result != CUDA_SUCCESS) fail(result);
    for (const auto& resource : all) unmap(*resource);
  });
}

GPUPOOL_CUDA CUresult cuGraphicsResourceGetMappedPointer_v2(CUdeviceptr* address, size_t* bytes,
                                                            CUgraphicsResource handle) {
  return call([&] {
    const std::lock_guard lock(g_mutex);
    const auto resource = resources().get(handle);
    require(resource->target == 0, CUDA_ERROR_NOT_MAPPED_AS_POINTER);
    require(resource->mapped, CUDA_ERROR_NOT_MAPPED);
    if (address != nullptr) *address = resource->address;
    if (bytes != nullptr) *bytes = resource->bytes;
  });
}

GPUPOOL_CUDA CUresult cuGraphicsSubResourceGetMappedArray(CUarray* out, CUgraphicsResource handle,
                                                          unsigned int index, unsigned int level) {
  return call([&] {
    require(out != nullptr);
    const std::lock_guard lock(g_mutex);
    const auto resource = resources().get(handle);
    require(resource->target != 0, CUDA_ERROR_NOT_MAPPED_AS_ARRAY);
    require(resource->mapped, CUDA_ERROR_NOT_MAPPED);
    require(level < resource->arrays.size() && index < resource->arrays[level].size());
    *out = resource->arrays[level][index]->handle;
  });
}

GPUPOOL_CUDA CUresult cuGraphicsResourceSetMapFlags_v2(CUgraphicsResource handle, unsigned int flags) {
  return call([&] {
    require(flags <= CU_GRAPHICS_MAP_RESOURCE_FLAGS_WRITE_DISCARD);
    const std::lock_guard lock(g_mutex);
    const auto resource = resources().get(handle);
    require(!resource->mapped, CUDA_ERROR_ALREADY_MAPPED);
    resource->map_flags = flags;
  });
}

// Any device can be said to draw: OpenGL here computes on the processor, as they do.
GPUPOOL_CUDA CUresult cuGLGetDevices_v2(unsigned int* count, CUdevice* devices, unsigned int room,
                                        u32 which) {
  return call([&] {
    require(count != nullptr && (devices != nullptr || room == 0) && which >= 1 && which <= 3);
    require_opengl();
    *count = device_count();
    for (u32 i = 0; i < std::min(room, *count); ++i) devices[i] = static_cast<CUdevice>(i);
  });
}

}  // namespace gpupool::softgpu

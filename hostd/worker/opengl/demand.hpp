// What each command that makes the driver take memory will take (rows.yaml: charge). An overload for each.
#pragma once

#include "gl_messages.hpp"
#include "hostd/worker/opengl/storage.hpp"

namespace gpupool::worker {

GlDemand demand_of(GlContext& context, const wire::gl_args::BufferData& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::BufferStorage& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::NamedBufferData& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::NamedBufferStorage& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::RenderbufferStorage& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::RenderbufferStorageMultisample& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::NamedRenderbufferStorage& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::NamedRenderbufferStorageMultisample& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::TexImage1D& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::TexImage2D& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::TexImage3D& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::CopyTexImage1D& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::CopyTexImage2D& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::CompressedTexImage1D& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::CompressedTexImage2D& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::CompressedTexImage3D& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::TexImage2DMultisample& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::TexImage3DMultisample& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::TexStorage1D& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::TexStorage2D& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::TexStorage3D& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::TexStorage2DMultisample& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::TexStorage3DMultisample& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::TextureStorage1D& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::TextureStorage2D& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::TextureStorage3D& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::TextureStorage2DMultisample& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::TextureStorage3DMultisample& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::GenerateMipmap& a);
GlDemand demand_of(GlContext& context, const wire::gl_args::GenerateTextureMipmap& a);

}  // namespace gpupool::worker

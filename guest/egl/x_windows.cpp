#include "guest/egl/x_windows.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>

namespace gpupool::guest {
namespace {

// Declared here and not by their headers, which a machine that builds gpupool need not have; as in Xlib's
// and xcb's manuals (XDisplayString(3), xcb_put_image(3) ...).
struct Cookie {
  u32 sequence;
};
struct Geometry {  // xcb_get_geometry_reply_t
  u8 response_type;
  u8 depth;
  u16 sequence;
  u32 length;
  u32 root;
  std::int16_t x, y;
  u16 width, height;
  u16 border_width;
  u8 padding[2];
};
constexpr u8 kZPixmap = 2;
constexpr u64 kPutImageHead = 32;  // bytes of the request before its pixels, rounded up

}  // namespace

struct XFunctions {
  char* (*display_string)(void*);
  int (*sync)(void*, int);
  int (*default_screen)(void*);
  void* (*default_visual)(void*, int);
  unsigned long (*visual_id)(void*);
  void* (*open_display)(const char*);
  int (*close_display)(void*);
  void* (*connect)(const char*, int*);
  int (*has_error)(void*);
  void (*disconnect)(void*);
  u32 (*generate_id)(void*);
  u32 (*maximum_request_length)(void*);
  Cookie (*create_gc)(void*, u32 id, u32 drawable, u32 mask, const void* values);
  Cookie (*free_gc)(void*, u32 id);
  Cookie (*get_geometry)(void*, u32 drawable);
  Geometry* (*geometry_reply)(void*, Cookie, void** error);
  Cookie (*put_image)(void*, u8 format, u32 drawable, u32 gc, u16 width, u16 height, std::int16_t x,
                      std::int16_t y, u8 left_pad, u8 depth, u32 bytes, const u8* data);
  void* (*check)(void*, Cookie);
};

namespace {

const XFunctions* load(std::string& error) {
  static XFunctions x;
  static bool loaded = false;
  if (loaded) return &x;
  void* const xlib = dlopen("libX11.so.6", RTLD_NOW | RTLD_LOCAL);
  void* const xcb = dlopen("libxcb.so.1", RTLD_NOW | RTLD_LOCAL);
  if (xlib == nullptr || xcb == nullptr) {
    const char* const said = dlerror();
    error = said == nullptr ? "libX11.so.6 or libxcb.so.1 is missing" : said;
    return nullptr;
  }
  const auto find = [&](auto& function, void* library, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr) error = std::string("no function ") + name;
  };
  find(x.display_string, xlib, "XDisplayString");
  find(x.sync, xlib, "XSync");
  find(x.default_screen, xlib, "XDefaultScreen");
  find(x.default_visual, xlib, "XDefaultVisual");
  find(x.visual_id, xlib, "XVisualIDFromVisual");
  find(x.open_display, xlib, "XOpenDisplay");
  find(x.close_display, xlib, "XCloseDisplay");
  find(x.connect, xcb, "xcb_connect");
  find(x.has_error, xcb, "xcb_connection_has_error");
  find(x.disconnect, xcb, "xcb_disconnect");
  find(x.generate_id, xcb, "xcb_generate_id");
  find(x.maximum_request_length, xcb, "xcb_get_maximum_request_length");
  find(x.create_gc, xcb, "xcb_create_gc_checked");
  find(x.free_gc, xcb, "xcb_free_gc_checked");
  find(x.get_geometry, xcb, "xcb_get_geometry");
  find(x.geometry_reply, xcb, "xcb_get_geometry_reply");
  find(x.put_image, xcb, "xcb_put_image_checked");
  find(x.check, xcb, "xcb_request_check");
  loaded = error.empty();
  return loaded ? &x : nullptr;
}

}  // namespace

std::unique_ptr<XServer> XServer::connect(void* display, std::string& error) {
  const XFunctions* const x = load(error);
  if (x == nullptr) return nullptr;
  void* const theirs = display == nullptr ? x->open_display(nullptr) : display;
  if (theirs == nullptr) {
    error = "no X server answers";
    return nullptr;
  }
  const auto visual = static_cast<u32>(x->visual_id(x->default_visual(theirs, x->default_screen(theirs))));
  void* const connection = x->connect(x->display_string(theirs), nullptr);
  if (display == nullptr) x->close_display(theirs);
  if (x->has_error(connection) != 0) {
    x->disconnect(connection);
    error = "the X server does not let us in a second time";
    return nullptr;
  }
  return std::unique_ptr<XServer>(new XServer(*x, display, connection, visual));
}

XServer::~XServer() {
  x_.disconnect(connection_);
}

void XServer::settle() const {
  if (display_ != nullptr) x_.sync(display_, 0);
}

bool XServer::look_at(u32 window, XWindow& found) const {
  void* failed = nullptr;
  Geometry* const told = x_.geometry_reply(connection_, x_.get_geometry(connection_, window), &failed);
  std::free(failed);
  if (told == nullptr) return false;
  found = {told->width, told->height, told->depth};
  std::free(told);
  return found.depth == 24 || found.depth == 32;
}

u32 XServer::begin_drawing(u32 window) {
  const u32 context = x_.generate_id(connection_);
  void* const failed = x_.check(connection_, x_.create_gc(connection_, context, window, 0, nullptr));
  const bool made = failed == nullptr;
  std::free(failed);
  return made ? context : 0;
}

void XServer::end_drawing(u32 context) {
  std::free(x_.check(connection_, x_.free_gc(connection_, context)));
}

void XServer::put(u32 window, u32 context, u8 depth, i32 width, i32 height, const u8* pixels) {
  const u64 row = static_cast<u64>(width) * 4;
  // An X server takes requests of 256 KiB at least, of 16 MiB usually.
  const u64 room = u64{x_.maximum_request_length(connection_)} * 4 - kPutImageHead;
  const i32 rows = static_cast<i32>(std::max<u64>(room / row, 1));
  for (i32 y = 0; y < height; y += rows) {
    const i32 some = std::min(rows, height - y);
    // Each is waited for: so a program is never further ahead than one picture.
    std::free(x_.check(
        connection_,
        x_.put_image(connection_, kZPixmap, window, context, static_cast<u16>(width), static_cast<u16>(some),
                     0, static_cast<std::int16_t>(y), 0, depth,
                     static_cast<u32>(row * static_cast<u64>(some)), pixels + static_cast<u64>(y) * row)));
  }
}

}  // namespace gpupool::guest

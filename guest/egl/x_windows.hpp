// Windows of an X server, as much as eglSwapBuffers needs: how large one is, and putting a picture into it.
//
// A connection of our own, so that nothing that the X server says here reaches the program's Xlib, whose
// error handler would end the program. libX11 and libxcb are loaded when a program brings a display of
// theirs: who has no windows needs neither.
#pragma once

#include <memory>
#include <string>

#include "wire/cpp/types.hpp"

namespace gpupool::guest {

struct XFunctions;

struct XWindow {
  i32 width = 0, height = 0;
  u8 depth = 0;
};

class XServer {
 public:
  // `display` is the program's Display*, or null for the one that the environment names. Null with `error`.
  static std::unique_ptr<XServer> connect(void* display, std::string& error);
  XServer(const XServer&) = delete;
  XServer& operator=(const XServer&) = delete;
  ~XServer();

  // The visual of windows that programs make for us: the screen's own.
  [[nodiscard]] u32 visual() const { return visual_; }
  // Lets the X server see what the program has asked it for until now, a new window for example.
  void settle() const;
  // False for a window that is none, or whose pixels are not 32 bits of blue, green and red.
  bool look_at(u32 window, XWindow& found) const;
  // 0 when the window is none.
  u32 begin_drawing(u32 window);
  void end_drawing(u32 context);
  // Rows from the top, 4 bytes a pixel: blue, green, red and one that counts for nothing. Returns when the X
  // server has them.
  void put(u32 window, u32 context, u8 depth, i32 width, i32 height, const u8* pixels);

 private:
  XServer(const XFunctions& x, void* display, void* connection, u32 visual)
      : x_(x), display_(display), connection_(connection), visual_(visual) {}

  const XFunctions& x_;
  void* display_;     // the program's; ours is null
  void* connection_;  // xcb's
  u32 visual_;
};

}  // namespace gpupool::guest

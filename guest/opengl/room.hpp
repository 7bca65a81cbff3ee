// The place where a program's Mesa dials, made private to that program: for versions that know only one name.
#pragma once

#include <string>

namespace gpupool::guest::opengl {

// Where virpipe dials unless VTEST_SOCKET_NAME says otherwise, which Mesa knows since 23.1.
inline constexpr char kFixedName[] = "/tmp/.virgl_test";

// Gives this process a mount namespace of its own in which the fixed name is the socket at `path`, without
// rights where that is allowed (a user namespace in which everybody is who they were). Other processes notice
// nothing but an empty file of that name. False with `why`.
bool enter(const std::string& path, std::string& why);

}  // namespace gpupool::guest::opengl

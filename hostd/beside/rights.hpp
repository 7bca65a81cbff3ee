// Gives up root's rights for good: whoever this process runs as keeps what that user owns, nothing else.
#pragma once

#include <string>

namespace gpupool::beside {

// False with `error`.
bool drop_rights(std::string& error);

}  // namespace gpupool::beside

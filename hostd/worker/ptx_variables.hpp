// How many bytes of device memory the variables of a PTX module take: what it declares in .global and .const,
// anywhere in its text, with or without values.
#pragma once

#include <string_view>

#include "wire/cpp/types.hpp"

namespace gpupool::worker {

// The compiler has the last word on what is valid: text that it will not take may count as anything here.
// A size that cannot be read counts as ~0.
u64 ptx_variable_bytes(std::string_view text);

}  // namespace gpupool::worker

// The tables behind cuGetExportTable: functions that NVIDIA's own libraries use and that have no exported
// name. Which tables exist, their sizes and what their slots do was measured on driver 580 with the libraries
// that call them; docs/data-plane.md has the list.
#pragma once

#include <cuda.h>

#include <array>

#include "wire/cpp/types.hpp"

namespace gpupool::guest {

using TableId = std::array<u8, 16>;

// The table's entries, or null when it is not served.
const void* const* find_export_table(const TableId& id);

// The two tables whose addresses the handshake covers.
const void* const* runtime_table();
const void* const* handshake_table();

}  // namespace gpupool::guest

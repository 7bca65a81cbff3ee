// Looking functions up by name. A look-up that waits costs a round trip, so a program that asks one module or
// library for several functions in a row waits for two only: the second asks for the names of all of them,
// and from then on the worker is told of those that are there and not waited for. Such functions are
// described at the first use of one of them, many at once.
//
// It loads nothing that was not asked for: a name is text, and a look-up is the driver's own.
#pragma once

#include <cuda.h>

#include "guest/runtime/objects.hpp"

namespace gpupool::guest {

// How the worker is asked for a function.
enum class LookUp {
  ask,     // wait for the answer, which describes the function, unless it is known to be there
  listed,  // the driver itself gave the name: do not wait, and leave the function unloaded until its first
           // use
};

// Has the worker look `made` up; its owner's mutex is held. With a device (not negative) it is also described
// there, now or later: what cannot be described is asked for again at its first use, and fails there.
CUresult look_up(LookUps& known, Function& made, LookUp how, int device);

// Describes a function that is pending, and others with it. It may stay undescribed: then it fails by itself.
CUresult describe_pending(Function& function, int device);

}  // namespace gpupool::guest

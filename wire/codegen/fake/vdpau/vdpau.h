/* The VDPAU types that cudaVDPAU.h mentions; the library itself is never needed. */
#include <stdint.h>
typedef uint32_t VdpDevice;
typedef uint32_t VdpVideoSurface;
typedef uint32_t VdpOutputSurface;
typedef int VdpGetProcAddress;

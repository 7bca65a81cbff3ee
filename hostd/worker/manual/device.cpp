// What two devices can do to each other; the client asks once a pair.
#include "hostd/worker/manual/context.hpp"
#include "worker_manual.hpp"

namespace gpupool::worker {

CUresult handle_cuDeviceCanAccessPeer(Worker& worker, Request& request) {
  const CUdevice device = device_at(worker, request.in.get<i32>());
  const CUdevice peer = device_at(worker, request.in.get<i32>());
  request.in.finish();
  int able = 0;
  const CUresult result = worker.driver.cuDeviceCanAccessPeer(&able, device, peer);
  request.out->put<i32>(able);
  return result;
}

CUresult handle_cuDeviceGetP2PAttribute(Worker& worker, Request& request) {
  const auto attribute = request.in.get<u32>();
  const CUdevice from = device_at(worker, request.in.get<i32>());
  const CUdevice to = device_at(worker, request.in.get<i32>());
  request.in.finish();
  int value = 0;
  const CUresult result =
      worker.driver.cuDeviceGetP2PAttribute(&value, static_cast<CUdevice_P2PAttribute>(attribute), from, to);
  request.out->put<i32>(value);
  return result;
}

}  // namespace gpupool::worker

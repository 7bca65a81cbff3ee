// A worker that hostd starts ahead of need loads and initialises the driver, then waits here for its client.
// What it is told then is the command line that another worker gets at its start, and the descriptors.
#pragma once

#include <string>
#include <vector>

namespace gpupool::worker {

struct Order {
  std::vector<std::string> words;
  std::vector<int> descriptors;
};

// One message of hostd's: words that end in zero bytes; "@2" stands for the third descriptor that came with
// it. Waits without bound, and without cost: hostd closes its end when no client comes, or by dying. False
// then; false with `error` for what is no order.
bool receive_order(int fd, Order& order, std::string& error);

// Writes the session's number over the zeros that stand for it in this process's command line, where a later
// hostd looks for it (SubprocessWorkers.find). The last argument's "0000..." must be long enough.
void show_session_id(int argc, char** argv, unsigned long long session_id);

}  // namespace gpupool::worker

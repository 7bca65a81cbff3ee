#include "guest/runtime/manual/image.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/image_kept.hpp"
#include "wire/cpp/reader.hpp"
#include "wire/cpp/sha256.hpp"

namespace gpupool::guest {

namespace {

constexpr u64 kPartAlignment = 64;  // the worker lays its copy out the same way

constexpr u64 aligned(u64 bytes) {
  return (bytes + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
}

std::vector<Architecture> session_architectures() {
  std::vector<Architecture> found;
  for (const wire::DeviceInfo& device : Session::current()->devices())
    found.push_back(static_cast<u32>(device.attributes[CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR] * 10 +
                                     device.attributes[CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR]));
  return found;
}

CUresult add_part(const void* address, Image& image) {
  const wire::ImageExtent extent = wire::measure_image(address, wire::kMaxImageBytes);
  if (extent.kind == wire::ImageKind::invalid) return CUDA_ERROR_INVALID_IMAGE;
  const std::span<const u8> bytes(static_cast<const u8*>(address), extent.bytes);
  image.parts.push_back(extent.kind == wire::ImageKind::fatbin
                            ? select_entries(bytes, session_architectures())
                            : FatbinSelection{{}, {bytes}, bytes.size()});
  return CUDA_SUCCESS;
}

}  // namespace

CUresult find_image(const void* address, Image& image) {
  if (address == nullptr) return CUDA_ERROR_INVALID_VALUE;
  u32 magic = 0;
  // A text may be shorter than the magic: look at one byte before reading four.
  const u8 first = *static_cast<const u8*>(address);
  if (first == (wire::kFatbinWrapperMagic & 0xff)) std::memcpy(&magic, address, sizeof magic);
  if (magic != wire::kFatbinWrapperMagic) return add_part(address, image);

  wire::FatbinWrapper wrapper;
  std::memcpy(&wrapper, address, sizeof wrapper);
  if (wrapper.data == nullptr) return CUDA_ERROR_INVALID_IMAGE;
  if (CUresult result = add_part(wrapper.data, image); result != CUDA_SUCCESS) return result;
  if (wrapper.version < 2 || wrapper.prelinked == nullptr) return CUDA_SUCCESS;
  const void* const* prelinked = static_cast<const void* const*>(wrapper.prelinked);
  for (; *prelinked != nullptr; ++prelinked) {
    if (image.parts.size() == wire::kMaxImageParts) return CUDA_ERROR_INVALID_IMAGE;
    if (CUresult result = add_part(*prelinked, image); result != CUDA_SUCCESS) return result;
  }
  return CUDA_SUCCESS;
}

CUresult read_image_file(const char* path, std::vector<u8>& bytes) {
  if (path == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return errno == ENOMEM ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_FILE_NOT_FOUND;
  struct stat status {};
  u64 filled = 0;
  bool good = fstat(file, &status) == 0 && S_ISREG(status.st_mode) &&
              static_cast<u64>(status.st_size) < wire::kMaxImageBytes;
  if (good) bytes.resize(static_cast<u64>(status.st_size) + 1);
  while (good && filled < bytes.size() - 1) {
    const ssize_t got = ::read(file, bytes.data() + filled, bytes.size() - 1 - filled);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) good = false;
    filled += got > 0 ? static_cast<u64>(got) : 0;
  }
  close(file);
  return good ? CUDA_SUCCESS : CUDA_ERROR_FILE_NOT_FOUND;
}

ImageUpload::~ImageUpload() {
  if (Session* session = Session::current(); session != nullptr && bulk_) session->heap_free(bulk_);
}

CUresult ImageUpload::prepare(const Image& image) {
  bytes_ = aligned(image.parts.size() * sizeof(u64));
  std::vector<u64> sizes;
  for (const FatbinSelection& part : image.parts) {
    sizes.push_back(part.bytes);
    bytes_ += aligned(part.bytes);
    if (bytes_ > wire::kMaxImageBytes) return CUDA_ERROR_OUT_OF_MEMORY;
  }
  CUresult error = CUDA_SUCCESS;
  bulk_ = Session::current()->heap_allocate(bytes_, false, error);
  if (!bulk_) return error;
  parts_ = static_cast<u32>(sizes.size());
  std::memcpy(bulk_.address, sizes.data(), sizes.size() * sizeof(u64));
  u8* out = bulk_.address + sizes.size() * sizeof(u64);
  // What is between the parts counts for the image's name, and must not show what was here before.
  const auto fill_up = [this, &out] {
    u8* next = bulk_.address + aligned(static_cast<u64>(out - bulk_.address));
    out = std::fill_n(out, next - out, u8{0});
  };
  fill_up();
  for (const FatbinSelection& part : image.parts) {
    out = std::copy(part.header.begin(), part.header.end(), out);
    for (const std::span<const u8>& piece : part.entries) {
      std::memcpy(out, piece.data(), piece.size());
      out += piece.size();
    }
    fill_up();
  }
  return CUDA_SUCCESS;
}

void ImageUpload::attach(Call& call, u32 flags) const {
  call.put(parts_ | flags);
  call.attach(bulk_.offset, bytes_, wire::kBulkIn);
}

void ImageUpload::name(Call& call) const {
  call.put(parts_ | wire::kImageByName);
  call.put(wire::sha256({bulk_.address, bytes_}));
  call.put(bytes_);
}

CUresult JitOptions::read(unsigned int count, const CUjit_option* options, void** values) {
  if (count != 0 && (options == nullptr || values == nullptr)) return CUDA_ERROR_INVALID_VALUE;
  for (unsigned int i = 0; i < count; ++i) {
    const auto number = static_cast<u32>(reinterpret_cast<u64>(values[i]));
    switch (wire::jit_option_kind(static_cast<u32>(options[i]))) {
      case wire::JitOptionKind::number:
        if (numbers_.size() == wire::kMaxJitOptions) return CUDA_ERROR_INVALID_VALUE;  // some twice
        options_.push_back(static_cast<u16>(options[i]));
        numbers_.push_back(number);
        values_.push_back(&values[i]);
        break;
      case wire::JitOptionKind::unsupported:
        log_line("compiler option %u is not forwarded: it names addresses or symbols of this process",
                 static_cast<u32>(options[i]));
        return CUDA_ERROR_NOT_SUPPORTED;
      case wire::JitOptionKind::unknown:
        return CUDA_ERROR_INVALID_VALUE;
      case wire::JitOptionKind::log:
        if (options[i] == CU_JIT_INFO_LOG_BUFFER) info_.buffer = static_cast<char*>(values[i]);
        if (options[i] == CU_JIT_ERROR_LOG_BUFFER) error_.buffer = static_cast<char*>(values[i]);
        if (options[i] == CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES)
          info_.size_value = &values[i], info_.capacity = number;
        if (options[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES)
          error_.size_value = &values[i], error_.capacity = number;
        break;
    }
  }
  // A capacity without a buffer, or the other way round, asks for nothing.
  for (Log* log : {&info_, &error_}) {
    if (log->buffer == nullptr) log->capacity = 0;
    if (log->capacity > wire::kMaxJitLogBytes) log->capacity = wire::kMaxJitLogBytes;
  }
  return CUDA_SUCCESS;
}

void JitOptions::put(Call& call) const {
  call.put_array(options_.data(), options_.size());
  call.put_array(numbers_.data(), numbers_.size());
  call.put<u32>(info_.capacity);
  call.put<u32>(error_.capacity);
}

CUresult JitOptions::take(Call& call) {
  std::vector<u8> results(call.get<u64>());
  const u64 sent = call.get_array(results.data(), results.size());
  if (sent != results.size()) {
    Call fetch(wire::Function::jit_results);
    fetch.expect_answer(results.size() + 64);
    if (const CUresult result = fetch.wait(); result != CUDA_SUCCESS) return result;
    if (fetch.get_array(results.data(), results.size()) != results.size()) return CUDA_ERROR_UNKNOWN;
  }
  try {
    wire::Reader reader(results);
    const std::vector<u32> numbers = reader.get_array<u32>(wire::kMaxJitOptions);
    for (u64 i = 0; i < numbers.size() && i < values_.size(); ++i)
      if (options_[i] == CU_JIT_WALL_TIME || options_[i] == CU_JIT_THREADS_PER_BLOCK)
        std::memcpy(values_[i], &numbers[i], sizeof(u32));  // the driver, too, writes 4 bytes of the slot
    for (const Log* log : {&info_, &error_}) {
      const std::span<const u8> text = reader.get_bytes(wire::kMaxJitLogBytes);
      if (log->capacity == 0) continue;
      const u64 kept = std::min<u64>(text.size(), log->capacity - 1);
      if (kept != 0) std::memcpy(log->buffer, text.data(), kept);
      log->buffer[kept] = 0;
      if (log->size_value != nullptr) *log->size_value = reinterpret_cast<void*>(kept);
    }
  } catch (const wire::ProtocolError& error) {
    log_line("the worker's compiler results are malformed: %s", error.what());
    return CUDA_ERROR_UNKNOWN;
  }
  return CUDA_SUCCESS;
}

namespace {

enum class Sending { whole, to_keep, by_name };

CUresult send_image(wire::Function message, wire::Handle handle, const ImageUpload& upload,
                    JitOptions& options, Sending how) {
  Call call(message);
  call.put(handle);
  options.put(call);
  if (how == Sending::by_name)
    upload.name(call);
  else
    upload.attach(call, how == Sending::to_keep ? wire::kKeepImage : 0);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  const auto result = static_cast<CUresult>(call.get<i32>());
  const CUresult taken = options.take(call);
  if (how != Sending::whole) {
    std::vector<u64> sizes(wire::kMaxSizesTold);
    sizes.resize(std::min<u64>(sizes.size(), call.get_array(sizes.data(), sizes.size())));
    kept_images().add(sizes);
  }
  return result != CUDA_SUCCESS ? result : taken;
}

}  // namespace

CUresult load_image(wire::Function message, wire::Handle handle, const Image& image, JitOptions& options) {
  ImageUpload upload;
  CUresult result = upload.prepare(image);
  if (result != CUDA_SUCCESS) return result;
  KeptImages& kept = kept_images();
  const bool keep = kept.wanted(upload.bytes());
  if (keep && kept.has(upload.bytes())) {
    result = send_image(message, handle, upload, options, Sending::by_name);
  } else {
    result = CUDA_ERROR_NOT_READY;
  }
  // Removed meanwhile, or another image of the same size.
  if (result == CUDA_ERROR_NOT_READY)
    result = send_image(message, handle, upload, options, keep ? Sending::to_keep : Sending::whole);
  if (result == CUDA_SUCCESS) Session::current()->image_loaded();
  return result;
}

}  // namespace gpupool::guest

// NVIDIA's driver as far as `models.backends.fused` calls it. What is launched this CPU computes:
// block after block, thread after thread. Loaded under the driver's name, it is what NVIDIA's bindings find.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <utility>
#include <vector>

#include "steps.h"

// What a GPU's compiler and device bring to fused.cu.
#define KERNEL(threads, blocks, name, ...) void name(int BLOCK_X, int BLOCK_Y, float* SHARED, __VA_ARGS__)
// In either order: whatever depends on it is a race.
#define EACH_THREAD(t) \
  for (int turn = 0, t; (t = thread_at(turn, kThreads)) != kSynchronised; ++turn)
#define INSIDE
#define APART
#define UNROLLED
#define ROLLED
#define EIGHT_AT_ONCE
#define OWN(type, name, threads) static type name[threads]
#define MINE(name, t) name[t]

namespace {

#include "wavefronts.h"

bool is_backward = false;

constexpr int kSynchronised = -1;

int thread_at(int turn, int threads) {
  if (turn == threads) {
    wavefronts.synchronise();
    return kSynchronised;
  }
  const int thread = is_backward ? threads - 1 - turn : turn;
  wavefronts.begin(thread);
  return thread;
}

struct Float4 {
  float x, y, z, w;
};

struct Float2 {
  float x, y;
};

// Numbers that lie side by side; whoever reads or writes them is noted.
template <class Numbers>
struct alignas(sizeof(Numbers)) Noted : Numbers {
  template <class... Given>
  Noted(Given... given) : Numbers{given...} {}
  Noted(const Noted& from) : Numbers(from) {
    wavefronts.note({Wavefronts::kLoad, &from, sizeof(Numbers)});
  }
  Noted& operator=(const Noted& from) {
    Numbers::operator=(from);
    wavefronts.note({Wavefronts::kStore, this, sizeof(Numbers)});
    return *this;
  }
};

using float4 = Noted<Float4>;
using float2 = Noted<Float2>;

int __float_as_int(float x) {
  int bits;
  memcpy(&bits, &x, 4);
  return bits;
}

// Each thread brings what all of its warp would.
#define EACH_LANE(lane, thread) for (int lane = 0; lane < 32 && wavefronts.begin_lane(lane); ++lane)
void load_far(const float* from, float* to) {
  memcpy(to, from, 16);
  wavefronts.note({Wavefronts::kLine, from, 16});
}
void copy_far(float* to, const float* from) {
  memcpy(to, from, 16);
  wavefronts.note_copy(to);
}
void commit_copies() {}
template <int kLast>
void await_copies() {}
void wait_for_warp() {}

void atomicMax(int* at, int x) { *at = larger(*at, x); }

#include "fused.cu"

enum Result { kSuccess = 0, kInvalidValue = 1, kInvalidImage = 200, kNotFound = 500, kBrokeOut = 700 };

constexpr int kMaxDynamicShared = 8;  // an attribute of functions
constexpr unsigned kUsualShared = 48 * 1024;
constexpr int kGuard = 64;
constexpr float kUntouched = 12345;

// Shared memory of a block: of whatever value before, and watched at both ends.
class Shared {
 public:
  explicit Shared(unsigned bytes) : memory_(bytes / 4 + 2 * kGuard, NAN) {
    std::fill_n(memory_.begin(), kGuard, kUntouched);
    std::fill_n(memory_.end() - kGuard, kGuard, kUntouched);
  }
  float* begin() { return memory_.data() + kGuard; }
  bool is_whole() const {
    const auto is_untouched = [](float x) { return x == kUntouched; };
    return std::all_of(memory_.begin(), memory_.begin() + kGuard, is_untouched) &&
           std::all_of(memory_.end() - kGuard, memory_.end(), is_untouched);
  }

 private:
  std::vector<float> memory_;
};

template <class... Given, size_t... kPlaces>
void call(void (*kernel)(int, int, float*, Given...), int x, int y, float* shared, void** given,
          std::index_sequence<kPlaces...>) {
  kernel(x, y, shared, *static_cast<Given*>(given[kPlaces])...);
}

struct Function {
  unsigned threads;
  void (*block)(int x, int y, float* shared, void** given);
  unsigned most_shared = kUsualShared;
};

template <auto kKernel, class... Given>
Function of(unsigned threads, void (*)(int, int, float*, Given...)) {
  return {threads, [](int x, int y, float* shared, void** given) {
    call(kKernel, x, y, shared, given, std::index_sequence_for<Given...>());
  }};
}

Function functions[] = {of<world_model_rollout>(THREADS, world_model_rollout),
                        of<world_model_rollout_large>(LARGE_THREADS, world_model_rollout_large),
                        of<world_model_combine>(COMBINE_THREADS, world_model_combine),
                        of<world_model_shared_bytes>(1, world_model_shared_bytes)};

}  // namespace

extern "C" {

// What tests say of the device.
unsigned driver_most_shared = 99 * 1024;
int driver_launch_error = kSuccess;
void driver_go_backward(int is_so) { is_backward = is_so; }
void driver_count(int is_so) { wavefronts.count(is_so); }
long long driver_counted(int kind) { return wavefronts.counted(kind); }

int cuModuleLoadData(void** module, const void* image) {
  *module = functions;
  return memcmp(image, "\x7f" "ELF", 4) == 0 ? kSuccess : kInvalidImage;
}

int cuModuleGetFunction(Function** function, void*, const char* name) {
  *function = !strcmp(name, "world_model_rollout")         ? &functions[0]
              : !strcmp(name, "world_model_rollout_large") ? &functions[1]
              : !strcmp(name, "world_model_combine")       ? &functions[2]
              : !strcmp(name, "world_model_shared_bytes")  ? &functions[3]
                                                           : nullptr;
  return *function ? kSuccess : kNotFound;
}

int cuFuncSetAttribute(Function* function, int attribute, int value) {
  if (attribute != kMaxDynamicShared || unsigned(value) > driver_most_shared) return kInvalidValue;
  function->most_shared = value;
  return kSuccess;
}

int cuLaunchKernel(Function* function, unsigned blocks_x, unsigned blocks_y, unsigned blocks_z,
                   unsigned threads_x, unsigned threads_y, unsigned threads_z, unsigned shared,
                   void*, void** given, void**) {
  if (driver_launch_error) return driver_launch_error;
  if (blocks_z != 1 || threads_x != function->threads || threads_y != 1 || threads_z != 1 ||
      blocks_x * blocks_y == 0 || shared > function->most_shared) {
    return kInvalidValue;
  }
  for (unsigned y = 0; y < blocks_y; ++y) {
    for (unsigned x = 0; x < blocks_x; ++x) {
      Shared memory(shared);
      function->block(x, y, memory.begin(), given);
      if (!memory.is_whole()) return kBrokeOut;
    }
  }
  return kSuccess;
}

int cuGetProcAddress_v2(const char* name, void** function, int, unsigned long long, int*) {
  const std::pair<const char*, void*> known[] = {
      {"cuModuleLoadData", reinterpret_cast<void*>(cuModuleLoadData)},
      {"cuModuleGetFunction", reinterpret_cast<void*>(cuModuleGetFunction)},
      {"cuFuncSetAttribute", reinterpret_cast<void*>(cuFuncSetAttribute)},
      {"cuLaunchKernel", reinterpret_cast<void*>(cuLaunchKernel)},
  };
  for (const auto& [known_name, address] : known) {
    if (!strcmp(name, known_name)) {
      *function = address;
      return kSuccess;
    }
  }
  *function = nullptr;
  return kNotFound;
}
}

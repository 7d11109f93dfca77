// Wavefronts of a kernel's layers: how often they take a multiprocessor's path to shared memory and
// the L1 cache. A warp's access takes one for every 32 numbers that are in different banks, or for
// each line of global memory; a number that several lanes read counts once. What is copied past the L1
// cache counts where it is written.
//
// The driver runs threads one after the other. So accesses are noted by thread, and the n-th ones of a
// warp's threads between two synchronisations are taken for one instruction. That is right in layers,
// where no warp has a branch of its own; only they read and write several numbers at once, and
// nothing else is noted.
#pragma once

class Wavefronts {
 public:
  enum Kind { kLoad, kStore, kCopy, kLine, kKinds };

  struct Access {
    Kind kind;
    const void* at;
    int bytes;
  };

  // Counts from now on, from 0; or no more.
  void count(bool is_so) {
    is_counting_ = is_so;
    if (is_so) std::fill_n(counted_, kKinds, 0);
  }

  long long counted(int kind) const { return counted_[kind]; }

  void begin(int thread) { thread_ = thread; }

  void note(Access access) {
    if (__builtin_expect(is_counting_, 0)) keep(access);
  }

  // The driver has each thread copy for all lanes of its warp; a GPU's copies for its own.
  bool begin_lane(int lane) {
    lane_ = lane;
    return true;
  }

  void note_copy(const void* to) {
    if (lane_ == thread_ % kLanes) note({kCopy, to, 16});
  }

  // To be called at each synchronisation.
  void synchronise() {
    if (__builtin_expect(!threads_.empty(), 0)) sum_up();
  }

 private:
  static constexpr int kLanes = 32, kBanks = 32, kLineBytes = 128;

  __attribute__((noinline)) void keep(Access access) {
    if (size_t(thread_) >= threads_.size()) threads_.resize(thread_ + 1);
    threads_[thread_].push_back(access);
  }

  __attribute__((noinline)) void sum_up() {
    for (size_t first = 0; first < threads_.size(); first += kLanes) {
      const size_t last = std::min(first + kLanes, threads_.size());
      std::vector<Access> together;
      for (size_t n = 0; n == 0 || !together.empty(); ++n) {
        together.clear();
        for (size_t t = first; t < last; ++t) {
          if (n < threads_[t].size()) together.push_back(threads_[t][n]);
        }
        if (!together.empty()) counted_[together[0].kind] += of_warp(together);
      }
    }
    threads_.clear();
  }

  static int of_warp(const std::vector<Access>& warp) {
    if (warp[0].kind == kLine) {
      std::set<size_t> lines;
      for (const Access& x : warp) lines.insert(size_t(x.at) / kLineBytes);
      return lines.size();
    }
    if (warp[0].kind == kLoad) return of_banks(warp.begin(), warp.end());
    // Of as many lanes at a time as write 128 bytes.
    int sum = 0;
    const size_t lanes = kLineBytes / warp[0].bytes;
    for (size_t first = 0; first < warp.size(); first += lanes) {
      const size_t last = std::min(first + lanes, warp.size());
      sum += of_banks(warp.begin() + first, warp.begin() + last);
    }
    return sum;
  }

  template <class Iterator>
  static int of_banks(Iterator first, Iterator last) {
    std::set<size_t> numbers[kBanks];
    for (; first != last; ++first) {
      for (int i = 0; i < first->bytes / 4; ++i) {
        const size_t number = size_t(first->at) / 4 + i;
        numbers[number % kBanks].insert(number);
      }
    }
    size_t most = 0;
    for (const auto& of_bank : numbers) most = std::max(most, of_bank.size());
    return most;
  }

  bool is_counting_ = false;
  int thread_ = 0, lane_ = 0;
  long long counted_[kKinds] = {};
  std::vector<std::vector<Access>> threads_;
} wavefronts;

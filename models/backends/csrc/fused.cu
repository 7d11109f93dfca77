// Rollouts of an ensemble on a GPU: what `EnsembleStep` in models/network/ensemble.py computes, step
// after step.
//
// A step is hundreds of small kernels if each operation is one. Here a block takes a tile of rows
// through all their steps by one member, and keeps them in shared memory; then a second kernel
// combines the members' predictions. Every output of a layer is its bias plus its products in the
// order of the inputs, in one thread, and everything else is computed row by row: a row's bits
// depend neither on the other rows, nor on its place among them, nor on the size of the tile.
//
// Weights are too many for shared memory. They are read from global memory (`far` in names) in the
// order of the inputs, some inputs at a time, while those before are multiplied. `Block` and `Share`
// say how many, and which thread computes what; `Stream` brings weights, `Sums` multiplies them.
//
// Work between two synchronisations is one loop over a block's threads. On a GPU that runs once in
// each of them; driver.cpp among the tests has it run over all, so that a CPU computes what a GPU
// would, to the index.

#include "steps.h"

#ifdef __CUDACC__
#define KERNEL(threads, blocks, name, ...) \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(__VA_ARGS__)
#define OWN(type, name, threads) type name
#define MINE(name, t) name
#define EACH_THREAD(t) \
  for (int t = threadIdx.x, is_first = 1; is_first; is_first = 0, __syncthreads())
#define INSIDE __device__
#define APART __device__ __noinline__
#define UNROLLED _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
#define EIGHT_AT_ONCE _Pragma("unroll 8")
// Runs what follows once, for the thread's lane. The tests run threads one after the other: there
// each does it for all 32 lanes of its warp, as it will read what the others would have copied.
#define EACH_LANE(lane, thread) \
  for (int lane = (thread) % 32, is_first = 1; is_first; is_first = 0)
INSIDE void load_far(const float* from, float* to) {
  const float4 four = __ldg(reinterpret_cast<const float4*>(from));
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}
// Begins to copy 16 bytes to shared memory; they are there after `await_copies`.
INSIDE void copy_far(float* to, const float* from) {
#if __CUDA_ARCH__ >= 800
  const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(place), "l"(from) : "memory");
#else
  *reinterpret_cast<float4*>(to) = __ldg(reinterpret_cast<const float4*>(from));
#endif
}
INSIDE void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
INSIDE void wait_for_warp() { __syncwarp(); }
// Waits for all of the warp's copies but those of its last `kLast` commits.
template <int kLast>
INSIDE void await_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kLast) : "memory");
#endif
  __syncwarp();
}
#define BLOCK_X int(blockIdx.x)
#define BLOCK_Y int(blockIdx.y)
extern __shared__ float4 shared_memory[];
#define SHARED reinterpret_cast<float*>(shared_memory)
#endif

// How a block computes a tile of so many rows: its threads; of how many inputs a warp copies the
// weights at once in wide layers, which is a stage; and how many stages it has, one in use and the
// others on their way.
template <int kRows>
struct Block {
  static constexpr int kThreads = THREADS, kInputs = 8, kStages = 2;
};
template <>
struct Block<LARGE_TILE_ROWS> {
  static constexpr int kThreads = LARGE_THREADS, kInputs = 8, kStages = 2;
};

// Columns of a layer that a block computes in one pass; and of the widest layer whose rows are
// divided among more threads, as it has too few columns for all of them.
constexpr int kWideColumns = 256, kNarrowColumns = 64;

// Numbers of a stage: of each of its inputs, the weights of a warp's columns of a wide layer.
template <int kRows>
constexpr int kStage = kWideColumns * 32 / Block<kRows>::kThreads * Block<kRows>::kInputs;

// What follows a row's states in the trace.
enum Column { kReward, kLogit, kLogAlive, kColumns };
static_assert(kColumns == TRACE_EXTRAS, "Python's trace has other columns");

// A block's shared memory: what is known of the model but for its weights, then numbers of all rows
// of the tile, a feature after the other.
template <int kRows>
struct Tile {
  Model* model;
  Member* member;
  Layer* layers;
  float *mean, *scale, *delta, *gate_always, *gate_if_present;
  int *gates, *slot_columns, *edge_columns, *ego_columns, *action_columns;
  float *last_of_reward, *last_of_done, *rings;
  float *a, *b, *latent_action, *done_inputs, *state, *action, *log_alive, *motion;
  float *after, *decoded, *from_done;  // in the memory of `a`, while no layer uses it
  int bytes;

  INSIDE Tile(const Model& m, float* memory) {
    const Layer* const known = m.member[0].layers;
    const int count = 2 * m.depth + 5, latent = padded(m.latent_dim);
    int widest = larger(m.state_dim, m.action_dim);
    for (int i = 0; i < count; ++i) widest = larger(widest, padded(known[i].outputs));
    float* const begin = memory;
    const auto take = [&](int numbers) {
      float* const part = memory;
      memory += (numbers + 3) / 4 * 4;
      return part;
    };
    const auto take_ints = [&](int numbers) { return reinterpret_cast<int*>(take(numbers)); };
    model = reinterpret_cast<Model*>(take(sizeof(Model) / sizeof(float)));
    member = reinterpret_cast<Member*>(take(sizeof(Member) / sizeof(float)));
    layers = reinterpret_cast<Layer*>(take(count * sizeof(Layer) / sizeof(float)));
    for (float** part : {&mean, &scale, &delta, &gate_always, &gate_if_present}) {
      *part = take(m.state_dim);
    }
    gates = take_ints(m.state_dim);
    slot_columns = take_ints(kSlotKinds * m.slots);
    edge_columns = take_ints(m.edges);
    ego_columns = take_ints(kEgoColumns);
    action_columns = take_ints(3);
    last_of_reward = take(1 + known[2 * m.depth + 2].inputs);
    last_of_done = take(1 + known[2 * m.depth + 4].inputs);
    rings = take(Block<kRows>::kThreads / 32 * Block<kRows>::kStages * kStage<kRows>);
    const int of_reward = padded(known[2 * m.depth + 1].outputs);
    const int of_done = padded(known[2 * m.depth + 3].outputs);
    widest = larger(larger(widest, of_reward + of_done), 2 * padded(m.state_dim));
    a = take(widest * kRows);
    after = a, decoded = a + padded(m.state_dim) * kRows, from_done = a + of_reward * kRows;
    // A layer of one pass may be written over its inputs, so `a` and `b` can be the same.
    b = widest > kWideColumns ? take(widest * kRows) : a;
    latent_action = take(larger(latent, known[m.depth].inputs) * kRows);
    done_inputs = take(larger(latent, known[2 * m.depth + 3].inputs) * kRows);
    state = take(m.state_dim * kRows);
    action = take(m.action_dim * kRows);
    log_alive = take(kRows);
    motion = take(3 * kRows);
    bytes = int(memory - begin) * int(sizeof(float));
  }

  // Copies the model and one of its members to shared memory, but for most weights.
  INSIDE void fetch(const Model& m, int which) const {
    constexpr int kThreads = Block<kRows>::kThreads;
    const Member& from = m.member[which];
    EACH_THREAD(t) {
      if (t == 0) {
        *model = m;
        model->gate_always = gate_always, model->gate_if_present = gate_if_present;
        model->gates = gates, model->slot_columns = slot_columns;
        model->edge_columns = edge_columns, model->ego_columns = ego_columns;
        model->action_columns = action_columns;
        *member = from;
        member->layers = layers, member->state_mean = mean;
        member->state_scale = scale, member->delta_scale = delta;
      }
      for (int i = t; i < 2 * m.depth + 5; i += kThreads) layers[i] = from.layers[i];
      fetch_output(from.layers[2 * m.depth + 2], last_of_reward, t);
      fetch_output(from.layers[2 * m.depth + 4], last_of_done, t);
      for (int i = t; i < m.state_dim; i += kThreads) {
        mean[i] = from.state_mean[i], scale[i] = from.state_scale[i], delta[i] = from.delta_scale[i];
        gate_always[i] = m.gate_always[i], gate_if_present[i] = m.gate_if_present[i];
        gates[i] = m.gates[i];
      }
      for (int i = t; i < kSlotKinds * m.slots; i += kThreads) {
        slot_columns[i] = m.slot_columns[i];
      }
      for (int i = t; i < m.edges; i += kThreads) edge_columns[i] = m.edge_columns[i];
      if (m.has_geometry && t < kEgoColumns) ego_columns[t] = m.ego_columns[t];
      if (m.has_kinematics && t < 3) action_columns[t] = m.action_columns[t];
    }
  }

  // Copies the bias and the weights of a layer that has one output.
  static INSIDE void fetch_output(const Layer& layer, float* to, int t) {
    if (t == 0) to[0] = layer.biases[0];
    for (int i = t; i < layer.inputs; i += Block<kRows>::kThreads) {
      to[1 + i] = layer.weights[i * kPanel];
    }
  }

  static INSIDE Row<const float> read(const float* numbers, int row) {
    return {numbers + row, kRows};
  }
  static INSIDE Row<float> written(float* numbers, int row) { return {numbers + row, kRows}; }
};

template <int kActivation>
INSIDE float activated(float x) {
  if (kActivation == kRelu) return x > 0 ? x : 0;
  if (kActivation == kTanh) return tanhf(x);
  const float below = expm1f(smaller(x, 0.0f));  // of all, so that a warp needs no branch
  return x > 0 ? x : below;
}

// Copies `kCount` numbers that lie side by side, 2 or 4 at a time.
template <int kCount>
INSIDE void load(const float* from, float* to) {
  UNROLLED for (int i = 0; i < kCount; i += kCount % 4 == 0 ? 4 : 2) {
    if constexpr (kCount % 4 == 0) {
      const float4 four = *reinterpret_cast<const float4*>(from + i);
      to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
    } else {
      const float2 two = *reinterpret_cast<const float2*>(from + i);
      to[i] = two.x, to[i + 1] = two.y;
    }
  }
}

template <int kCount>
INSIDE void store(const float* from, float* to) {
  UNROLLED for (int i = 0; i < kCount; i += kCount % 4 == 0 ? 4 : 2) {
    if constexpr (kCount % 4 == 0) {
      *reinterpret_cast<float4*>(to + i) = {from[i], from[i + 1], from[i + 2], from[i + 3]};
    } else {
      *reinterpret_cast<float2*>(to + i) = {from[i], from[i + 1]};
    }
  }
}

// How threads share a layer: each computes `kWide` columns of `kHigh` rows, and `kGroups` threads
// side by side the same columns of all rows. A thread of 8 columns has 4 in one panel and 4 at the
// same place of the next (`kParts` panels, `kSpan` columns), so that a warp reads whole lines of
// weights.
template <int kTileRows, int kRowsOfThread, int kColumnsOfThread>
struct Share {
  static constexpr int kRows = kTileRows, kHigh = kRowsOfThread, kWide = kColumnsOfThread;
  static constexpr int kGroups = kRows / kHigh, kParts = kWide / 4, kSpan = kParts * kPanel;
  static constexpr int kWarpColumns = 32 / kGroups * 4;  // of a panel
  static constexpr int kStages = Block<kRows>::kStages;
  // Inputs of a stage: as many as fill it, but no more than may be read beyond the last one.
  static constexpr int kFilling = kStage<kRows> / kParts / kWarpColumns;
  static constexpr int kInputs = kFilling < INPUTS_AHEAD ? kFilling : INPUTS_AHEAD;
  static_assert(kWide % 4 == 0 && kParts <= 2 && kWarpColumns <= kPanel);
  static_assert(kParts == 1 || kWarpColumns == kPanel);
};

template <int kRows>
using Wide = Share<kRows, kRows / 4, kWideColumns * 4 / Block<kRows>::kThreads>;
template <int kRows>
using Narrow = Share<kRows, kRows / 8, 4>;
template <int kRows>
using Half = Share<kRows, kRows * kNarrowColumns / 2 / Block<kRows>::kThreads, 4>;

// Weights on their way to a warp: a ring of stages in shared memory, of which one is used while the
// others arrive. No two warps have the same columns of a layer, so none waits for another.
template <class S>
struct Stream {
  const float* far;  // the warp's weights of the inputs that come next
  long long second;  // from a panel to the next one; 0 if the layer has no next one
  int column, left;  // the thread's first column; inputs that are still to be brought
  bool is_used;      // whether the layer has that column; the same for all of a warp
  float* ring;

  // `four`: the number of a four of columns; with two parts, of a pair of fours.
  INSIDE Stream(int thread, int four, const Layer& layer, float* rings) {
    constexpr int kFours = kPanel / 4;
    column = four / kFours * S::kSpan + four % kFours * 4;
    is_used = column < padded(layer.outputs);
    const long long panel = static_cast<long long>(layer.inputs) * kPanel;
    second = column + S::kSpan - kPanel < padded(layer.outputs) ? panel : 0;
    const int of_warp = column % kPanel / S::kWarpColumns * S::kWarpColumns;
    far = layer.weights + column / kPanel * panel + of_warp;
    left = layer.inputs;
    ring = rings + thread / 32 * (S::kStages * kStage<S::kRows>);
  }

  // Begins to copy the next weights to a stage. Those beyond the last input are never used.
  INSIDE void bring(int thread, int stage) {
    if (left > 0) {
      constexpr int kLanes = S::kWarpColumns / 4, kAtOnce = 32 / kLanes;
      static_assert(S::kInputs % kAtOnce == 0);
      EACH_LANE(lane, thread) {
        float* const to = ring + stage * kStage<S::kRows> + lane * 4;
        const float* const from = far + lane / kLanes * kPanel + lane % kLanes * 4;
        UNROLLED for (int part = 0; part < S::kParts; ++part) {
          UNROLLED for (int i = 0; i < S::kInputs; i += kAtOnce) {
            copy_far(to + (part * S::kInputs + i) * S::kWarpColumns,
                     from + part * second + i * kPanel);
          }
        }
      }
    }
    commit_copies();
    far += S::kInputs * kPanel, left -= S::kInputs;
  }

  // Reads the weights of the thread's columns for an input of a stage.
  INSIDE void read(int thread, int stage, int input, float* weights) const {
    const float* const from = ring + stage * kStage<S::kRows> + input * S::kWarpColumns +
                              thread % 32 / S::kGroups * 4;
    UNROLLED for (int part = 0; part < S::kParts; ++part) {
      load<4>(from + part * S::kInputs * S::kWarpColumns, weights + 4 * part);
    }
  }
};

// Sums of a thread: its columns and rows of a layer, over all inputs from the first to the last.
template <class S>
struct Sums {
  float columns[S::kWide][S::kHigh];
  int column;
  bool is_used, is_whole;  // whether the layer has the columns: any, and those in the second panel

  INSIDE void compute(int thread, int four, const Layer& layer, const float* x, float* rings) {
    Stream<S> stream(thread, four, layer, rings);
    column = stream.column, is_used = stream.is_used, is_whole = stream.second != 0;
    if (!is_used) return;
    float biases[S::kWide];
    UNROLLED for (int part = 0; part < S::kParts; ++part) {
      load_far(layer.biases + column + (is_whole ? part * kPanel : 0), biases + 4 * part);
    }
    UNROLLED for (int stage = 0; stage < S::kStages - 1; ++stage) stream.bring(thread, stage);
    UNROLLED for (int c = 0; c < S::kWide; ++c) {
      UNROLLED for (int r = 0; r < S::kHigh; ++r) columns[c][r] = biases[c];
    }
    const float* in = x + thread % S::kGroups * S::kHigh;
    int stage = 0;
    for (int inputs = layer.inputs; inputs > 0; inputs -= S::kInputs, in += S::kInputs * S::kRows) {
      await_copies<S::kStages - 2>();
      stream.bring(thread, stage == 0 ? S::kStages - 1 : stage - 1);
      if (inputs >= S::kInputs) {
        UNROLLED for (int i = 0; i < S::kInputs; ++i) add(thread, stream, stage, i, in);
      } else {
        ROLLED for (int i = 0; i < inputs; ++i) add(thread, stream, stage, i, in);
      }
      stage = stage == S::kStages - 1 ? 0 : stage + 1;
    }
    wait_for_warp();  // others may still read the ring, which is written to next
  }

  // Multiplications and additions are fused by name: a compiler that chose where to fuse could
  // choose otherwise for another tile, and a row would get other bits.
  INSIDE void add(int thread, const Stream<S>& stream, int stage, int input, const float* in) {
    float weights[S::kWide], rows[S::kHigh];
    stream.read(thread, stage, input, weights);
    load<S::kHigh>(in + input * S::kRows, rows);
    UNROLLED for (int c = 0; c < S::kWide; ++c) {
      UNROLLED for (int r = 0; r < S::kHigh; ++r) {
        columns[c][r] = fmaf(rows[r], weights[c], columns[c][r]);
      }
    }
  }

  INSIDE void write(int thread, const Layer& layer, float* y) const {
    if (!is_used) return;
    float* const out = y + column * S::kRows + thread % S::kGroups * S::kHigh;
    UNROLLED for (int c = 0; c < S::kWide; ++c) {
      if (c < 4 || is_whole) store<S::kHigh>(columns[c], out + place(c));
    }
    switch (layer.activation) {
      case kRelu:
        return activate<kRelu>(out);
      case kElu:
        return activate<kElu>(out);
      case kTanh:
        return activate<kTanh>(out);
    }
  }

  // In a loop, not unrolled: as straight code, it would be larger than the instruction cache.
  template <int kActivation>
  INSIDE void activate(float* out) const {
    ROLLED for (int c = 0; c < S::kWide; ++c) {
      if (c < 4 || is_whole) {
        float numbers[S::kHigh];
        load<S::kHigh>(out + place(c), numbers);
        UNROLLED for (int r = 0; r < S::kHigh; ++r) {
          numbers[r] = activated<kActivation>(numbers[r]);
        }
        store<S::kHigh>(numbers, out + place(c));
      }
    }
  }

  static INSIDE int place(int c) { return (c / 4 * kPanel + c % 4) * S::kRows; }
};

template <class S>
INSIDE void apply_as(const Layer& layer, const float* x, float* y, float* rings) {
  constexpr int kThreads = Block<S::kRows>::kThreads, kFours = kThreads / S::kGroups;
  for (int four = 0; four * 4 * S::kParts < padded(layer.outputs); four += kFours) {
    OWN(Sums<S>, sums, kThreads);
    EACH_THREAD(t) { MINE(sums, t).compute(t, four + t / S::kGroups, layer, x, rings); }
    EACH_THREAD(t) { MINE(sums, t).write(t, layer, y); }
  }
}

// Computes a layer. `y` may be `x` where one pass is enough. The code has one copy for each size of
// tile, which all layers use.
template <int kRows>
APART void apply(const Layer& layer, const float* x, float* y, float* rings) {
  if (padded(layer.outputs) > kNarrowColumns) {
    apply_as<Wide<kRows>>(layer, x, y, rings);
  } else {
    apply_as<Narrow<kRows>>(layer, x, y, rings);
  }
}

// Computes two layers at once, each by half of the threads; no `y` may be an `x`, as a thread writes
// while others still read.
template <int kRows>
APART void apply_both(const Layer& left, const float* left_x, float* left_y, const Layer& right,
                      const float* right_x, float* right_y, float* rings) {
  using S = Half<kRows>;
  constexpr int kThreads = Block<kRows>::kThreads;
  constexpr int kHalf = kThreads / 2, kFours = kHalf / S::kGroups;
  const int columns = larger(padded(left.outputs), padded(right.outputs));
  for (int four = 0; four * 4 < columns; four += kFours) {
    EACH_THREAD(t) {
      Sums<S> sums;
      const bool is_left = t < kHalf;
      const Layer& layer = is_left ? left : right;
      sums.compute(t, four + t % kHalf / S::kGroups, layer, is_left ? left_x : right_x, rings);
      sums.write(t, layer, is_left ? left_y : right_y);
    }
  }
}

// The only output of a layer for a row, by what `Tile::fetch_output` has copied.
INSIDE float output_of(int inputs, const float* layer, Row<const float> x) {
  float sum = layer[0];
  EIGHT_AT_ONCE for (int i = 0; i < inputs; ++i) sum = fmaf(x[i], layer[1 + i], sum);
  return sum;
}

// Through `count` layers; the last one writes to `out`.
template <int kRows>
INSIDE void through(const Layer* layers, int count, const float* x, float* out,
                    const Tile<kRows>& s) {
  for (int i = 0; i < count; ++i) {
    float* y = i == count - 1 ? out : (i % 2 ? s.a : s.b);
    apply<kRows>(layers[i], x, y, s.rings);
    x = y;
  }
}

INSIDE float normalised(const Member& member, int feature, float x) {
  return (x - member.state_mean[feature]) / member.state_scale[feature];
}

// Writes the base that the decoder corrects: the state, or the state after an analytic step.
template <int kRows>
INSIDE void move(const Model& m, const Tile<kRows>& s) {
  constexpr int kThreads = Block<kRows>::kThreads;
  EACH_THREAD(t) {
    for (int i = t; i < m.state_dim * kRows; i += kThreads) s.after[i] = s.state[i];
  }
  if (!m.has_kinematics) return;
  EACH_THREAD(t) {
    if (t < kRows) {
      const Motion ego =
          move_ego(m, s.read(s.state, t), s.read(s.action, t), s.written(s.after, t));
      const Row<float> motion = s.written(s.motion, t);
      motion[0] = ego.forward, motion[1] = ego.sideways, motion[2] = ego.turned;
    }
  }
  EACH_THREAD(t) {
    for (int i = t; i < m.slots * kRows; i += kThreads) {
      const int row = i % kRows;
      const Row<const float> motion = s.read(s.motion, row);
      const Motion ego = {motion[0], motion[1], motion[2]};
      move_neighbour(m, i / kRows, s.read(s.state, row), ego, s.written(s.after, row));
    }
  }
}

// Writes what the done head reads beside the latent: the state, normalised, and its gaps.
template <int kRows>
INSIDE void look_around(const Model& m, const Member& member, const Tile<kRows>& s) {
  constexpr int kThreads = Block<kRows>::kThreads;
  float* const inputs = s.done_inputs + m.latent_dim * kRows;
  float* const gaps = inputs + m.state_dim * kRows;
  float* const to_slots = s.a;
  EACH_THREAD(t) {
    for (int i = t; i < m.state_dim * kRows; i += kThreads) {
      inputs[i] = normalised(member, i / kRows, s.state[i]);
    }
    for (int i = t; i < (m.slots + 1) * kRows; i += kThreads) {
      const int row = i % kRows, slot = i / kRows;
      const Row<const float> state = s.read(s.state, row);
      if (slot < m.slots) {
        to_slots[i] = gap_to(m, slot, state);
        put_gap(m, slot, to_slots[i], s.written(gaps, row));
      } else {
        put_gap(m, m.slots + 1, gap_to_edge(m, state), s.written(gaps, row));
      }
    }
  }
  EACH_THREAD(t) {
    if (t < kRows) {
      float nearest = m.gap_limit_m;
      for (int slot = 0; slot < m.slots; ++slot) {
        nearest = smaller(nearest, to_slots[slot * kRows + t]);
      }
      put_gap(m, m.slots, nearest, s.written(gaps, t));
    }
  }
}

// Writes the bytes of shared memory that a block needs, with a tile of each size. One block.
KERNEL(1, 1, world_model_shared_bytes, const Model* model, int* bytes) {
  bytes[0] = Tile<TILE_ROWS>(*model, SHARED).bytes;
  bytes[1] = Tile<LARGE_TILE_ROWS>(*model, SHARED).bytes;
}

// Takes a tile of rows through all steps by one member. Blocks: tiles, members.
//   starts       [rows][state_dim]
//   actions      [rows][horizon][action_dim]
//   trace        [members][horizon][rows][state_dim + kColumns], written
//   uncertainty  [rows], set to 0
template <int kRows>
INSIDE void roll_out(const Model& far, int tile, int which, float* shared, const float* starts,
                     const float* actions, float* trace, float* uncertainty, int rows,
                     int horizon) {
  constexpr int kThreads = Block<kRows>::kThreads;
  const Tile<kRows> s(far, shared);
  s.fetch(far, which);
  const Model& m = *s.model;
  const Member& member = *s.member;
  const Layer* const layers = s.layers;
  const int first = tile * kRows, count = rows - first < kRows ? rows - first : kRows;
  const int dim = m.state_dim, columns = dim + kColumns;
  const Layer *const reward = layers + 2 * m.depth + 1, *const done = layers + 2 * m.depth + 3;
  EACH_THREAD(t) {
    for (int i = t; i < dim * kRows; i += kThreads) {
      const int row = i % kRows;
      s.state[i] = row < count ? starts[static_cast<long long>(first + row) * dim + i / kRows] : 0;
    }
    if (t < kRows) s.log_alive[t] = 0;
    if (t < count && which == 0) uncertainty[first + t] = 0;
  }
  for (int step = 0; step < horizon; ++step) {
    EACH_THREAD(t) {
      for (int i = t; i < m.action_dim * kRows; i += kThreads) {
        const int row = i % kRows;
        const long long at = static_cast<long long>(first + row) * horizon + step;
        s.action[i] = row < count ? actions[at * m.action_dim + i / kRows] : 0;
      }
      for (int i = t; i < dim * kRows; i += kThreads) {
        s.a[i] = normalised(member, i / kRows, s.state[i]);
      }
    }
    through(layers, m.depth, s.a, s.latent_action, s);
    EACH_THREAD(t) {
      for (int i = t; i < m.action_dim * kRows; i += kThreads) {
        s.latent_action[m.latent_dim * kRows + i] = s.action[i];
      }
    }
    through(layers + m.depth, m.depth, s.latent_action, s.done_inputs, s);
    move(m, s);
    apply<kRows>(layers[2 * m.depth], s.done_inputs, s.decoded, s.rings);
    EACH_THREAD(t) {
      for (int i = t; i < dim * kRows; i += kThreads) {
        const Row<const float> state = s.read(s.state, i % kRows);
        s.after[i] = decoded_feature(m, member, i / kRows, state, s.after[i], s.decoded[i]);
      }
    }
    EACH_THREAD(t) {
      for (int i = t; i < dim * kRows; i += kThreads) s.state[i] = s.after[i];
    }
    const long long place = (static_cast<long long>(which) * horizon + step) * rows + first;
    float* const outputs = trace + place * columns;
    EACH_THREAD(t) {
      for (int i = t; i < dim * count; i += kThreads) {
        outputs[i / dim * columns + i % dim] = s.state[i % dim * kRows + i / dim];
      }
      if (t < count) outputs[t * columns + dim + kLogAlive] = s.log_alive[t];
    }
    if (m.has_geometry) look_around(m, member, s);
    apply_both<kRows>(reward[0], s.latent_action, s.a, done[0], s.done_inputs, s.from_done,
                      s.rings);
    EACH_THREAD(t) {
      // Rewards by the first warp, terminations by the second.
      if (t < count) {
        const float scaled = output_of(reward[1].inputs, s.last_of_reward, s.read(s.a, t));
        outputs[t * columns + dim + kReward] = member.reward_mean + member.reward_scale * scaled;
      } else if (t >= 32 && t < 32 + count) {
        const int row = t - 32;
        const float scaled = output_of(done[1].inputs, s.last_of_done, s.read(s.from_done, row));
        const float logit = member.done_scale * scaled + member.done_shift;
        outputs[row * columns + dim + kLogit] = logit;
        s.log_alive[row] -= softplus(logit);
      }
    }
  }
}

KERNEL(THREADS, 2, world_model_rollout, const Model* model, const float* starts,
       const float* actions, float* trace, float* uncertainty, int rows, int horizon) {
  roll_out<TILE_ROWS>(*model, BLOCK_X, BLOCK_Y, SHARED, starts, actions, trace, uncertainty, rows,
                      horizon);
}

KERNEL(LARGE_THREADS, 2, world_model_rollout_large, const Model* model, const float* starts,
       const float* actions, float* trace, float* uncertainty, int rows, int horizon) {
  roll_out<LARGE_TILE_ROWS>(*model, BLOCK_X, BLOCK_Y, SHARED, starts, actions, trace, uncertainty,
                           rows, horizon);
}

// Combines the members' predictions. Blocks: `COMBINE_THREADS` rows each, steps.
//   trace        [members][horizon][rows][state_dim + kColumns]
//   states       [rows][horizon + 1][state_dim], written, the start included
//   rewards      [rows][horizon], written
//   dones        [rows][horizon], written
//   uncertainty  [rows], 0 before
KERNEL(COMBINE_THREADS, 1, world_model_combine, const Model* model, const float* starts,
       const float* trace, float* states, float* rewards, float* dones, float* uncertainty, int rows,
       int horizon) {
  const Model& m = *model;
  const int dim = m.state_dim, columns = dim + kColumns, step = BLOCK_Y;
  const long long stride = static_cast<long long>(horizon) * rows * columns;
  constexpr int kThreads = COMBINE_THREADS;
  EACH_THREAD(t) {
    const int row = BLOCK_X * kThreads + t;
    if (row < rows) {
      const float* inputs = trace + (static_cast<long long>(step) * rows + row) * columns;
      float* path = states + static_cast<long long>(row) * (horizon + 1) * dim;
      if (step == 0) {
        for (int i = 0; i < dim; ++i) path[i] = starts[static_cast<long long>(row) * dim + i];
      }
      const float* const extras = inputs + dim;
      const Combined all = combine(m, {inputs, stride}, {extras + kReward, stride},
                                   {extras + kLogit, stride}, {extras + kLogAlive, stride},
                                   path + (step + 1) * dim);
      const long long at = static_cast<long long>(row) * horizon + step;
      rewards[at] = all.reward;
      dones[at] = all.done;
      // As integers, floats from 0 up are in order, and what is not a number is above all.
      const bool is_number = all.spread == all.spread;
      const int spread = is_number ? __float_as_int(all.spread) : 0x7fc00000;
      atomicMax(reinterpret_cast<int*>(uncertainty + row), spread);
    }
  }
}

// Rollouts of an ensemble on a GPU: what `EnsembleStep` in models/network/ensemble.py computes, step
// after step.
//
// A step is hundreds of small kernels if each operation is one. Here a block takes a tile of rows
// through all their steps by one member, and keeps them in shared memory; then a second kernel
// combines the members' predictions. Every output of a layer is its bias plus its products in the
// order of the inputs, in one thread, and everything else is computed row by row: a row's bits
// depend neither on its company nor on its place.
//
// Work between two synchronisations is one loop over a block's threads. On a GPU that runs once in
// each of them; driver.cpp among the tests has it run over all, so that a CPU computes what a GPU
// would, to the index.

#include "steps.h"

constexpr int kRows = TILE_ROWS;
constexpr int kThreads = THREADS;

#ifdef __CUDACC__
#define KERNEL(name, ...) extern "C" __global__ void __launch_bounds__(kThreads) name(__VA_ARGS__)
#define EACH_THREAD(t) \
  for (int t = threadIdx.x, is_first = 1; is_first; is_first = 0, __syncthreads())
#define INSIDE __device__
#define APART __device__ __noinline__
#define FAR(at) __ldg(at)
#define BLOCK_X int(blockIdx.x)
#define BLOCK_Y int(blockIdx.y)
extern __shared__ float4 shared_memory[];
#define SHARED reinterpret_cast<float*>(shared_memory)
#endif

// What follows a row's states in the trace.
enum Column { kReward, kLogit, kLogAlive, kColumns };
static_assert(kColumns == TRACE_EXTRAS, "Python's trace has other columns");

// A block's shared memory: numbers of all rows of the tile, a feature after the other.
struct Tile {
  float *a, *b, *latent_action, *done_inputs, *state, *after, *action, *log_alive, *motion;
  int bytes;

  INSIDE Tile(const Model& m, float* memory) : bytes(0) {
    const Layer* layers = m.member[0].layers;
    int widest = larger(m.state_dim, m.action_dim);
    for (int i = 0; i < 2 * m.depth + 5; ++i) widest = larger(widest, padded(layers[i].outputs));
    const int latent = padded(m.latent_dim);
    const auto take = [&](int width) {
      float* const part = memory;
      memory += width * kRows;
      bytes += width * kRows * int(sizeof(float));
      return part;
    };
    a = take(widest);
    b = take(widest);
    latent_action = take(larger(latent, layers[m.depth].inputs));
    done_inputs = take(larger(latent, layers[2 * m.depth + 3].inputs));
    state = take(m.state_dim);
    after = take(m.state_dim);
    action = take(m.action_dim);
    log_alive = take(1);
    motion = take(3);
  }
};

INSIDE Row<const float> read(const float* numbers, int row) { return {numbers + row, kRows}; }
INSIDE Row<float> written(float* numbers, int row) { return {numbers + row, kRows}; }

INSIDE float activated(float x, int activation) {
  switch (activation) {
    case kRelu:
      return x > 0 ? x : 0;
    case kElu:
      return x > 0 ? x : expm1f(x);
    case kTanh:
      return tanhf(x);
    default:
      return x;
  }
}

// Weights of `kWidth` columns for the next four inputs.
template <int kWidth>
struct Weights {
  float inputs[4][kWidth];

  INSIDE explicit Weights(const float* from) {
    for (int i = 0; i < 4; ++i) load(from + i * kPanel, inputs[i]);
  }

  static INSIDE void load(const float* from, float (&columns)[kWidth]) {
    if constexpr (kWidth == 4) {
      const float4 four = FAR(reinterpret_cast<const float4*>(from));
      columns[0] = four.x, columns[1] = four.y, columns[2] = four.z, columns[3] = four.w;
    } else {
      for (int c = 0; c < kWidth; ++c) columns[c] = FAR(from + c);
    }
  }
};

// Sums of four rows of `kWidth` columns.
template <int kWidth>
struct Sums {
  float rows[kWidth][4];

  INSIDE void add(const float* x, const float (&weights)[kWidth]) {
    const float4 in = *reinterpret_cast<const float4*>(x);
    for (int c = 0; c < kWidth; ++c) {
      rows[c][0] += in.x * weights[c];
      rows[c][1] += in.y * weights[c];
      rows[c][2] += in.z * weights[c];
      rows[c][3] += in.w * weights[c];
    }
  }

  INSIDE void add_four(const float* x, const Weights<kWidth>& weights) {
    for (int i = 0; i < 4; ++i) add(x + i * kRows, weights.inputs[i]);
  }
};

// A thread's share of a layer. Weights are in slow memory: the next ones are loaded while the last
// ones are used.
template <int kWidth>
INSIDE void columns_of(int thread, const Layer& layer, const float* x, float* y) {
  using Four = Weights<kWidth>;
  const int inputs = layer.inputs, groups = padded(layer.outputs) / kWidth;
  for (int group = thread; group < groups * (kRows / 4); group += kThreads) {
    const int row = group / groups * 4, column = group % groups * kWidth;
    const float* const weights = layer.weights +
                                 static_cast<long long>(column / kPanel) * inputs * kPanel +
                                 column % kPanel;
    const float* const in = x + row;
    Sums<kWidth> sums;
    for (int c = 0; c < kWidth; ++c) {
      for (int r = 0; r < 4; ++r) sums.rows[c][r] = layer.biases[column + c];
    }
    int k = 0;
    if (inputs >= 4) {
      Four now(weights);
      for (; k + 8 <= inputs; k += 8) {
        const Four next(weights + (k + 4) * kPanel);
        sums.add_four(in + k * kRows, now);
        if (k + 12 <= inputs) now = Four(weights + (k + 8) * kPanel);
        sums.add_four(in + (k + 4) * kRows, next);
      }
      if (k + 4 <= inputs) {
        sums.add_four(in + k * kRows, now);
        k += 4;
      }
    }
    for (; k < inputs; ++k) {
      float last[kWidth];
      Four::load(weights + k * kPanel, last);
      sums.add(in + k * kRows, last);
    }
    for (int c = 0; c < kWidth; ++c) {
      for (int r = 0; r < 4; ++r) {
        y[(column + c) * kRows + row + r] = activated(sums.rows[c][r], layer.activation);
      }
    }
  }
}

// One copy of it in the code: all layers go through it.
APART void apply(const Layer& layer, const float* x, float* y) {
  const bool is_wide = padded(layer.outputs) >= kThreads;
  EACH_THREAD(t) {
    if (is_wide) {
      columns_of<4>(t, layer, x, y);
    } else {
      columns_of<2>(t, layer, x, y);
    }
  }
}

// Through `count` layers; the last one writes to `out`.
INSIDE void through(const Layer* layers, int count, const float* x, float* out, const Tile& s) {
  for (int i = 0; i < count; ++i) {
    float* y = i == count - 1 ? out : (i % 2 ? s.a : s.b);
    apply(layers[i], x, y);
    x = y;
  }
}

INSIDE void normalise(const Model& m, const Member& member, const float* state, float* inputs) {
  EACH_THREAD(t) {
    for (int i = t; i < m.state_dim * kRows; i += kThreads) {
      const int feature = i / kRows;
      inputs[i] = (state[i] - member.state_mean[feature]) / member.state_scale[feature];
    }
  }
}

// Writes the base that the decoder corrects: the state, or the state after an analytic step.
INSIDE void move(const Model& m, const Tile& s) {
  EACH_THREAD(t) {
    for (int i = t; i < m.state_dim * kRows; i += kThreads) s.after[i] = s.state[i];
  }
  if (!m.has_kinematics) return;
  EACH_THREAD(t) {
    if (t < kRows) {
      const Motion ego = move_ego(m, read(s.state, t), read(s.action, t), written(s.after, t));
      const Row<float> motion = written(s.motion, t);
      motion[0] = ego.forward, motion[1] = ego.sideways, motion[2] = ego.turned;
    }
  }
  EACH_THREAD(t) {
    for (int i = t; i < m.slots * kRows; i += kThreads) {
      const int row = i % kRows;
      const Row<const float> motion = read(s.motion, row);
      const Motion ego = {motion[0], motion[1], motion[2]};
      move_neighbour(m, i / kRows, read(s.state, row), ego, written(s.after, row));
    }
  }
}

// Writes what the done head reads beside the latent: the state, normalised, and its gaps.
INSIDE void look_around(const Model& m, const Member& member, const Tile& s) {
  float* const inputs = s.done_inputs + m.latent_dim * kRows;
  float* const gaps = inputs + m.state_dim * kRows;
  normalise(m, member, s.state, inputs);
  float* const to_slots = s.b;
  EACH_THREAD(t) {
    for (int i = t; i < (m.slots + 1) * kRows; i += kThreads) {
      const int row = i % kRows, slot = i / kRows;
      const Row<const float> state = read(s.state, row);
      if (slot < m.slots) {
        to_slots[i] = gap_to(m, slot, state);
        put_gap(m, slot, to_slots[i], written(gaps, row));
      } else {
        put_gap(m, m.slots + 1, gap_to_edge(m, state), written(gaps, row));
      }
    }
  }
  EACH_THREAD(t) {
    if (t < kRows) {
      float nearest = m.gap_limit_m;
      for (int slot = 0; slot < m.slots; ++slot) {
        nearest = smaller(nearest, to_slots[slot * kRows + t]);
      }
      put_gap(m, m.slots, nearest, written(gaps, t));
    }
  }
}

// Writes the bytes of shared memory that a block needs. One block.
KERNEL(world_model_shared_bytes, const Model* model, int* bytes) {
  EACH_THREAD(t) {
    if (t == 0) *bytes = Tile(*model, SHARED).bytes;
  }
}

// Takes a tile of rows through all steps by one member. Blocks: tiles, members.
//   starts       [rows][state_dim]
//   actions      [rows][horizon][action_dim]
//   trace        [members][horizon][rows][state_dim + kColumns], written
//   uncertainty  [rows], set to 0
KERNEL(world_model_rollout, const Model* model, const float* starts, const float* actions,
       float* trace, float* uncertainty, int rows, int horizon) {
  const Model& m = *model;
  const Member& member = m.member[BLOCK_Y];
  const int first = BLOCK_X * kRows, count = rows - first < kRows ? rows - first : kRows;
  const int dim = m.state_dim, columns = dim + kColumns;
  const Tile s(m, SHARED);
  const Layer* const layers = member.layers;
  EACH_THREAD(t) {
    for (int i = t; i < dim * kRows; i += kThreads) {
      const int row = i % kRows;
      s.state[i] = row < count ? starts[static_cast<long long>(first + row) * dim + i / kRows] : 0;
    }
    if (t < kRows) s.log_alive[t] = 0;
    if (t < count && BLOCK_Y == 0) uncertainty[first + t] = 0;
  }
  for (int step = 0; step < horizon; ++step) {
    EACH_THREAD(t) {
      for (int i = t; i < m.action_dim * kRows; i += kThreads) {
        const int row = i % kRows;
        const long long at = static_cast<long long>(first + row) * horizon + step;
        s.action[i] = row < count ? actions[at * m.action_dim + i / kRows] : 0;
      }
    }
    normalise(m, member, s.state, s.a);
    through(layers, m.depth, s.a, s.latent_action, s);
    EACH_THREAD(t) {
      for (int i = t; i < m.action_dim * kRows; i += kThreads) {
        s.latent_action[m.latent_dim * kRows + i] = s.action[i];
      }
    }
    through(layers + m.depth, m.depth, s.latent_action, s.done_inputs, s);
    move(m, s);
    apply(layers[2 * m.depth], s.done_inputs, s.b);
    EACH_THREAD(t) {
      for (int i = t; i < dim * kRows; i += kThreads) {
        const Row<const float> state = read(s.state, i % kRows);
        s.after[i] = decoded_feature(m, member, i / kRows, state, s.after[i], s.b[i]);
      }
    }
    EACH_THREAD(t) {
      for (int i = t; i < dim * kRows; i += kThreads) s.state[i] = s.after[i];
    }
    const long long place = (static_cast<long long>(BLOCK_Y) * horizon + step) * rows + first;
    float* const outputs = trace + place * columns;
    through(layers + 2 * m.depth + 1, 2, s.latent_action, s.a, s);
    EACH_THREAD(t) {
      for (int i = t; i < dim * count; i += kThreads) {
        outputs[i / dim * columns + i % dim] = s.state[i % dim * kRows + i / dim];
      }
      if (t < count) {
        outputs[t * columns + dim + kReward] = member.reward_mean + member.reward_scale * s.a[t];
        outputs[t * columns + dim + kLogAlive] = s.log_alive[t];
      }
    }
    if (m.has_geometry) look_around(m, member, s);
    through(layers + 2 * m.depth + 3, 2, s.done_inputs, s.a, s);
    EACH_THREAD(t) {
      if (t < count) {
        const float logit = member.done_scale * s.a[t] + member.done_shift;
        outputs[t * columns + dim + kLogit] = logit;
        s.log_alive[t] -= softplus(logit);
      }
    }
  }
}

// Combines the members' predictions. Blocks: `kThreads` rows each, steps.
//   trace        [members][horizon][rows][state_dim + kColumns]
//   states       [rows][horizon + 1][state_dim], written, the start included
//   rewards      [rows][horizon], written
//   dones        [rows][horizon], written
//   uncertainty  [rows], 0 before
KERNEL(world_model_combine, const Model* model, const float* starts, const float* trace,
       float* states, float* rewards, float* dones, float* uncertainty, int rows, int horizon) {
  const Model& m = *model;
  const int dim = m.state_dim, columns = dim + kColumns, step = BLOCK_Y;
  const long long stride = static_cast<long long>(horizon) * rows * columns;
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

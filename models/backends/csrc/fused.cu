// Rollouts of an ensemble on a GPU: what `EnsembleStep` in models/network/ensemble.py computes, step
// after step.
//
// A step is hundreds of small kernels if each operation is one. Here a block takes a tile of rows
// through all their steps by one member, and keeps them in shared memory; then a second kernel
// combines the members' predictions. Every output of a layer is its bias plus its products in the
// order of the inputs, in one thread, and everything else is computed row by row: a row's bits
// depend neither on its company, nor on its place, nor on the size of the tile.
//
// Work between two synchronisations is one loop over a block's threads. On a GPU that runs once in
// each of them; driver.cpp among the tests has it run over all, so that a CPU computes what a GPU
// would, to the index.

#include "steps.h"

constexpr int kThreads = THREADS;

// Weights that a thread has under way at once: as many as leave it the registers for its sums.
template <int kRows>
constexpr int kWeightsAhead = kRows == 16 ? 48 : 32;

#ifdef __CUDACC__
#define KERNEL(blocks, name, ...) \
  extern "C" __global__ void __launch_bounds__(kThreads, blocks) name(__VA_ARGS__)
#define EACH_THREAD(t) \
  for (int t = threadIdx.x, is_first = 1; is_first; is_first = 0, __syncthreads())
#define INSIDE __device__
#define APART __device__ __noinline__
#define UNROLLED _Pragma("unroll")
#define FAR(at) __ldg(at)
#define BLOCK_X int(blockIdx.x)
#define BLOCK_Y int(blockIdx.y)
extern __shared__ float4 shared_memory[];
#define SHARED reinterpret_cast<float*>(shared_memory)
#endif

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
  float *a, *b, *latent_action, *done_inputs, *state, *after, *action, *log_alive, *motion;
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
    a = take(widest * kRows);
    after = a;  // after the layers that use it
    b = take(widest * kRows);
    latent_action = take(larger(latent, known[m.depth].inputs) * kRows);
    done_inputs = take(larger(latent, known[2 * m.depth + 3].inputs) * kRows);
    state = take(m.state_dim * kRows);
    action = take(m.action_dim * kRows);
    log_alive = take(kRows);
    motion = take(3 * kRows);
    bytes = int(memory - begin) * int(sizeof(float));
  }

  // Brings the model and one of its members here.
  INSIDE void fetch(const Model& m, int which) const {
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

  static INSIDE Row<const float> read(const float* numbers, int row) {
    return {numbers + row, kRows};
  }
  static INSIDE Row<float> written(float* numbers, int row) { return {numbers + row, kRows}; }
};

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

// Weights of `kWidth` columns for four inputs.
template <int kWidth>
struct Weights {
  float inputs[4][kWidth];

  INSIDE void load(const float* from) {
    UNROLLED for (int i = 0; i < 4; ++i) load_input(from + i * kPanel, inputs[i]);
  }

  static INSIDE void load_input(const float* from, float (&columns)[kWidth]) {
    if constexpr (kWidth == 4) {
      const float4 four = FAR(reinterpret_cast<const float4*>(from));
      columns[0] = four.x, columns[1] = four.y, columns[2] = four.z, columns[3] = four.w;
    } else {
      const float2 two = FAR(reinterpret_cast<const float2*>(from));
      columns[0] = two.x, columns[1] = two.y;
    }
  }
};

// An input's numbers in a quarter of the rows.
template <int kRows>
struct Numbers {
  float rows[kRows / 4];

  INSIDE explicit Numbers(const float* x) {
    UNROLLED for (int r = 0; r < kRows / 4; r += 4) {
      const float4 four = *reinterpret_cast<const float4*>(x + r);
      rows[r] = four.x, rows[r + 1] = four.y, rows[r + 2] = four.z, rows[r + 3] = four.w;
    }
  }
};

// Sums of `kWidth` columns of a quarter of the rows.
template <int kRows, int kWidth>
struct Sums {
  float columns[kWidth][kRows / 4];

  INSIDE explicit Sums(const float* biases) {
    UNROLLED for (int c = 0; c < kWidth; ++c) {
      UNROLLED for (int r = 0; r < kRows / 4; ++r) columns[c][r] = biases[c];
    }
  }

  // Multiplications and additions are fused by name: a compiler that chose where to fuse could
  // choose otherwise for another tile, and a row would get other bits.
  INSIDE void add(const Numbers<kRows>& x, const float (&weights)[kWidth]) {
    UNROLLED for (int c = 0; c < kWidth; ++c) {
      UNROLLED for (int r = 0; r < kRows / 4; ++r) {
        columns[c][r] = fmaf(x.rows[r], weights[c], columns[c][r]);
      }
    }
  }

  INSIDE void write(float* y, int activation) const {
    UNROLLED for (int c = 0; c < kWidth; ++c) {
      UNROLLED for (int r = 0; r < kRows / 4; r += 4) {
        const float* const sums = columns[c] + r;
        *reinterpret_cast<float4*>(y + c * kRows + r) = {
            activated(sums[0], activation), activated(sums[1], activation),
            activated(sums[2], activation), activated(sums[3], activation)};
      }
    }
  }
};

// A thread's share of a layer: `kWidth` columns of a quarter of the rows. Four threads side by side
// share their weights, and a warp's stay within a panel: a load of weights is one line.
//
// Weights are far away, so those of the next `kAhead` times four inputs are always under way, and
// the rows' numbers are read one input ahead. Each four inputs are a block of their own, left by a
// branch: within a longer one, the compiler would move the loads to its end. Loads go beyond the
// layer's end by at most INPUTS_AHEAD inputs.
template <int kRows, int kWidth>
INSIDE void columns_of(int thread, const Layer& layer, const float* x, float* y) {
  constexpr int kAhead = kWeightsAhead<kRows> / kWidth / 4;
  static_assert(4 * kAhead <= INPUTS_AHEAD, "Python leaves less room behind the weights");
  const int inputs = layer.inputs, columns = padded(layer.outputs);
  const int row = thread % 4 * (kRows / 4);
  for (int column = thread / 4 * kWidth; column < columns; column += kThreads / 4 * kWidth) {
    const float* far = layer.weights +
                       static_cast<long long>(column / kPanel) * inputs * kPanel + column % kPanel;
    Weights<kWidth> ahead[kAhead], last;
    UNROLLED for (int n = 0; n < kAhead; ++n, far += 4 * kPanel) ahead[n].load(far);
    Sums<kRows, kWidth> sums(layer.biases + column);
    const float* in = x + row;
    Numbers<kRows> next(in);
    int left = inputs;
    for (bool goes_on = true; goes_on;) {
      UNROLLED for (int n = 0; n < kAhead; ++n) {
        if (left < 4) {
          last = ahead[n];
          goes_on = false;
          break;
        }
        sums.add(next, ahead[n].inputs[0]);
        UNROLLED for (int i = 1; i < 4; ++i) {
          sums.add(Numbers<kRows>(in + i * kRows), ahead[n].inputs[i]);
        }
        if (left > 4 * kAhead) ahead[n].load(far);
        far += 4 * kPanel, in += 4 * kRows, left -= 4;
        if (left > 0) next = Numbers<kRows>(in);
      }
    }
    UNROLLED for (int i = 0; i < 3; ++i) {
      if (i < left) sums.add(Numbers<kRows>(in + i * kRows), last.inputs[i]);
    }
    sums.write(y + column * kRows + row, layer.activation);
  }
}

// One copy of it in the code for each tile: all layers go through it.
template <int kRows>
APART void apply(const Layer& layer, const float* x, float* y) {
  const bool is_wide = padded(layer.outputs) >= kThreads;
  EACH_THREAD(t) {
    if (is_wide) {
      columns_of<kRows, 4>(t, layer, x, y);
    } else {
      columns_of<kRows, 2>(t, layer, x, y);
    }
  }
}

// Through `count` layers; the last one writes to `out`.
template <int kRows>
INSIDE void through(const Layer* layers, int count, const float* x, float* out,
                    const Tile<kRows>& s) {
  for (int i = 0; i < count; ++i) {
    float* y = i == count - 1 ? out : (i % 2 ? s.a : s.b);
    apply<kRows>(layers[i], x, y);
    x = y;
  }
}

INSIDE float normalised(const Member& member, int feature, float x) {
  return (x - member.state_mean[feature]) / member.state_scale[feature];
}

// Writes the base that the decoder corrects: the state, or the state after an analytic step.
template <int kRows>
INSIDE void move(const Model& m, const Tile<kRows>& s) {
  EACH_THREAD(t) {
    for (int i = t; i < m.state_dim * kRows; i += kThreads) s.after[i] = s.state[i];
  }
  if (!m.has_kinematics) return;
  EACH_THREAD(t) {
    if (t < kRows) {
      const Motion ego = move_ego(m, s.read(s.state, t), s.read(s.action, t), s.written(s.after, t));
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
  float* const inputs = s.done_inputs + m.latent_dim * kRows;
  float* const gaps = inputs + m.state_dim * kRows;
  float* const to_slots = s.b;
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
KERNEL(1, world_model_shared_bytes, const Model* model, int* bytes) {
  EACH_THREAD(t) {
    if (t == 0) bytes[0] = Tile<TILE_ROWS>(*model, SHARED).bytes;
    if (t == 1) bytes[1] = Tile<LARGE_TILE_ROWS>(*model, SHARED).bytes;
  }
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
  const Tile<kRows> s(far, shared);
  s.fetch(far, which);
  const Model& m = *s.model;
  const Member& member = *s.member;
  const Layer* const layers = s.layers;
  const int first = tile * kRows, count = rows - first < kRows ? rows - first : kRows;
  const int dim = m.state_dim, columns = dim + kColumns;
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
    apply<kRows>(layers[2 * m.depth], s.done_inputs, s.b);
    EACH_THREAD(t) {
      for (int i = t; i < dim * kRows; i += kThreads) {
        const Row<const float> state = s.read(s.state, i % kRows);
        s.after[i] = decoded_feature(m, member, i / kRows, state, s.after[i], s.b[i]);
      }
    }
    EACH_THREAD(t) {
      for (int i = t; i < dim * kRows; i += kThreads) s.state[i] = s.after[i];
    }
    const long long place = (static_cast<long long>(which) * horizon + step) * rows + first;
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

KERNEL(2, world_model_rollout, const Model* model, const float* starts, const float* actions,
       float* trace, float* uncertainty, int rows, int horizon) {
  roll_out<TILE_ROWS>(*model, BLOCK_X, BLOCK_Y, SHARED, starts, actions, trace, uncertainty, rows,
                      horizon);
}

KERNEL(2, world_model_rollout_large, const Model* model, const float* starts, const float* actions,
       float* trace, float* uncertainty, int rows, int horizon) {
  roll_out<LARGE_TILE_ROWS>(*model, BLOCK_X, BLOCK_Y, SHARED, starts, actions, trace, uncertainty,
                           rows, horizon);
}

// Combines the members' predictions. Blocks: `kThreads` rows each, steps.
//   trace        [members][horizon][rows][state_dim + kColumns]
//   states       [rows][horizon + 1][state_dim], written, the start included
//   rewards      [rows][horizon], written
//   dones        [rows][horizon], written
//   uncertainty  [rows], 0 before
KERNEL(1, world_model_combine, const Model* model, const float* starts, const float* trace,
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

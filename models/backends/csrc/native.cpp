// Steps of an ensemble of world models on a CPU: what `EnsembleStep` in models/network/ensemble.py
// computes.
//
// Libraries for matrix products are made for big ones, and pack the weights anew at every call.
// Here weights are packed once, rows go through a layer in registers, and all steps of a call are taken
// without leaving this code. Every output of a layer is its bias plus its products in the order of
// the inputs, and everything else is computed row by row: a row's bits do not depend on the rows
// beside it.

#include <poll.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "steps.h"

namespace {

#ifdef __AVX512F__
constexpr int kLanes = 16;
constexpr int kTile = 8;  // rows whose sums fit the registers
#else
constexpr int kLanes = 8;  // GCC keeps wider vectors in memory
constexpr int kTile = 2;
#endif
constexpr int kParts = kPanel / kLanes;

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

Floats load(const float* from) {
  Floats values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

Floats all(float value) { return value - Floats{}; }

// e^x - 1 for x <= 0: x = n ln 2 + r, and a polynomial in r; a few units in the last place.
Floats expm1_below_0(Floats x) {
  x = x < all(-80.0f) ? all(-80.0f) : x;
  const Floats shifter = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Floats shifted = x * all(1.44269504f) + shifter;
  const Floats n = shifted - shifter;
  const Floats r = (x - n * all(0.693359375f)) - n * all(-2.12194440e-4f);
  Floats p = r * all(1.0f / 5040) + all(1.0f / 720);
  p = p * r + all(1.0f / 120);
  p = p * r + all(1.0f / 24);
  p = p * r + all(1.0f / 6);
  p = p * r + all(0.5f);
  p = p * r * r + r;
  const Ints power = ((Ints)shifted - (Ints)shifter + 127) << 23;
  const Floats scale = (Floats)power;
  return scale * p + (scale - 1.0f);
}

Floats activate(Floats x, int activation) {
  const Floats zero = {};
  switch (activation) {
    case kRelu:
      return x > zero ? x : zero;
    case kElu:
      return x > zero ? x : expm1_below_0(x > zero ? zero : x);
    case kTanh: {
      const Floats e = expm1_below_0(x > zero ? -2.0f * x : 2.0f * x);
      const Floats size = -e / (e + 2.0f);
      return x > zero ? size : -size;
    }
    default:
      return x;
  }
}

template <int kRows>
void panel(const float* x, int64_t stride, const Layer& layer, const float* weights,
           const float* biases, float* y) {
  Floats sums[kRows][kParts];
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kParts; ++p) sums[r][p] = load(biases + p * kLanes);
  }
  for (int k = 0; k < layer.inputs; ++k) {
    Floats part[kParts];
    for (int p = 0; p < kParts; ++p) part[p] = load(weights + p * kLanes);
    weights += kPanel;
    for (int r = 0; r < kRows; ++r) {
      const Floats value = all(x[r * stride + k]);
      for (int p = 0; p < kParts; ++p) sums[r][p] += value * part[p];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kParts; ++p) {
      store(y + r * stride + p * kLanes, activate(sums[r][p], layer.activation));
    }
  }
}

template <int kRows>
void panel_of(int rows, const float* x, int64_t stride, const Layer& layer, const float* weights,
              const float* biases, float* y) {
  if (rows == kRows) {
    panel<kRows>(x, stride, layer, weights, biases, y);
  } else if constexpr (kRows > 1) {
    panel_of<kRows - 1>(rows, x, stride, layer, weights, biases, y);
  }
}

// A panel of weights stays in the nearest cache while all rows pass.
void apply(const Layer& layer, int rows, const float* x, float* y, int64_t stride) {
  for (int column = 0; column < layer.outputs; column += kPanel) {
    const float* weights = layer.weights + int64_t(column) * layer.inputs;
    for (int row = 0; row < rows; row += kTile) {
      panel_of<kTile>(std::min(kTile, rows - row), x + row * stride, stride, layer, weights,
                      layer.biases + column, y + row * stride + column);
    }
  }
}

// A rollout under way.
struct Rows {
  int32_t rows, horizon;
  int64_t start_stride;  // 0 if all rows have the same start
  const float* starts;   // [rows][state_dim]
  const float* actions;  // [rows][horizon][action_dim]
  float* carried;        // [members][rows][state_dim], then log survival [members][rows]
  float* states;         // [rows][horizon + 1][state_dim], written, the start included
  float* rewards;        // [rows][horizon], written, as are the others
  float* dones;          // [rows][horizon]
  float* uncertainty;    // [rows], the largest spread so far
};

SAME_SIZE(Rows);
SAME_PLACE(Rows, rows); SAME_PLACE(Rows, horizon); SAME_PLACE(Rows, start_stride);
SAME_PLACE(Rows, starts); SAME_PLACE(Rows, actions); SAME_PLACE(Rows, carried);
SAME_PLACE(Rows, states); SAME_PLACE(Rows, rewards); SAME_PLACE(Rows, dones);
SAME_PLACE(Rows, uncertainty);

// Memory of one call: rows of equal stride, wide enough for every layer's whole panels.
struct Scratch {
  int64_t stride;
  std::vector<float> memory;
  float *a, *b, *latent_action, *next_latent, *decoded;

  Scratch(int64_t stride, int rows) : stride(stride), memory(5 * stride * rows) {
    float* parts[5];
    for (int i = 0; i < 5; ++i) parts[i] = memory.data() + i * stride * rows;
    a = parts[0], b = parts[1], latent_action = parts[2], next_latent = parts[3],
    decoded = parts[4];
  }
};

// Through `count` layers; the last one writes to `out`.
void through(const Layer* layers, int count, int rows, const float* x, float* out, Scratch& s) {
  for (int i = 0; i < count; ++i) {
    float* y = i == count - 1 ? out : (i % 2 ? s.a : s.b);
    apply(layers[i], rows, x, y, s.stride);
    x = y;
  }
}

// One member's step of all rows: states in place, rewards and calibrated hazard logits. A row's
// action lies `sequence` numbers after that of the row before.
void member_step(const Model& m, const Member& member, int rows, const float* actions,
                 int64_t sequence, float* states, float* rewards, float* logits, Scratch& s) {
  const int dim = m.state_dim, latent = m.latent_dim, stride = s.stride;
  const Layer* layers = member.layers;
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < dim; ++i) {
      s.a[r * stride + i] =
          (states[r * dim + i] - member.state_mean[i]) / member.state_scale[i];
    }
  }
  through(layers, m.depth, rows, s.a, s.latent_action, s);
  for (int r = 0; r < rows; ++r) {
    std::copy_n(actions + r * sequence, m.action_dim, s.latent_action + r * stride + latent);
  }
  through(layers + m.depth, m.depth, rows, s.latent_action, s.next_latent, s);
  layers += 2 * m.depth;
  through(layers, 1, rows, s.next_latent, s.decoded, s);
  through(layers + 1, 2, rows, s.latent_action, s.a, s);
  for (int r = 0; r < rows; ++r) {
    rewards[r] = member.reward_mean + member.reward_scale * s.a[r * stride];
  }

  std::vector<float> base(dim);
  for (int r = 0; r < rows; ++r) {
    float* const now = states + r * dim;
    const Row<const float> state = {now}, action = {actions + r * sequence};
    const Row<float> after = {base.data()};
    std::copy_n(now, dim, base.data());
    if (m.has_kinematics) {
      const Motion ego = move_ego(m, state, action, after);
      for (int slot = 0; slot < m.slots; ++slot) move_neighbour(m, slot, state, ego, after);
    }
    for (int i = 0; i < dim; ++i) {
      after[i] = decoded_feature(m, member, i, state, after[i], s.decoded[r * stride + i]);
    }
    std::copy_n(base.data(), dim, now);
    if (m.has_geometry) {
      float* inputs = s.next_latent + r * stride + latent;
      for (int i = 0; i < dim; ++i) {
        inputs[i] = (now[i] - member.state_mean[i]) / member.state_scale[i];
      }
      const Row<float> gaps = {inputs + dim};
      float nearest = m.gap_limit_m;
      for (int slot = 0; slot < m.slots; ++slot) {
        const float gap = gap_to(m, slot, state);
        nearest = smaller(nearest, gap);
        put_gap(m, slot, gap, gaps);
      }
      put_gap(m, m.slots, nearest, gaps);
      put_gap(m, m.slots + 1, gap_to_edge(m, state), gaps);
    }
  }
  through(layers + 3, 2, rows, s.next_latent, s.a, s);
  for (int r = 0; r < rows; ++r) {
    logits[r] = member.done_scale * s.a[r * stride] + member.done_shift;
  }
}

bool is_readable(int32_t file) {
  pollfd entry = {file, POLLIN, 0};
  return file >= 0 && poll(&entry, 1, 0) > 0;
}

int64_t stride_of(const Model& m) {
  int widest = m.latent_dim + m.state_dim + 2 * (m.slots + 2) + m.action_dim;
  const Layer* layers = m.member[0].layers;
  for (int i = 0; i < 2 * m.depth + 5; ++i) {
    widest = std::max({widest, layers[i].inputs, layers[i].outputs});
  }
  return int64_t(widest + kPanel - 1) / kPanel * kPanel + kPanel;
}

}  // namespace

// Takes the steps from `begin` to `end`, and returns the one that comes next. That is `end`, or an
// earlier one if the file descriptor `watched` is readable by then; below 0, none is watched.
// Rows from `first` on are computed, `count` of them.
extern "C" int32_t world_model_steps(const Model* model, const Rows* all, int32_t begin,
                                     int32_t end, int32_t first, int32_t count, int32_t watched) {
  const Model& m = *model;
  const Rows& t = *all;
  const int dim = m.state_dim, horizon = t.horizon, rows = t.rows;
  const int64_t member_stride = int64_t(rows) * dim, path = int64_t(horizon + 1) * dim;
  const int64_t sequence = int64_t(horizon) * m.action_dim;
  float* carried = t.carried + int64_t(first) * dim;
  float* log_alive = t.carried + m.members * member_stride + first;
  if (begin == 0) {
    for (int r = 0; r < count; ++r) {
      const float* start = t.starts + (first + r) * t.start_stride;
      std::copy_n(start, dim, t.states + (first + r) * path);
      t.uncertainty[first + r] = 0;
      for (int e = 0; e < m.members; ++e) {
        std::copy_n(start, dim, carried + e * member_stride + int64_t(r) * dim);
        log_alive[int64_t(e) * rows + r] = 0;
      }
    }
  }
  Scratch scratch(stride_of(m), count);
  std::vector<float> rewards(m.members * count), logits(m.members * count);
  int step = begin;
  while (step < end) {
    const float* now = t.actions + first * sequence + int64_t(step) * m.action_dim;
    for (int e = 0; e < m.members; ++e) {
      member_step(m, m.member[e], count, now, sequence, carried + e * member_stride,
                  rewards.data() + e * count, logits.data() + e * count, scratch);
    }
    for (int r = 0; r < count; ++r) {
      const int64_t row = first + r;
      const Combined together = combine(m, {carried + int64_t(r) * dim, member_stride},
                                        {rewards.data() + r, count}, {logits.data() + r, count},
                                        {log_alive + r, rows},
                                        t.states + row * path + int64_t(step + 1) * dim);
      for (int e = 0; e < m.members; ++e) {
        log_alive[int64_t(e) * rows + r] -= softplus(logits[e * count + r]);
      }
      t.rewards[row * horizon + step] = together.reward;
      t.dones[row * horizon + step] = together.done;
      // NaN wins: it must not be hidden by a number.
      const float most = t.uncertainty[row], spread = together.spread;
      t.uncertainty[row] = spread > most || std::isnan(spread) ? spread : most;
    }
    ++step;
    if (step < end && is_readable(watched)) break;
  }
  return step;
}

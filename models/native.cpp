// Steps of an ensemble of world models on a CPU: what `models.ensemble.EnsembleStep` computes.
//
// Libraries for matrix products are made for big ones, and pack the weights anew at every call. Here
// weights are packed once, rows go through a layer in registers, and all steps that are asked for
// are one call. Every output of a layer is its bias plus its products in the order of the inputs,
// and everything else is computed row by row: a row's bits do not depend on the rows beside it.

#include <poll.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

#ifdef __AVX512F__
constexpr int kLanes = 16;
constexpr int kTile = 8;  // rows whose sums fit the registers
#else
constexpr int kLanes = 8;  // GCC keeps wider vectors in memory
constexpr int kTile = 2;
#endif
constexpr int kPanel = 32;  // columns of weights that are packed together
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

enum Activation { kNone = 0, kRelu = 1, kElu = 2, kTanh = 3 };

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

struct Layer {
  int32_t inputs, outputs, activation;
  const float* weights;  // [panels][inputs][kPanel]
  const float* biases;   // [panels * kPanel]
};

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

}  // namespace

extern "C" {

struct Member {
  const Layer* layers;  // encoder, dynamics, decoder, reward head, done head
  const float *state_mean, *state_scale, *delta_scale;
  float reward_mean, reward_scale, done_scale, done_shift;
};

struct Model {
  int32_t members, state_dim, action_dim, depth, latent_dim;
  int32_t is_residual, has_geometry, has_kinematics, slots, edges;
  const Member* member;
  const float *gate_always, *gate_if_present;
  const int32_t *gate_presence;
  // Columns of the state: dx, dy, heading, speed, acceleration, yaw rate, presence, a slot each.
  const int32_t* slot_columns;
  const int32_t* edge_columns;
  // Columns of the ego: speed, offset, sine of its heading, edges, curvature; of the action.
  const int32_t *ego_columns, *action_columns;
  float half_length_m, half_width_m, gap_limit_m, contact_scale_m;
  float dt_s, length_m, full_throttle_mps2, full_brake_mps2, max_speed_mps, grip_mps2;
  float max_steering_rad, slowest_mps, most_sin;
};

// Rows on their way.
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

}  // extern "C"

namespace {

float clamp(float x, float low, float high) { return std::min(std::max(x, low), high); }

struct Angle {
  float sin, cos;
};

// By their series, exact to float32 below 0.2 rad.
Angle small_angle(float angle) {
  const float square = angle * angle;
  return {angle * (1 - square * (1.0f / 6 - square / 120)),
          1 - square * (0.5f - square * (1.0f / 24 - square / 720))};
}

// See `models.kinematics.KinematicStep`.
void kinematic_step(const Model& m, const float* state, const float* action, float* after) {
  const int32_t *ego = m.ego_columns, *pedals = m.action_columns;
  const float speed = state[ego[0]], curvature = state[ego[5]];
  const float wanted = m.full_throttle_mps2 * action[pedals[1]] - m.full_brake_mps2 * action[pedals[2]];
  const float acceleration =
      std::min(std::max(wanted, -speed / m.dt_s), (m.max_speed_mps - speed) / m.dt_s);
  const float quick = std::max(speed, 1.0f);
  const float grip = m.grip_mps2 * m.length_m / (quick * quick);
  const float wheel = action[pedals[0]] * std::min(std::atan(grip), m.max_steering_rad);
  const float tan_slip = 0.5f * std::tan(wheel);
  const float cos_slip = 1.0f / std::sqrt(1 + tan_slip * tan_slip);
  const float sin_slip = tan_slip * cos_slip;
  const float path = speed * m.dt_s;
  const float forward = path * cos_slip, sideways = path * sin_slip;
  const float turned = path * sin_slip * (2 / m.length_m);
  const float sin_error = clamp(state[ego[2]], -m.most_sin, m.most_sin);
  const float cos_error = std::sqrt(1 - sin_error * sin_error);
  const float along = forward * cos_error - sideways * sin_error;
  const float bend = curvature * along;
  const float across = forward * sin_error + sideways * cos_error - 0.5f * bend * along;
  const Angle change = small_angle(turned - bend);
  after[ego[0]] = speed + acceleration * m.dt_s;
  after[ego[1]] = state[ego[1]] + across;
  after[ego[2]] = sin_error * change.cos + cos_error * change.sin;
  after[ego[3]] = state[ego[3]] + across;
  after[ego[4]] = state[ego[4]] - across;
  after[ego[5]] = curvature;

  const Angle frame = small_angle(turned);
  for (int s = 0; s < m.slots; ++s) {
    int32_t at[7];
    float was[7];
    for (int i = 0; i < 7; ++i) {
      at[i] = m.slot_columns[i * m.slots + s];
      was[i] = state[at[i]];
    }
    const float sin_h = std::sin(was[2]), cos_h = std::cos(was[2]);
    const float slip = was[5] * (m.length_m / 2) / std::max(was[3], m.slowest_mps);
    const float slip_sin = clamp(slip, -m.most_sin, m.most_sin);
    const float slip_cos = std::sqrt(1 - slip_sin * slip_sin);
    const float way = was[3] * m.dt_s;
    const float ahead = was[0] + way * (cos_h * slip_cos - sin_h * slip_sin) - forward;
    const float aside = was[1] + way * (sin_h * slip_cos + cos_h * slip_sin) - sideways;
    const float faster = was[3] + was[4] * m.dt_s;
    const float goes_on = faster > 0 ? 1.0f : 0.0f;
    const float then[6] = {
        frame.cos * ahead + frame.sin * aside, frame.cos * aside - frame.sin * ahead,
        was[2] + was[5] * m.dt_s - turned,     faster * goes_on,
        was[4] * goes_on,                      was[5] * goes_on,
    };
    for (int i = 0; i < 6; ++i) after[at[i]] = was[i] + was[6] * (then[i] - was[i]);
    after[at[6]] = was[6];
  }
}

float squashed(float gap) { return gap / (1 + std::fabs(gap)); }

// See `models.geometry.GeometryMap`.
void geometry(const Model& m, const float* state, float* out) {
  const float length = m.half_length_m, width = m.half_width_m, limit = m.gap_limit_m;
  const int count = m.slots + 2;
  float nearest = limit;
  for (int s = 0; s < m.slots; ++s) {
    const auto at = [&](int i) { return state[m.slot_columns[i * m.slots + s]]; };
    const float dx = at(0), dy = at(1), cos_h = std::cos(at(2)), sin_h = std::sin(at(2));
    const float along = length + length * std::fabs(cos_h) + width * std::fabs(sin_h);
    const float across = width + length * std::fabs(sin_h) + width * std::fabs(cos_h);
    const float own = std::max(std::fabs(dx) - along, std::fabs(dy) - across);
    const float others = std::max(std::fabs(dx * cos_h + dy * sin_h) - along,
                                  std::fabs(dy * cos_h - dx * sin_h) - across);
    const float gap = at(6) > 0.5f ? clamp(std::max(own, others), -limit, limit) : limit;
    nearest = std::min(nearest, gap);
    out[s] = squashed(gap);
    out[count + s] = squashed(gap / m.contact_scale_m);
  }
  float edge = limit;
  for (int i = 0; i < m.edges; ++i) edge = std::min(edge, state[m.edge_columns[i]]);
  edge = std::max(edge, -limit);
  const float both[2] = {nearest, edge};
  for (int i = 0; i < 2; ++i) {
    out[m.slots + i] = squashed(both[i]);
    out[count + m.slots + i] = squashed(both[i] / m.contact_scale_m);
  }
}

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
    float* state = states + r * dim;
    const float* decoded = s.decoded + r * stride;
    if (m.has_kinematics) {
      kinematic_step(m, state, actions + r * sequence, base.data());
    } else {
      std::copy_n(state, dim, base.data());
    }
    // Presences are read by the gates of others: they stay as they are, but only if residual.
    std::vector<float>& after = base;
    for (int i = 0; i < dim; ++i) {
      float change = member.delta_scale[i] * decoded[i];
      if (m.has_geometry) {
        change *= m.gate_always[i] + m.gate_if_present[i] * state[m.gate_presence[i]];
      }
      after[i] = m.is_residual ? after[i] + change : decoded[i];
    }
    std::copy_n(after.data(), dim, state);
    if (m.has_geometry) {
      float* inputs = s.next_latent + r * stride + latent;
      for (int i = 0; i < dim; ++i) {
        inputs[i] = (state[i] - member.state_mean[i]) / member.state_scale[i];
      }
      geometry(m, state, inputs + dim);
    }
  }
  through(layers + 3, 2, rows, s.next_latent, s.a, s);
  for (int r = 0; r < rows; ++r) {
    logits[r] = member.done_scale * s.a[r * stride] + member.done_shift;
  }
}

float sigmoid(float x) {
  const float e = std::exp(-std::fabs(x));
  return x >= 0 ? 1 / (1 + e) : e / (1 + e);
}

float softplus(float x) { return std::max(x, 0.0f) + std::log1p(std::exp(-std::fabs(x))); }

// What the members say of one row together, beside its next mean state; see
// `models.ensemble.EnsembleStep`.
struct Said {
  float reward, done, spread;
};

Said combine(const Model& m, const float* states, int64_t member_stride, const float* rewards,
             const float* logits, int64_t row_stride, float* log_alive, int64_t alive_stride,
             float* mean_state) {
  const int dim = m.state_dim, members = m.members;
  const auto mean_and_variance = [&](auto value) {
    float total = value(0), squares = 0;
    for (int e = 1; e < members; ++e) total += value(e);
    const float mean = total / members;
    for (int e = 0; e < members; ++e) squares += (value(e) - mean) * (value(e) - mean);
    return std::pair<float, float>(mean, squares / members);
  };
  float squares = 0;
  for (int i = 0; i < dim; ++i) {
    float total = states[i];
    for (int e = 1; e < members; ++e) total += states[e * member_stride + i];
    mean_state[i] = total / members;
    squares += mean_and_variance([&](int e) {
      return states[e * member_stride + i] / m.member[e].state_scale[i];
    }).second;
  }
  float reward = rewards[0];
  for (int e = 1; e < members; ++e) reward += rewards[e * row_stride];
  const float reward_squares = mean_and_variance([&](int e) {
    return rewards[e * row_stride] / m.member[e].reward_scale;
  }).second;
  float most = log_alive[0], ending = 0, alive = 0;
  for (int e = 1; e < members; ++e) most = std::max(most, log_alive[e * alive_stride]);
  for (int e = 0; e < members; ++e) {
    const float weight = std::exp(log_alive[e * alive_stride] - most);
    ending += weight * sigmoid(logits[e * row_stride]);
    alive += weight;
    log_alive[e * alive_stride] -= softplus(logits[e * row_stride]);
  }
  return {reward / members, ending / alive, std::sqrt((squares + reward_squares) / (dim + 1))};
}

bool is_readable(int32_t file) {
  pollfd asked = {file, POLLIN, 0};
  return file >= 0 && poll(&asked, 1, 0) > 0;
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
// `first` and `count` tell which rows to compute.
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
      const Said said = combine(m, carried + int64_t(r) * dim, member_stride, rewards.data() + r,
                                logits.data() + r, count, log_alive + r, rows,
                                t.states + row * path + int64_t(step + 1) * dim);
      t.rewards[row * horizon + step] = said.reward;
      t.dones[row * horizon + step] = said.done;
      // Of two, one not a number is: it must show.
      const float most = t.uncertainty[row];
      t.uncertainty[row] = said.spread > most || std::isnan(said.spread) ? said.spread : most;
    }
    ++step;
    if (step < end && is_readable(watched)) break;
  }
  return step;
}

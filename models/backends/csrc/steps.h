// What a step of one row needs beside matrix products, for CPUs and GPUs alike; the rest is in
// `native.cpp` and `fused.cu`. No standard library: GPU code is compiled where there is none.
//
// Macros that are not defined here are passed by `models.backends.packing`, which lays the
// structures out: they hold its numbers, and where it puts each field.
#pragma once

#ifdef __CUDACC__
#define ANYWHERE __device__ inline
#else
#include <math.h>
#define ANYWHERE inline
#endif

constexpr int kPanel = PANEL;  // columns of weights that are packed together

enum Activation {
  kNone = 0,
  kRelu = ACTIVATION_RELU,
  kElu = ACTIVATION_ELU,
  kTanh = ACTIVATION_TANH
};

// Rows of `Model::slot_columns`.
enum SlotKind {
  kDx,
  kDy,
  kHeading,
  kSpeed,
  kAcceleration,
  kYawRate,
  kPresence,
  kLength,
  kWidth,
  kSlotKinds
};
constexpr int kMovedKinds = kPresence;  // those before it change in a step
static_assert(kSlotKinds == SLOT_KINDS, "Python has other features of slots");

// Places in `Model::ego_columns`; before them, from 0, are those of speed, lane offset, sine of the
// heading, left edge, right edge and curvature.
enum EgoColumn { kWheelbase = 6, kOwnLength, kOwnWidth, kEgoColumns };
static_assert(kEgoColumns == EGO_COUNT, "Python has other features of the ego");

struct Layer {
  int inputs, outputs, activation;
  const float* weights;  // [panels][inputs][kPanel], zero beyond the outputs
  const float* biases;   // [panels * kPanel]
};

struct Member {
  const Layer* layers;  // encoder, dynamics, decoder, reward head, done head
  const float *state_mean, *state_scale, *delta_scale;
  float reward_mean, reward_scale, done_scale, done_shift;
};

struct Model {
  int members, state_dim, action_dim, depth, latent_dim;
  int is_residual, has_geometry, has_kinematics, slots, edges;
  const Member* member;
  const float *gate_always, *gate_if_present;
  // Of each state feature: the column of its neighbour's presence, or ~ (bitwise not) of the column
  // of its length.
  const int* gates;
  const int* slot_columns;  // [kSlotKinds][slots], NOWHERE for what a slot does not have
  const int* edge_columns;
  const int *ego_columns, *action_columns;  // the ego's too may be NOWHERE
  float half_length_m, half_width_m, gap_limit_m, contact_scale_m;
  float dt_s, length_m, full_throttle_mps2, full_brake_mps2, max_speed_mps, grip_mps2;
  float max_steering_rad, slowest_mps, most_sin, shortest_m;
};

ANYWHERE int padded(int outputs) { return (outputs + kPanel - 1) / kPanel * kPanel; }

ANYWHERE int larger(int x, int y) { return x < y ? y : x; }
ANYWHERE int smaller(int x, int y) { return y < x ? y : x; }
// The first one if one is not a number.
ANYWHERE float larger(float x, float y) { return x < y ? y : x; }
ANYWHERE float smaller(float x, float y) { return y < x ? y : x; }
ANYWHERE float clamped(float x, float low, float high) { return smaller(larger(x, low), high); }

// The numbers of one row, every `stride`-th of memory.
template <class Number>
struct Row {
  Number* at;
  long long stride = 1;

  ANYWHERE Number& operator[](long long i) const { return at[i * stride]; }
};

// The number in a column of a state, or another one where there is no such column.
ANYWHERE float number_in(Row<const float> state, int column, float otherwise) {
  return column == NOWHERE ? otherwise : state[column];
}

// Writes a number to a column, if there is such a column.
ANYWHERE void put(Row<float> state, int column, float number) {
#ifdef __CUDACC__
  // NVIDIA's compiler 13.0 removes stores whose target may be a variable that is never read.
  if (column != NOWHERE) state[column] = number;
#else
  // With a branch, GCC would fuse other products with sums than without, and models that have all
  // columns would get other bits than in former versions.
  float unused;
  float& written = column == NOWHERE ? unused : state[column];
  written = number;
#endif
}

ANYWHERE int column_of(const Model& m, int slot, int kind) {
  return m.slot_columns[kind * m.slots + slot];
}

// How much a slot may change: its presence, or 1 where its length is above 0, else 0.
ANYWHERE float open_gate(Row<const float> state, int gate) {
  if (gate >= 0) return state[gate];
  return state[~gate] > 0 ? 1.0f : 0.0f;
}

// The gate of a slot: the column of its presence, or ~ of that of its length.
ANYWHERE int gate_of(const Model& m, int slot) {
  const int presence = column_of(m, slot, kPresence);
  return presence == NOWHERE ? ~column_of(m, slot, kLength) : presence;
}

struct Angle {
  float sin, cos;
};

// By their series, exact to float32 below 0.2 rad.
ANYWHERE Angle small_angle(float angle) {
  const float square = angle * angle;
  return {angle * (1 - square * (1.0f / 6 - square / 120)),
          1 - square * (0.5f - square * (1.0f / 24 - square / 720))};
}

// The ego's motion in its own frame: m, m to the right, rad.
struct Motion {
  float forward, sideways, turned;
};

// Moves the ego; see `models.network.kinematics.KinematicStep`.
ANYWHERE Motion move_ego(const Model& m, Row<const float> state, Row<const float> action,
                         Row<float> after) {
  const int *ego = m.ego_columns, *pedals = m.action_columns;
  const float speed = state[ego[0]], curvature = state[ego[5]];
  const float throttle = action[pedals[1]], brake = action[pedals[2]];
  const float wanted = m.full_throttle_mps2 * throttle - m.full_brake_mps2 * brake;
  const float acceleration =
      smaller(larger(wanted, -speed / m.dt_s), (m.max_speed_mps - speed) / m.dt_s);
  const float quick = larger(speed, 1.0f);
  const int wheelbase = ego[kWheelbase];
  const float length =
      wheelbase == NOWHERE ? m.length_m : larger(state[wheelbase], m.shortest_m);
  const float grip = m.grip_mps2 * length / (quick * quick);
  const float wheel = action[pedals[0]] * smaller(atanf(grip), m.max_steering_rad);
  const float tan_slip = 0.5f * tanf(wheel);
  const float cos_slip = 1.0f / sqrtf(1 + tan_slip * tan_slip);
  const float sin_slip = tan_slip * cos_slip;
  const float path = speed * m.dt_s;
  const float forward = path * cos_slip, sideways = path * sin_slip;
  const float turned = path * sin_slip * (2 / length);
  const float sin_error = clamped(state[ego[2]], -m.most_sin, m.most_sin);
  const float cos_error = sqrtf(1 - sin_error * sin_error);
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
  return {forward, sideways, turned};
}

// Moves the neighbour in a slot, seen from the ego after its motion.
ANYWHERE void move_neighbour(const Model& m, int slot, Row<const float> state, Motion ego,
                             Row<float> after) {
  int at[kMovedKinds];
  float was[kMovedKinds];
  for (int i = 0; i < kMovedKinds; ++i) {
    at[i] = column_of(m, slot, i);
    was[i] = number_in(state, at[i], 0.0f);
  }
  const float there = open_gate(state, gate_of(m, slot));
  const float length = number_in(state, column_of(m, slot, kLength), m.length_m);
  const Angle frame = small_angle(ego.turned);
  const float sin_h = sinf(was[kHeading]), cos_h = cosf(was[kHeading]);
  const float slip = was[kYawRate] * (length / 2) / larger(was[kSpeed], m.slowest_mps);
  const float slip_sin = clamped(slip, -m.most_sin, m.most_sin);
  const float slip_cos = sqrtf(1 - slip_sin * slip_sin);
  const float path = was[kSpeed] * m.dt_s;
  const float ahead = was[kDx] + path * (cos_h * slip_cos - sin_h * slip_sin) - ego.forward;
  const float aside = was[kDy] + path * (sin_h * slip_cos + cos_h * slip_sin) - ego.sideways;
  const float faster = was[kSpeed] + was[kAcceleration] * m.dt_s;
  const float goes_on = faster > 0 ? 1.0f : 0.0f;
  const float then[kMovedKinds] = {
      frame.cos * ahead + frame.sin * aside,
      frame.cos * aside - frame.sin * ahead,
      was[kHeading] + was[kYawRate] * m.dt_s - ego.turned,
      faster * goes_on,
      was[kAcceleration] * goes_on,
      was[kYawRate] * goes_on,
  };
  for (int i = 0; i < kMovedKinds; ++i) put(after, at[i], was[i] + there * (then[i] - was[i]));
}

// A feature after the step: its analytic one, or the present one, plus the decoder's change.
ANYWHERE float decoded_feature(const Model& m, const Member& member, int i, Row<const float> state,
                               float base, float decoded) {
  float change = member.delta_scale[i] * decoded;
  if (m.has_geometry) {
    change *= m.gate_always[i] + m.gate_if_present[i] * open_gate(state, m.gates[i]);
  }
  return m.is_residual ? base + change : decoded;
}

ANYWHERE float squashed(float gap) { return gap / (1 + fabsf(gap)); }

// Metres to the neighbour in a slot; see `models.network.geometry.GeometryMap`.
ANYWHERE float gap_to(const Model& m, int slot, Row<const float> state) {
  const float half_length = m.half_length_m, half_width = m.half_width_m;
  const int own_length = m.ego_columns[kOwnLength], own_width = m.ego_columns[kOwnWidth];
  const int its_length = column_of(m, slot, kLength), its_width = column_of(m, slot, kWidth);
  const float length = own_length == NOWHERE ? half_length : 0.5f * state[own_length];
  const float width = own_width == NOWHERE ? half_width : 0.5f * state[own_width];
  const float its_half_length = its_length == NOWHERE ? half_length : 0.5f * state[its_length];
  const float its_half_width = its_width == NOWHERE ? half_width : 0.5f * state[its_width];
  const float dx = state[column_of(m, slot, kDx)], dy = state[column_of(m, slot, kDy)];
  const float heading = state[column_of(m, slot, kHeading)];
  const float cos_h = cosf(heading), sin_h = sinf(heading);
  const float abs_cos = fabsf(cos_h), abs_sin = fabsf(sin_h);
  const float along = length + its_half_length * abs_cos + its_half_width * abs_sin;
  const float across = width + its_half_length * abs_sin + its_half_width * abs_cos;
  const float along_its = its_half_length + length * abs_cos + width * abs_sin;
  const float across_its = its_half_width + length * abs_sin + width * abs_cos;
  const float own = larger(fabsf(dx) - along, fabsf(dy) - across);
  const float others = larger(fabsf(dx * cos_h + dy * sin_h) - along_its,
                              fabsf(dy * cos_h - dx * sin_h) - across_its);
  const bool is_there = open_gate(state, gate_of(m, slot)) > 0.5f;
  return is_there ? clamped(larger(own, others), -m.gap_limit_m, m.gap_limit_m) : m.gap_limit_m;
}

ANYWHERE float gap_to_edge(const Model& m, Row<const float> state) {
  float gap = m.gap_limit_m;
  for (int i = 0; i < m.edges; ++i) gap = smaller(gap, state[m.edge_columns[i]]);
  return larger(gap, -m.gap_limit_m);
}

// Puts a gap where the done head reads it: at both scales. The nearest gap and the edge's come
// after those of the slots.
ANYWHERE void put_gap(const Model& m, int place, float gap, Row<float> inputs) {
  inputs[place] = squashed(gap);
  inputs[m.slots + 2 + place] = squashed(gap / m.contact_scale_m);
}

ANYWHERE float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return x >= 0 ? 1 / (1 + e) : e / (1 + e);
}

ANYWHERE float softplus(float x) { return larger(x, 0.0f) + log1pf(expf(-fabsf(x))); }

struct MeanVariance {
  float mean, variance;
};

// Over members, each divided by its own scale.
template <class Scale>
ANYWHERE MeanVariance spread_of(int members, Row<const float> values, Scale scale) {
  float total = values[0] / scale(0), squares = 0;
  for (int e = 1; e < members; ++e) total += values[e] / scale(e);
  const float mean = total / members;
  for (int e = 0; e < members; ++e) {
    const float off = values[e] / scale(e) - mean;
    squares += off * off;
  }
  return {mean, squares / members};
}

ANYWHERE float mean_of(int members, Row<const float> values) {
  float total = values[0];
  for (int e = 1; e < members; ++e) total += values[e];
  return total / members;
}

struct Combined {
  float reward, done, spread;
};

// What the members predict for one row together, and its mean state; see `EnsembleStep` in
// models/network/ensemble.py.
// Strides are from member to member. `log_alive` is from before the step.
ANYWHERE Combined combine(const Model& m, Row<const float> states, Row<const float> rewards,
                          Row<const float> logits, Row<const float> log_alive, float* mean_state) {
  const int dim = m.state_dim, members = m.members;
  float squares = 0;
  for (int i = 0; i < dim; ++i) {
    const Row<const float> values = {states.at + i, states.stride};
    mean_state[i] = mean_of(members, values);
    const auto scale = [&](int e) { return m.member[e].state_scale[i]; };
    squares += spread_of(members, values, scale).variance;
  }
  const auto scale = [&](int e) { return m.member[e].reward_scale; };
  squares += spread_of(members, rewards, scale).variance;
  float most = log_alive[0], ending = 0, alive = 0;
  for (int e = 1; e < members; ++e) most = larger(most, log_alive[e]);
  for (int e = 0; e < members; ++e) {
    const float weight = expf(log_alive[e] - most);
    ending += weight * sigmoid(logits[e]);
    alive += weight;
  }
  return {mean_of(members, rewards), ending / alive, sqrtf(squares / (dim + 1))};
}

// Code for other structures than Python lays out does not compile.
#define SAME_SIZE(structure) \
  static_assert(sizeof(structure) == BYTES_##structure, "Python's " #structure " differs")
#ifdef __CUDACC__
#define PLACE_OF(structure, field) __INTADDR__(&((structure*)0)->field)
#else
#define PLACE_OF(structure, field) __builtin_offsetof(structure, field)
#endif
#define SAME_PLACE(structure, field)                                              \
  static_assert(PLACE_OF(structure, field) == AT_##structure##_##field, \
                "Python puts " #structure "::" #field " elsewhere")

SAME_SIZE(Layer);
SAME_PLACE(Layer, inputs); SAME_PLACE(Layer, outputs); SAME_PLACE(Layer, activation);
SAME_PLACE(Layer, weights); SAME_PLACE(Layer, biases);
SAME_SIZE(Member);
SAME_PLACE(Member, layers); SAME_PLACE(Member, state_mean); SAME_PLACE(Member, state_scale);
SAME_PLACE(Member, delta_scale); SAME_PLACE(Member, reward_mean); SAME_PLACE(Member, reward_scale);
SAME_PLACE(Member, done_scale); SAME_PLACE(Member, done_shift);
SAME_SIZE(Model);
SAME_PLACE(Model, members); SAME_PLACE(Model, state_dim); SAME_PLACE(Model, action_dim);
SAME_PLACE(Model, depth); SAME_PLACE(Model, latent_dim); SAME_PLACE(Model, is_residual);
SAME_PLACE(Model, has_geometry); SAME_PLACE(Model, has_kinematics); SAME_PLACE(Model, slots);
SAME_PLACE(Model, edges); SAME_PLACE(Model, member); SAME_PLACE(Model, gate_always);
SAME_PLACE(Model, gate_if_present); SAME_PLACE(Model, gates);
SAME_PLACE(Model, slot_columns); SAME_PLACE(Model, edge_columns); SAME_PLACE(Model, ego_columns);
SAME_PLACE(Model, action_columns); SAME_PLACE(Model, half_length_m);
SAME_PLACE(Model, half_width_m); SAME_PLACE(Model, gap_limit_m); SAME_PLACE(Model, contact_scale_m);
SAME_PLACE(Model, dt_s); SAME_PLACE(Model, length_m); SAME_PLACE(Model, full_throttle_mps2);
SAME_PLACE(Model, full_brake_mps2); SAME_PLACE(Model, max_speed_mps); SAME_PLACE(Model, grip_mps2);
SAME_PLACE(Model, max_steering_rad); SAME_PLACE(Model, slowest_mps); SAME_PLACE(Model, most_sin);
SAME_PLACE(Model, shortest_m);

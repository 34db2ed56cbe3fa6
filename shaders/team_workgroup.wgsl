// Reductions over the LANES threads that share a chunk, through workgroup memory. Every thread must come here, and gets the result.
// Twin: none; one thread does the work of a team on the CPU.

var<workgroup> team_scratch: array<vec2<u32>, WORKGROUP>;

fn team_max(value: vec2<u32>, local: u32) -> vec2<u32> {
  if (LANES == 1u) { return value; }
  team_scratch[local] = value;
  workgroupBarrier();
  for (var step = LANES >> 1u; step > 0u; step = step >> 1u) {
    if ((local & (LANES - 1u)) < step) { team_scratch[local] = max(team_scratch[local], team_scratch[local + step]); }
    workgroupBarrier();
  }
  let best = team_scratch[local & ~(LANES - 1u)];
  workgroupBarrier();
  return best;
}

fn team_sum(value: vec2<f32>, local: u32) -> vec2<f32> {
  if (LANES == 1u) { return value; }
  team_scratch[local] = bitcast<vec2<u32>>(value);
  workgroupBarrier();
  for (var step = LANES >> 1u; step > 0u; step = step >> 1u) {
    if ((local & (LANES - 1u)) < step) {
      let sum = bitcast<vec2<f32>>(team_scratch[local]) + bitcast<vec2<f32>>(team_scratch[local + step]);
      team_scratch[local] = bitcast<vec2<u32>>(sum);
    }
    workgroupBarrier();
  }
  let sum = bitcast<vec2<f32>>(team_scratch[local & ~(LANES - 1u)]);
  workgroupBarrier();
  return sum;
}

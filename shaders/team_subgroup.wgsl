// Reductions over the LANES threads that share a chunk, through subgroup shuffles: no barriers. LANES is at most the
// adapter's smallest subgroup, and threads are numbered along subgroups, which the check of an adapter proves.
// Twin: none; one thread does the work of a team on the CPU.

fn team_max(value: vec2<u32>, local: u32) -> vec2<u32> {
  var best = value;
  for (var step = LANES >> 1u; step > 0u; step = step >> 1u) { best = max(best, subgroupShuffleXor(best, step)); }
  return best;
}

fn team_sum(value: vec2<f32>, local: u32) -> vec2<f32> {
  var sum = value;
  for (var step = LANES >> 1u; step > 0u; step = step >> 1u) { sum = sum + subgroupShuffleXor(sum, step); }
  return sum;
}

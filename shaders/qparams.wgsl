// Twin: src/kernels/qparams.rs

@compute @workgroup_size(WORKGROUP)
fn qparams(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
           @builtin(local_invocation_index) local: u32) {
  let group = flat_index(workgroup, workgroups, local);
  if (group >= params.groups) { return; }
  var best = 0u;
  var best_low = 0xffffffffu;
  var best_high = 0xffffffffu;
  for (var i = 0u; i < params.candidates; i += 1u) {
    var sum_low = 0u;
    var sum_high = 0u;
    for (var table = 0u; table < params.tallies; table += 1u) {
      let at = 2u * ((group * params.tallies + table) * params.candidates + i);
      let low = atomicLoad(&counts[at]);
      sum_low += low;
      sum_high += atomicLoad(&counts[at + 1u]) + u32(sum_low < low);
    }
    if (sum_high < best_high || (sum_high == best_high && sum_low < best_low)) {
      best = i;
      best_low = sum_low;
      best_high = sum_high;
    }
  }
  let chosen = candidate(range_low(group), range_high(group), best);
  scales[group] = chosen.scale;
  zero_points[group] = chosen.zero_point;
}

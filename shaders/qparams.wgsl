// Twin: src/kernels/qparams.rs

@compute @workgroup_size(WORKGROUP)
fn qparams(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
           @builtin(local_invocation_index) local: u32) {
  let group = flat_index(workgroup, workgroups, local);
  if (group >= params.groups) { return; }
  let chosen = candidate(range_low(group), range_high(group), best_number(group));
  scales[group] = chosen.scale;
  zero_points[group] = chosen.zero_point;
}

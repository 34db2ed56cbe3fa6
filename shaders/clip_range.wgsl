// Twin: src/kernels/clip_range.rs

@compute @workgroup_size(WORKGROUP)
fn clip_range(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
              @builtin(local_invocation_index) local: u32) {
  let group = flat_index(workgroup, workgroups, local);
  if (group >= params.groups) { return; }
  let channel = group * params.group_len / params.channel_len;
  let low = min(atomicLoad(&ranges[2u * group]), ~edges[2u * channel]);
  let high = min(atomicLoad(&ranges[2u * group + 1u]), edges[2u * channel + 1u]);
  if (widened(low) == 0u && widened(high) == 0u) { return; }
  atomicStore(&ranges[2u * group], low);
  atomicStore(&ranges[2u * group + 1u], high);
}

// Twin: src/kernels/search.rs

@compute @workgroup_size(WORKGROUP)
fn search(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
          @builtin(local_invocation_index) local: u32) {
  let thread = flat_index(workgroup, workgroups, local);
  let tried = params.coarse;
  if (thread >= params.chunks * tried) { return; }
  let chunk = thread / tried;
  try_candidate(chunk, thread % tried, coarse_number(chunk / params.chunks_per_group, thread % tried));
}

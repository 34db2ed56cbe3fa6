// Twin: src/kernels/refine.rs

@compute @workgroup_size(WORKGROUP)
fn refine(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
          @builtin(local_invocation_index) local: u32) {
  let thread = flat_index(workgroup, workgroups, local);
  let tried = params.candidates - params.coarse;
  if (thread >= params.chunks * tried) { return; }
  let chunk = thread / tried;
  let group = chunk / params.chunks_per_group;
  let f = thread % tried;
  try_candidate(chunk, params.coarse + f, fine_number(group, best_of(group, params.coarse), f));
}

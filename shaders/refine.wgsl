// Twin: src/kernels/refine.rs

@compute @workgroup_size(WORKGROUP)
fn refine(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
          @builtin(local_invocation_index) local: u32) {
  let thread = flat_index(workgroup, workgroups, local);
  let tried = params.candidates - params.coarse;
  if (thread >= params.chunks * tried) { return; }
  let chunk = thread / tried;
  let best = number_of(best_of(chunk / params.chunks_per_group, params.coarse), 0u);
  let i = params.coarse + thread % tried;
  try_candidate(chunk, i, number_of(i, best));
}

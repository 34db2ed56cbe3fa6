//! What wgpu and the system leave to their caller to get right: the GPU's `unsafe`, all of it.
//!
//! Checks at every access would slow shaders down, and a copy of every tile the uploads.

use wgpu::{Device, PipelineCache, PipelineCacheDescriptor, ShaderModule, ShaderModuleDescriptor};

/// Compiles a shader of this crate without checks of bounds and loops.
pub(super) fn module(device: &Device, source: ShaderModuleDescriptor) -> ShaderModule {
    // SAFETY: the sources are ours; every index is below a length that `Kernel::touches` states and the slot's buffers
    // have, and every loop ends. The harness runs the same sources with buffers of exact lengths.
    unsafe { device.create_shader_module_trusted(source, wgpu::ShaderRuntimeChecks::unchecked()) }
}

/// The driver's cache of pipelines, with what it handed out before; `None` if it has none.
pub(super) fn driver_cache(device: &Device, data: Option<&[u8]>) -> Option<PipelineCache> {
    if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
        return None;
    }
    let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let descriptor = PipelineCacheDescriptor { label: None, data, fallback: true };
    // SAFETY: the data came from `PipelineCache::get_data` and went through a file of ours with a checksum; wgpu compares
    // adapter and driver version with this one's, and the driver its own identity.
    let cache = unsafe { device.create_pipeline_cache(&descriptor) };
    // another adapter's data, for example, under this one's name
    pollster::block_on(scope.pop()).is_none().then_some(cache)
}

/// Mapped memory as bytes that a file can be read into.
pub(super) fn bytes<'a>(mapped: &'a mut wgpu::WriteOnly<'_, [u8]>) -> &'a mut [u8] {
    // SAFETY: the view is mapped for writing, borrowed for as long as the bytes, and was zeroed by wgpu when it was made.
    // Reading it would merely be slow on write-combined memory.
    unsafe { mapped.as_raw_ptr().as_mut() }
}

/// Keeps Mesa's device-select layer from writing an error about a missing desktop to stderr; it has nothing to select
/// here. Without effect where another thread runs.
pub fn quiet_driver() {
    let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count);
    if threads.is_ok_and(|threads| threads == 1) {
        // SAFETY: no other thread can read or change the environment meanwhile, as this is the only one
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") }
    }
}

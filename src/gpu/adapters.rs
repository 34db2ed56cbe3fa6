//! Adapters: what there is, and what it can do.

use crate::kernels::WORKGROUP;
use wgpu::DeviceType;

/// What `monoquant devices` lists of an adapter.
#[derive(Debug, Clone, serde::Serialize)]
pub struct AdapterFacts {
    /// Its place in the list, which `--device gpu:N` takes.
    pub number: usize,
    /// The adapter's own name.
    pub name: String,
    /// Vulkan, Metal or DX12.
    pub api: String,
    /// "discrete GPU", "integrated GPU", "software", …
    pub kind: &'static str,
    /// Driver and its version.
    pub driver: String,
    /// Largest storage binding, in bytes.
    pub max_binding_bytes: u64,
    /// Largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// Smallest and largest subgroup, 0 where the adapter has none.
    pub subgroups: [u32; 2],
    /// Whether it computes on the CPU.
    pub software: bool,
    /// Whether it computes in the host's memory, and buffers can be both written by the host and read by kernels.
    pub shared_memory: bool,
}

/// An adapter that could be opened.
pub struct Adapter {
    /// What it is.
    pub facts: AdapterFacts,
    /// The handle of it.
    pub adapter: wgpu::Adapter,
}

/// Every adapter, the best first: discrete, integrated, virtual, other, software.
pub fn adapters() -> Vec<Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::PRIMARY;
    let instance = wgpu::Instance::new(descriptor);
    let found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    let mut list: Vec<_> = found
        .into_iter()
        .filter(|a| a.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS))
        .map(|adapter| Adapter { facts: facts(&adapter), adapter })
        .collect();
    list.sort_by_key(|a| rank(a.adapter.get_info().device_type));
    list.iter_mut().enumerate().for_each(|(number, adapter)| adapter.facts.number = number);
    list
}

/// The adapters that do not compute on the CPU. Where there can be none, drivers are not loaded, which takes longer than
/// a small job.
pub fn hardware() -> Vec<Adapter> {
    if !may_have_hardware() {
        return Vec::new();
    }
    adapters().into_iter().filter(|a| !a.facts.software).collect()
}

/// Linux drivers of GPUs talk to files in /dev. Whatever might be one counts, and so does a driver that was asked for.
fn may_have_hardware() -> bool {
    const DEVICES: [&str; 11] =
        ["dri", "dxg", "nvidia", "nvgpu", "nvhost", "nvmap", "kfd", "kgsl", "mali", "pvr", "galcore"];
    const DRIVERS: [&str; 3] = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES"];
    let Ok(entries) = std::fs::read_dir("/dev") else { return true };
    let known = |name: &str| DEVICES.iter().any(|device| name.starts_with(device));
    !cfg!(target_os = "linux")
        || DRIVERS.iter().any(|name| std::env::var_os(name).is_some())
        || entries.flatten().any(|entry| known(&entry.file_name().to_string_lossy()))
}

fn rank(device_type: DeviceType) -> u32 {
    match device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    }
}

fn facts(adapter: &wgpu::Adapter) -> AdapterFacts {
    let info = adapter.get_info();
    let limits = adapter.limits();
    let subgroups = adapter.features().contains(wgpu::Features::SUBGROUP);
    // SwiftShader reports itself as a CPU; a rasterizer that does not is known by its name
    let software = info.device_type == DeviceType::Cpu
        || ["llvmpipe", "lavapipe", "swiftshader", "basic render driver"]
            .iter()
            .any(|s| info.name.to_lowercase().contains(s));
    AdapterFacts {
        number: 0,
        kind: match info.device_type {
            _ if software => "software",
            DeviceType::DiscreteGpu => "discrete GPU",
            DeviceType::IntegratedGpu => "integrated GPU",
            DeviceType::VirtualGpu => "virtual GPU",
            _ => "other",
        },
        name: info.name,
        api: format!("{:?}", info.backend),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        max_binding_bytes: limits.max_storage_buffer_binding_size,
        max_buffer_bytes: limits.max_buffer_size,
        subgroups: if subgroups { [info.subgroup_min_size, info.subgroup_max_size] } else { [0, 0] },
        software,
        shared_memory: (software || info.device_type == DeviceType::IntegratedGpu)
            && adapter.features().contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
    }
}

/// What the kernels need of an adapter, in the words of its limits; `None` if it has enough.
pub fn lacks(adapter: &Adapter) -> Option<String> {
    let limits = adapter.adapter.limits();
    if limits.max_storage_buffers_per_shader_stage < 8 {
        let has = limits.max_storage_buffers_per_shader_stage;
        return Some(format!("it binds {has} storage buffers, 8 are needed"));
    }
    if limits.max_compute_invocations_per_workgroup < WORKGROUP {
        return Some(format!("its workgroups have fewer than {WORKGROUP} threads"));
    }
    None
}

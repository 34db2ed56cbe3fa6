//! The buffers of a tile in flight.

use crate::kernels::{self, Binding, Lengths};
use wgpu::BufferUsages;

/// Every buffer of one tile in flight.
pub struct Slot {
    /// What the buffers can hold.
    pub capacity: Lengths,
    /// Where a reader writes, unless it may write to the storage buffer itself.
    pub staging: Option<wgpu::Buffer>,
    pub storage: [wgpu::Buffer; 8],
    pub readback: wgpu::Buffer,
    /// Parameters of each pass, and the buffers bound with them.
    pub passes: Vec<(wgpu::Buffer, wgpu::BindGroup)>,
}

/// The one layout of all kernels: the uniform, and eight storage buffers.
pub fn bind_group_layout(device: &wgpu::Device) -> wgpu::BindGroupLayout {
    let entry = |binding, ty| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    };
    let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform)];
    for binding in Binding::ALL {
        let read_only = binding.read_only();
        entries.push(entry(binding as u32, wgpu::BufferBindingType::Storage { read_only }));
    }
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries })
}

impl Slot {
    pub fn new(
        device: &wgpu::Device,
        layout: &wgpu::BindGroupLayout,
        capacity: Lengths,
        passes: usize,
    ) -> Self {
        let buffer = |words: usize, usage, mapped_at_creation| {
            let size = 4 * words.max(4) as u64; // a binding cannot be empty
            device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation })
        };
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
        // where the GPU computes in the host's memory, a copy of the input would only cost time
        let direct = device.features().contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS);
        let storage = Binding::ALL.map(|binding| match binding {
            Binding::Input if direct => buffer(capacity.of(binding), usage | BufferUsages::MAP_WRITE, true),
            _ => buffer(capacity.of(binding), usage, false),
        });
        let upload = BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC;
        let pass = |_| {
            let uniform_words = kernels::PARAM_NAMES.len();
            let uniform = buffer(uniform_words, BufferUsages::UNIFORM | BufferUsages::COPY_DST, false);
            let mut entries =
                vec![wgpu::BindGroupEntry { binding: 0, resource: uniform.as_entire_binding() }];
            for (binding, buffer) in Binding::ALL.iter().zip(&storage) {
                let resource = buffer.as_entire_binding();
                entries.push(wgpu::BindGroupEntry { binding: *binding as u32, resource });
            }
            let descriptor = wgpu::BindGroupDescriptor { label: None, entries: &entries, layout };
            let bind_group = device.create_bind_group(&descriptor);
            (uniform, bind_group)
        };
        let pass_list = (0..passes).map(pass).collect();
        let returned: usize = Binding::ALL.iter().filter(|b| !b.read_only()).map(|&b| capacity.of(b)).sum();
        Slot {
            staging: (!direct).then(|| buffer(capacity.of(Binding::Input), upload, true)),
            readback: buffer(returned * passes, BufferUsages::MAP_READ | BufferUsages::COPY_DST, false),
            capacity,
            storage,
            passes: pass_list,
        }
    }

    /// What a reader fills.
    pub fn mapped(&self) -> &wgpu::Buffer {
        self.staging.as_ref().unwrap_or(&self.storage[0])
    }
}

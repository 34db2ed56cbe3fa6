//! Kernels on inputs that lie in a GPU's memory already: no upload, no readback.

use crate::{
    sequences,
    table::{Sample, timed},
};
use monoquant::{
    backend::{Pass, Tile},
    gpu::{Adapter, best_shape},
    kernels::{self, Binding, Kernel, Shape, WORKGROUP},
};
use std::borrow::Cow;
use wgpu::{BufferUsages, Device, Queue};

/// Measures a tile's kernels over several inputs in one submission: by the GPU's clock where it has one, else from
/// submission to completion.
pub fn resident(adapter: &Adapter, tile: Tile) -> impl FnMut() -> Sample + use<> {
    let has = adapter.adapter.features();
    let descriptor = wgpu::DeviceDescriptor {
        required_features: has & (wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::SUBGROUP),
        required_limits: adapter.adapter.limits(),
        ..Default::default()
    };
    let opened = pollster::block_on(adapter.adapter.request_device(&descriptor));
    let (device, queue) = opened.expect("a device that was opened before");
    // more bytes than a cache holds
    let count = if adapter.facts.software { 8 } else { 32 };
    let tiles = Tiles::new(&device, &queue, &tile, best_shape(&adapter.facts), count);
    let clock = has.contains(wgpu::Features::TIMESTAMP_QUERY).then(|| Clock::new(&device));
    // the first run compiles for the driver, and touches all memory
    tiles.run(&device, &queue, None);
    move || {
        let sample = timed(count * tile.input_bytes, || {
            tiles.run(&device, &queue, clock.as_ref());
            device.poll(wgpu::PollType::wait_indefinitely()).expect("a GPU that answers");
        });
        match clock.as_ref().and_then(|clock| clock.seconds(&device, &queue)) {
            Some(seconds) => Sample { seconds, ..sample },
            None => sample,
        }
    }
}

/// Bind groups of some tiles: inputs and outputs are their own, the rest is shared.
struct Tiles {
    pass: Pass,
    shape: Shape,
    pipelines: Vec<wgpu::ComputePipeline>,
    groups: Vec<wgpu::BindGroup>,
    /// Ranges and counts, which start as zeros.
    cleared: [wgpu::Buffer; 2],
    most_workgroups: u32,
}

impl Tiles {
    fn new(device: &Device, queue: &Queue, tile: &Tile, shape: Shape, count: usize) -> Self {
        let pass = tile.passes[0].clone();
        let lengths = tile.lengths();
        let layout = layout(device);
        let buffer = |words: usize, usage| {
            let (size, usage) = (4 * words.max(4) as u64, usage | BufferUsages::COPY_DST);
            device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size,
                usage,
                mapped_at_creation: false,
            })
        };
        let uniform = buffer(kernels::PARAM_NAMES.len(), BufferUsages::UNIFORM);
        queue.write_buffer(&uniform, 0, bytemuck::bytes_of(&pass.params));
        let shared = Binding::ALL.map(|b| buffer(lengths.of(b), BufferUsages::STORAGE));
        let input = sequences::input(tile, 1);
        let group = |_| {
            let own =
                [Binding::Input, Binding::Output].map(|b| (b, buffer(lengths.of(b), BufferUsages::STORAGE)));
            queue.write_buffer(&own[0].1, 0, bytemuck::cast_slice(&input));
            let mut entries =
                vec![wgpu::BindGroupEntry { binding: 0, resource: uniform.as_entire_binding() }];
            for (binding, shared) in Binding::ALL.into_iter().zip(&shared) {
                let buffer = own.iter().find(|(b, _)| *b == binding).map_or(shared, |(_, own)| own);
                entries.push(wgpu::BindGroupEntry {
                    binding: binding as u32,
                    resource: buffer.as_entire_binding(),
                });
            }
            let descriptor = wgpu::BindGroupDescriptor { label: None, entries: &entries, layout: &layout };
            device.create_bind_group(&descriptor)
        };
        let groups = (0..count).map(group).collect();
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let compile = |kernel: &&'static Kernel| {
            pipeline(device, &pipeline_layout, kernel, pass.params.input_dtype, shape)
        };
        Tiles {
            pipelines: pass.kernels.iter().map(compile).collect(),
            groups,
            cleared: [Binding::Ranges, Binding::Counts].map(|b| shared[b as usize - 1].clone()),
            most_workgroups: device.limits().max_compute_workgroups_per_dimension,
            pass,
            shape,
        }
    }

    fn run(&self, device: &Device, queue: &Queue, clock: Option<&Clock>) {
        let mut encoder = device.create_command_encoder(&Default::default());
        for (i, group) in self.groups.iter().enumerate() {
            self.cleared.iter().for_each(|buffer| encoder.clear_buffer(buffer, 0, None));
            let (first, last) = (i == 0, i + 1 == self.groups.len());
            let timestamp_writes =
                clock.filter(|_| first || last).map(|clock| wgpu::ComputePassTimestampWrites {
                    query_set: &clock.queries,
                    beginning_of_pass_write_index: first.then_some(0),
                    end_of_pass_write_index: last.then_some(1),
                });
            let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
            let mut compute = encoder.begin_compute_pass(&descriptor);
            compute.set_bind_group(0, group, &[]);
            for (kernel, pipeline) in self.pass.kernels.iter().zip(&self.pipelines) {
                let lanes = if kernel.team { self.shape.lanes } else { 1 };
                let workgroups = ((kernel.threads)(&self.pass.params) * lanes).div_ceil(WORKGROUP);
                let high = workgroups.div_ceil(self.most_workgroups).max(1);
                compute.set_pipeline(pipeline);
                compute.dispatch_workgroups(workgroups.div_ceil(high), high, 1);
            }
        }
        if let Some(clock) = clock {
            encoder.resolve_query_set(&clock.queries, 0..2, &clock.resolved, 0);
            encoder.copy_buffer_to_buffer(&clock.resolved, 0, &clock.readback, 0, Some(16));
        }
        queue.submit([encoder.finish()]);
    }
}

fn layout(device: &Device) -> wgpu::BindGroupLayout {
    let entry = |binding, ty| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    };
    let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform)];
    let storage = |b: Binding| wgpu::BufferBindingType::Storage { read_only: b.read_only() };
    entries.extend(Binding::ALL.map(|b| entry(b as u32, storage(b))));
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries })
}

fn pipeline(
    device: &Device,
    layout: &wgpu::PipelineLayout,
    kernel: &'static Kernel,
    input_dtype: u32,
    shape: Shape,
) -> wgpu::ComputePipeline {
    let source = wgpu::ShaderSource::Wgsl(Cow::Owned(kernels::source(kernel, shape)));
    let descriptor = wgpu::ShaderModuleDescriptor { label: Some(kernel.name), source };
    // SAFETY: as in the engine, whose lengths of buffers and parameters these are; kernels index below them
    #[allow(unsafe_code)]
    let module =
        unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) };
    let lanes = if kernel.team { shape.lanes } else { 1 };
    let constants = [("INPUT_DTYPE", f64::from(input_dtype)), ("LANES", f64::from(lanes))];
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(kernel.name),
        layout: Some(layout),
        module: &module,
        entry_point: Some(kernel.name),
        compilation_options: wgpu::PipelineCompilationOptions {
            constants: &constants,
            zero_initialize_workgroup_memory: false,
        },
        cache: None,
    })
}

/// The GPU's own clock, read before the first kernel and after the last.
struct Clock {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    readback: wgpu::Buffer,
}

impl Clock {
    fn new(device: &Device) -> Self {
        let descriptor = wgpu::QuerySetDescriptor { label: None, ty: wgpu::QueryType::Timestamp, count: 2 };
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: 16,
                usage,
                mapped_at_creation: false,
            })
        };
        Clock {
            queries: device.create_query_set(&descriptor),
            resolved: buffer(BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC),
            readback: buffer(BufferUsages::MAP_READ | BufferUsages::COPY_DST),
        }
    }

    /// Seconds between both; none if the clock did not move, as on drivers that only claim to have one.
    fn seconds(&self, device: &Device, queue: &Queue) -> Option<f64> {
        self.readback.map_async(wgpu::MapMode::Read, .., |_| {});
        device.poll(wgpu::PollType::wait_indefinitely()).expect("a GPU that answers");
        let ticks: Vec<u64> = {
            let view = self.readback.get_mapped_range(..).expect("a mapped buffer");
            bytemuck::pod_collect_to_vec(&view)
        };
        self.readback.unmap();
        let passed = ticks[1].checked_sub(ticks[0]).filter(|&passed| passed > 0)?;
        Some(passed as f64 * f64::from(queue.get_timestamp_period()) / 1e9)
    }
}

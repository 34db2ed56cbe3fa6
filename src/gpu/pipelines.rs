//! Compiled kernels of one device: each when it is first used, once for every dtype of its input.

use super::{GpuOptions, trusted_module};
use crate::{
    backend::{Step, Steps},
    kernels::{self, Kernel, Shape},
};
use std::{borrow::Cow, collections::HashMap};

pub(super) struct Pipelines {
    layout: wgpu::PipelineLayout,
    shape: Shape,
    corrupt: Option<(&'static str, &'static str)>,
    compiled: HashMap<Step, wgpu::ComputePipeline>,
}

impl Pipelines {
    /// None yet, for bind groups of this layout.
    pub fn new(
        device: &wgpu::Device,
        bind_group: &wgpu::BindGroupLayout,
        shape: Shape,
        options: &GpuOptions,
    ) -> Self {
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(bind_group)],
            immediate_size: 0,
        });
        Pipelines { layout, shape, corrupt: options.corrupt, compiled: HashMap::new() }
    }

    /// Compiles the kernel for this dtype, unless it was.
    pub fn prepare(&mut self, device: &wgpu::Device, kernel: &'static Kernel, input_dtype: u32) {
        let Self { layout, shape, corrupt, compiled } = self;
        compiled.entry((kernel.name, input_dtype)).or_insert_with(|| {
            let mut source = kernels::source(kernel, *shape);
            if let Some((from, to)) = *corrupt {
                source = source.replace(from, to);
            }
            let descriptor = wgpu::ShaderModuleDescriptor {
                label: Some(kernel.name),
                source: wgpu::ShaderSource::Wgsl(Cow::Owned(source)),
            };
            let lanes = if kernel.team { shape.lanes } else { 1 };
            let constants = [("INPUT_DTYPE", f64::from(input_dtype)), ("LANES", f64::from(lanes))];
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(kernel.name),
                layout: Some(layout),
                module: &trusted_module(device, descriptor),
                entry_point: Some(kernel.name),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &constants,
                    zero_initialize_workgroup_memory: false,
                },
                cache: None,
            })
        });
    }

    /// A kernel that was prepared.
    pub fn get(&self, kernel: &Kernel, input_dtype: u32) -> &wgpu::ComputePipeline {
        &self.compiled[&(kernel.name, input_dtype)]
    }

    /// What was compiled so far.
    pub fn compiled(&self) -> Steps {
        self.compiled.keys().copied().collect()
    }
}

//! Compiled kernels of one device: each when it is first used, once for every dtype of its input.

use super::{
    GpuOptions,
    cache::{self, Kept},
    trusted,
};
use crate::{
    backend::{Step, Steps},
    kernels::{self, Kernel, Shape},
};
use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    path::PathBuf,
};

pub(super) struct Pipelines {
    layout: wgpu::PipelineLayout,
    shape: Shape,
    corrupt: Option<(&'static str, &'static str)>,
    compiled: HashMap<Step, wgpu::ComputePipeline>,
    cache: Option<DriverCache>,
}

/// What the driver remembers of earlier runs.
struct DriverCache {
    cache: wgpu::PipelineCache,
    path: PathBuf,
    /// Pipelines that are in the file, and that were compiled.
    stored: BTreeSet<u32>,
    used: BTreeSet<u32>,
}

impl Pipelines {
    /// None yet, for bind groups of this layout.
    pub fn new(
        device: &wgpu::Device,
        info: &wgpu::AdapterInfo,
        bind_group: &wgpu::BindGroupLayout,
        shape: Shape,
        options: &GpuOptions,
    ) -> Self {
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(bind_group)],
            immediate_size: 0,
        });
        let cache = options.cache.as_ref().and_then(|directory| {
            let key = wgpu::util::pipeline_cache_key(info)?;
            let path = directory.join(format!("{key}-{}", env!("CARGO_PKG_VERSION")));
            let kept = cache::read(&path);
            let data = kept.as_ref().map(|kept| kept.data.as_slice());
            let cache = trusted::driver_cache(device, data)?;
            // data that it did not take, of an older driver, say, counts as none
            let taken = kept.filter(|kept| cache.get_data().is_some_and(|d| d.len() >= kept.data.len()));
            let stored = taken.map(|kept| kept.pipelines).unwrap_or_default();
            Some(DriverCache { cache, path, stored, used: BTreeSet::new() })
        });
        Pipelines { layout, shape, corrupt: options.corrupt, compiled: HashMap::new(), cache }
    }

    /// Compiles the kernel for this dtype, unless it was.
    pub fn prepare(&mut self, device: &wgpu::Device, kernel: &'static Kernel, input_dtype: u32) {
        let Self { layout, shape, corrupt, compiled, cache } = self;
        compiled.entry((kernel.name, input_dtype)).or_insert_with(|| {
            let mut source = kernels::source(kernel, *shape);
            if let Some((from, to)) = *corrupt {
                source = source.replace(from, to);
            }
            if let Some(cache) = cache {
                cache.used.insert(cache::identity(&source, input_dtype, shape.lanes));
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
                module: &trusted::module(device, descriptor),
                entry_point: Some(kernel.name),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &constants,
                    zero_initialize_workgroup_memory: false,
                },
                cache: cache.as_ref().map(|c| &c.cache),
            })
        });
    }

    /// Keeps what was compiled for other runs, if the file lacks any of it.
    pub fn keep(&mut self) {
        let Some(DriverCache { cache, path, stored, used }) = &mut self.cache else { return };
        if used.is_subset(stored) {
            return;
        }
        if let Some(data) = cache.get_data() {
            stored.append(used);
            cache::write(path, &Kept { data, pipelines: stored.clone() });
        }
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

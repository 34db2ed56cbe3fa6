//! The GPU backend: adapters, pipelines, and a ring of staging buffers, through wgpu (Vulkan, Metal, DX12).
//!
//! A slot of the ring owns every buffer of one tile: the mapped staging buffer that a reader fills, the eight storage
//! buffers, and a readback buffer. While one slot computes, others upload or wait to be read.

mod adapters;
mod cache;
mod check;
mod pipelines;
mod slot;
mod ties;
#[allow(unsafe_code)]
// one of two files that may: what wgpu leaves to its caller, each with the reason why it holds
mod trusted;

pub use adapters::{Adapter, AdapterFacts, adapters, hardware, lacks};
pub use cache::cache_directory;
pub use check::every_step;
pub use trusted::quiet_driver;

use pipelines::Pipelines;
use slot::{Slot, bind_group_layout};

use crate::{
    backend::{Backend, Dispatches, Fill, Pass, Results, Steps, Take, Tile},
    error::{Error, Result},
    kernels::{Binding, Lengths, Shape, WORKGROUP},
    profile::{Profile, Stage},
};
use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};
use wgpu::PollType;

/// Settings that change how fast an adapter computes, or that tests need; none changes a byte.
#[derive(Debug, Clone, Default)]
pub struct GpuOptions {
    /// How threads form teams; by default one thread a chunk on software, 16 on hardware.
    pub shape: Option<Shape>,
    /// For tests of the checks themselves: replaces a text in every shader.
    pub corrupt: Option<(&'static str, &'static str)>,
    /// For tests: goes on with an adapter that was not compared with the CPU.
    pub skip_check: bool,
    /// For tests: the device is lost once so many tiles of a job were submitted.
    pub lose_after: Option<u64>,
    /// A directory for compiled pipelines, where the driver hands them out. Whoever can write there is trusted, as drivers
    /// hardly check what they get back.
    pub cache: Option<PathBuf>,
}

/// Runs the WGSL kernels on one adapter.
pub struct GpuBackend {
    facts: AdapterFacts,
    device: wgpu::Device,
    queue: wgpu::Queue,
    layout: wgpu::BindGroupLayout,
    pipelines: Pipelines,
    /// Steps that make the CPU's bytes; `None` before any check, when the harness itself may run all of them.
    verified: Option<Steps>,
    shape: Shape,
    options: GpuOptions,
    free: Vec<Slot>,
    busy: VecDeque<(Slot, Tile, wgpu::SubmissionIndex, Done)>,
    dispatches: Dispatches,
    failure: Arc<Mutex<Option<String>>>,
    /// Whether that was the loss of the device.
    lost: Arc<AtomicBool>,
    /// Tiles of jobs that were submitted.
    submitted: u64,
    profile: Option<Profile>,
}

/// When a tile's work was done, once it is.
type Done = Arc<OnceLock<Instant>>;

/// Tiles in flight: one is read, one computes, one is read back.
const DEPTH: usize = 3;
const TILE_BYTES_HARDWARE: usize = 16 << 20;
const TILE_BYTES_SOFTWARE: usize = 4 << 20;

impl GpuBackend {
    /// Opens an adapter, compiles nothing yet.
    pub fn open(adapter: &Adapter, options: GpuOptions) -> Result<Self> {
        let facts = adapter.facts.clone();
        let mut wanted = wgpu::Features::SUBGROUP | wgpu::Features::PIPELINE_CACHE;
        if facts.shared_memory {
            wanted |= wgpu::Features::MAPPABLE_PRIMARY_BUFFERS;
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("monoquant"),
            required_features: adapter.adapter.features() & wanted,
            required_limits: adapter.adapter.limits(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.adapter.request_device(&descriptor))
            .map_err(|e| Error::Device(format!("{}: cannot open the device: {e}", facts.name)))?;
        let failure = Arc::new(Mutex::new(None));
        let seen = failure.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| note(&seen, e.to_string())));
        let seen = failure.clone();
        let lost = Arc::new(AtomicBool::new(false));
        let (is_lost, injected) = (lost.clone(), options.lose_after.is_some());
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed || injected {
                is_lost.store(true, Ordering::Relaxed);
                note(&seen, format!("device lost: {message}"));
            }
        });
        let layout = bind_group_layout(&device);
        let shape = options.shape.unwrap_or_else(|| best_shape(&facts));
        let pipelines = Pipelines::new(&device, &adapter.adapter.get_info(), &layout, shape, &options);
        Ok(GpuBackend {
            facts,
            device,
            queue,
            layout,
            pipelines,
            verified: None,
            shape,
            options,
            free: Vec::new(),
            busy: VecDeque::new(),
            dispatches: Dispatches::new(),
            failure,
            lost,
            submitted: 0,
            profile: None,
        })
    }

    /// What the adapter is.
    pub fn facts(&self) -> &AdapterFacts {
        &self.facts
    }

    /// What was compiled so far.
    pub fn compiled(&self) -> Steps {
        self.pipelines.compiled()
    }

    fn failed(&self) -> Result<()> {
        match self.failure.lock().unwrap_or_else(|e| e.into_inner()).as_ref() {
            Some(message) => Err(Error::Device(format!("{}: {message}", self.facts.name))),
            None => Ok(()),
        }
    }

    fn slot(&mut self, lengths: &Lengths, passes: usize) -> Slot {
        let (capacity, passes) = match self.free.pop() {
            Some(slot) if slot.capacity.max(*lengths) == slot.capacity && slot.passes.len() >= passes => {
                return slot;
            }
            Some(slot) => (slot.capacity.max(*lengths), passes.max(slot.passes.len())),
            None => (*lengths, passes),
        };
        Slot::new(&self.device, &self.layout, capacity, passes)
    }

    fn encode(&mut self, slot: &Slot, tile: &Tile) -> wgpu::SubmissionIndex {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let bytes = 4 * tile.lengths().of(Binding::Input).max(4) as u64;
        if let Some(staging) = &slot.staging {
            encoder.copy_buffer_to_buffer(staging, 0, &slot.storage[0], 0, Some(bytes));
        }
        let mut at = 0;
        for (pass, (uniform, bind_group)) in tile.passes.iter().zip(&slot.passes) {
            let lengths = pass.lengths();
            self.queue.write_buffer(uniform, 0, bytemuck::bytes_of(&pass.params));
            for binding in [Binding::Ranges, Binding::Counts] {
                if lengths.of(binding) > 0 {
                    let bytes = 4 * lengths.of(binding) as u64;
                    encoder.clear_buffer(&slot.storage[binding as usize - 1], 0, Some(bytes));
                }
            }
            if !pass.preload.is_empty() {
                // clears (and the pass before) come first, then what this one starts with
                self.queue.submit([encoder.finish()]);
                for (binding, words) in &pass.preload {
                    let buffer = &slot.storage[*binding as usize - 1];
                    self.queue.write_buffer(buffer, 0, bytemuck::cast_slice(words));
                }
                encoder = self.device.create_command_encoder(&Default::default());
            }
            self.dispatch(&mut encoder, pass, bind_group);
            for &binding in pass.wants {
                let bytes = 4 * lengths.of(binding) as u64;
                if bytes > 0 {
                    let from = &slot.storage[binding as usize - 1];
                    encoder.copy_buffer_to_buffer(from, 0, &slot.readback, at, Some(bytes));
                }
                at += bytes;
            }
        }
        self.queue.submit([encoder.finish()])
    }

    fn dispatch(&mut self, encoder: &mut wgpu::CommandEncoder, pass: &Pass, bind_group: &wgpu::BindGroup) {
        let mut compute = encoder.begin_compute_pass(&Default::default());
        compute.set_bind_group(0, bind_group, &[]);
        for kernel in &pass.kernels {
            let lanes = if kernel.team { self.shape.lanes } else { 1 };
            let workgroups = ((kernel.threads)(&pass.params) * lanes).div_ceil(WORKGROUP);
            if workgroups == 0 {
                continue;
            }
            let limit = self.device.limits().max_compute_workgroups_per_dimension;
            let high = workgroups.div_ceil(limit);
            compute.set_pipeline(self.pipelines.get(kernel, pass.params.input_dtype));
            compute.dispatch_workgroups(workgroups.div_ceil(high), high, 1);
            *self.dispatches.entry(kernel.name).or_default() += 1;
        }
    }
}

/// Words that a tile's passes want back.
fn wanted(tile: &Tile) -> usize {
    let of_pass = |pass: &Pass| {
        let lengths = pass.lengths();
        pass.wants.iter().map(|&b| lengths.of(b)).sum::<usize>()
    };
    tile.passes.iter().map(of_pass).sum()
}

fn note(failure: &Mutex<Option<String>>, message: String) {
    failure.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(message);
}

/// One thread a chunk where threads are lanes of a CPU; on hardware 16, so that a group of 128 16-bit weights is one
/// coalesced 16-byte load a thread.
pub fn best_shape(facts: &AdapterFacts) -> Shape {
    if facts.software {
        return Shape { lanes: 1, subgroups: false };
    }
    Shape { lanes: 16, subgroups: facts.subgroups[0] >= 16 }
}

impl Backend for GpuBackend {
    fn describe(&self) -> String {
        let AdapterFacts { name, api, kind, driver, .. } = &self.facts;
        format!("{name} ({kind}, {api}, {driver})")
    }

    fn tile_bytes(&self) -> usize {
        if self.facts.software { TILE_BYTES_SOFTWARE } else { TILE_BYTES_HARDWARE }
    }

    fn depth(&self) -> usize {
        DEPTH
    }

    fn bytes_per_tile(&self, lengths: &Lengths, passes: usize) -> u64 {
        // staging and readback beside the storage buffers
        lengths.bytes() * (1 + passes as u64)
    }

    fn max_buffer_bytes(&self) -> u64 {
        self.facts.max_binding_bytes.min(self.facts.max_buffer_bytes / 2)
    }

    fn verify(&mut self, steps: &Steps) -> Result<()> {
        self.prove(steps)
    }

    fn submit(&mut self, tile: Tile, fill: Fill) -> Result<()> {
        self.lose_if_told();
        self.failed()?;
        self.proven(&tile)?;
        let lengths = tile.lengths();
        for pass in &tile.passes {
            for kernel in &pass.kernels {
                self.pipelines.prepare(&self.device, kernel, pass.params.input_dtype);
            }
        }
        let slot = self.slot(&lengths, tile.passes.len());
        {
            let bytes = 4 * lengths.of(Binding::Input) as u64;
            let mapped = slot.mapped().get_mapped_range_mut(0..bytes.max(16));
            let mut mapped = mapped.map_err(|e| self.lost(&e.to_string()))?;
            let mut view = mapped.slice(..tile.input_bytes);
            fill(trusted::bytes(&mut view))?;
        }
        let upload = self.profile.as_ref().map(|p| p.span(Stage::Upload).of_tile(tile.tag, tile.input_bytes));
        slot.mapped().unmap();
        let index = self.encode(&slot, &tile);
        drop(upload);
        if let Some(profile) = &self.profile {
            let names = tile.kernels().map(|kernel| kernel.name);
            let flight = profile.flight(&self.facts.name, tile.tag, names, tile.input_bytes);
            self.queue.on_submitted_work_done(move || drop(flight));
        }
        let wanted = wanted(&tile);
        if wanted > 0 {
            slot.readback.map_async(wgpu::MapMode::Read, 0..4 * wanted as u64, |_| {});
        }
        slot.mapped().map_async(wgpu::MapMode::Write, .., |_| {});
        let done = Done::default();
        let when = done.clone();
        self.queue.on_submitted_work_done(move || {
            let _ = when.set(Instant::now());
        });
        self.busy.push_back((slot, tile, index, done));
        self.submitted += u64::from(self.verified.is_some());
        self.lose_if_told();
        Ok(())
    }

    fn collect(&mut self, take: Take) -> Result<bool> {
        let Some((slot, tile, index, _)) = self.busy.pop_front() else { return Ok(false) };
        let wait = PollType::Wait { submission_index: Some(index), timeout: None };
        self.device.poll(wait).map_err(|e| self.lost(&e.to_string()))?;
        self.failed()?;
        let wanted = wanted(&tile);
        if wanted == 0 {
            let empty = vec![Results::default(); tile.passes.len()];
            take(tile, &empty)?;
        } else {
            let readback =
                self.profile.as_ref().map(|p| p.span(Stage::Readback).of_tile(tile.tag, 4 * wanted));
            let view = slot.readback.get_mapped_range(0..4 * wanted as u64);
            let view = view.map_err(|e| self.lost(&e.to_string()))?;
            let words: &[u32] = bytemuck::cast_slice(&view);
            let mut all = Vec::with_capacity(tile.passes.len());
            let mut at = 0;
            for pass in &tile.passes {
                let lengths = pass.lengths();
                let mut results = Results::default();
                for &binding in pass.wants {
                    results.set(binding, &words[at..at + lengths.of(binding)]);
                    at += lengths.of(binding);
                }
                all.push(results);
            }
            drop(readback);
            take(tile, &all)?;
            drop(view);
            slot.readback.unmap();
        }
        self.free.push(slot);
        Ok(true)
    }

    fn finished(&mut self) -> Option<Instant> {
        let (.., done) = self.busy.front()?;
        match self.device.poll(PollType::Poll) {
            Ok(_) if self.failed().is_ok() => done.get().copied(),
            _ => Some(Instant::now()), // collect says why
        }
    }

    fn in_flight(&self) -> usize {
        self.busy.len()
    }

    fn dispatches(&self) -> Dispatches {
        self.dispatches.clone()
    }

    fn set_profile(&mut self, profile: Option<Profile>) {
        self.profile = profile;
    }

    fn loss(&self) -> Option<String> {
        // the driver's word of it comes with a poll
        let _ = self.device.poll(PollType::Poll);
        let lost = self.lost.load(Ordering::Relaxed);
        lost.then(|| self.failure.lock().unwrap_or_else(|e| e.into_inner()).clone().unwrap_or_default())
    }
}

impl GpuBackend {
    fn lost(&self, what: &str) -> Error {
        self.failed().err().unwrap_or_else(|| Error::Device(format!("{}: {what}", self.facts.name)))
    }
}

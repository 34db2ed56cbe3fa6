//! From a checkpoint to a checkpoint: open, plan, read → backend → format → write, report.

mod begun;
mod companions;
mod gguf;
mod jobs;
mod reporting;

pub use begun::{Begun, begin};

use companions::{is_config_of_a_format, output_bytes, replaced_input};
use reporting::report;

use crate::{
    backend::{Backend, Steps},
    device::{self, Device},
    error::{Error, Result},
    gpu::GpuOptions,
    plan::{self, NonFinite, Plan, Request, Work},
    profile::{Profile, Stage},
    reader::{Checkpoint, gguf::shard_name},
    recipe::Choice,
    report::Report,
    stream::{Finished, JobResult, Stream, Tiling, count_not_finite},
    tensor::TensorInfo,
    writer::{Container, Destination, Output, ProfiledOutput, free_bytes, left_bytes},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::Instant,
};

/// What to do with weights that are NaN or infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnNonFinite {
    /// Stop, and name tensor, index and count.
    #[default]
    Refuse,
    /// Leave the tensor as it is, and say so.
    Keep,
}

/// Where results go and what they are computed with: the same for every command that writes a checkpoint.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The result; by default beside the input.
    pub output: Option<PathBuf>,
    /// Replace what is there, an unfinished run's files among it.
    pub force: bool,
    /// Go on with what an unfinished run of the same version, input and options has finished.
    pub resume: bool,
    /// Hold the output against the input before it takes its place.
    pub verify: bool,
    /// What computes.
    pub device: device::Choice,
    /// Bytes of memory to stay under.
    pub max_memory: u64,
    /// Bytes of weights a tile, instead of what suits the device. Without effect on the result.
    pub tile_bytes: Option<usize>,
    /// Settings of a GPU.
    pub gpu: GpuOptions,
    /// Where the stages of a run are recorded; [`Profile::finish`] closes it.
    pub profile: Option<Profile>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            output: None,
            force: false,
            resume: false,
            verify: false,
            device: device::Choice::Auto,
            max_memory: 512 << 20,
            tile_bytes: None,
            gpu: GpuOptions::default(),
            profile: None,
        }
    }
}

/// A planned run: everything is decided, nothing is written.
pub struct Prepared {
    /// The input.
    pub checkpoint: Checkpoint,
    /// Its tensors.
    pub tensors: Vec<TensorInfo>,
    /// What will be done.
    pub plan: Plan,
    /// Where it goes.
    pub destination: Destination,
    saturate: bool,
    replace: bool,
}

/// Plans a quantization of a file or directory. Every problem is found here, and named in one error.
pub fn prepare(
    model: &Path,
    request: &Request,
    on_non_finite: OnNonFinite,
    settings: &Settings,
) -> Result<Prepared> {
    let checkpoint = Checkpoint::open(model)?;
    let request = &gguf::adapted(request, &checkpoint)?;
    let mut destination = destination(&checkpoint, settings, &request.recipe.preset);
    if request.formats.len() > 1 && settings.output.is_none() {
        destination = as_directory(destination);
    }
    prepare_checkpoint(checkpoint, request, on_non_finite, settings, destination)
}

/// Plans a quantization of an opened checkpoint.
pub fn prepare_checkpoint(
    checkpoint: Checkpoint,
    request: &Request,
    on_non_finite: OnNonFinite,
    settings: &Settings,
    destination: Destination,
) -> Result<Prepared> {
    let request = &gguf::adapted(request, &checkpoint)?;
    let tensors = infos(&checkpoint);
    let max_shard_size = match destination {
        Destination::Directory(_) => request.max_shard_size,
        Destination::File(_) | Destination::Memory(_) => None,
    };
    let request = Request {
        recipe: request.recipe.clone(),
        formats: request.formats.clone(),
        max_shard_size,
        ..*request
    };
    let plan = |non_finite: &NonFinite| match checkpoint.gguf() {
        Some(keys) => plan::gguf::plan(checkpoint.tensors(), keys, &request, non_finite),
        None => plan::plan(&tensors, checkpoint.config(), &request, non_finite),
    };
    let mut planned = plan(&NonFinite::new());
    if on_non_finite == OnNonFinite::Keep {
        let source = checkpoint.source()?;
        let mut non_finite = NonFinite::new();
        for i in gguf::touched(&checkpoint, &tensors, &request, &planned) {
            non_finite.extend(count_not_finite(&source, i, &tensors[i])?.map(|found| (i, found)));
        }
        if !non_finite.is_empty() {
            planned = plan(&non_finite);
        }
    }
    finish_preparing(checkpoint, tensors, planned, destination, settings, request.saturate)
}

/// Checks the destination, and joins its problems with the plan's.
pub(crate) fn finish_preparing(
    checkpoint: Checkpoint,
    tensors: Vec<TensorInfo>,
    planned: Result<Plan>,
    destination: Destination,
    settings: &Settings,
    saturate: bool,
) -> Result<Prepared> {
    let (plan, mut problems) = match planned {
        Ok(mut plan) => {
            let container = destination.container();
            plan::tie(&mut plan, checkpoint.tied(), container);
            plan.notes.splice(0..0, checkpoint.notes().iter().cloned());
            let mut foreign = foreign(&plan, container);
            if plan.folders.len() > 1 && !matches!(destination, Destination::Directory(_)) {
                foreign.push(format!(
                    "{}: is one file, by the ending of its name; several formats go to folders of a directory, which \
                     --output names",
                    destination.path().display()
                ));
            }
            foreign.extend(gguf::set_keys(&mut plan, &checkpoint, &destination));
            (foreign.is_empty().then_some(plan), foreign)
        }
        Err(Error::Refused(problems)) => (None, problems),
        Err(e) => return Err(e),
    };
    if matches!(destination, Destination::Memory(_)) {
        let plan = plan.ok_or(Error::Refused(problems))?;
        plan.log();
        return Ok(Prepared { checkpoint, tensors, plan, destination, saturate, replace: false });
    }
    let path = destination.path();
    let replace = settings.force || is_empty_directory(path);
    if let Some(unfit) = destination.unfit() {
        problems.push(unfit);
    } else if path.symlink_metadata().is_ok() && !replace {
        problems.push(format!(
            "{}: exists already; --force replaces it, --output names another place",
            path.display()
        ));
    }
    problems.extend(replaced_input(&checkpoint, path));
    if let Some(plan) = &plan {
        let needed = output_bytes(&checkpoint, plan, &destination)?;
        match free_bytes(path) {
            // what an unfinished run left is gone on with or removed
            Ok(free) if free.saturating_add(left_bytes(path)) < needed => problems.push(format!(
                "{}: too little disk: {} are needed, {} are free",
                path.display(),
                crate::report::bytes(needed),
                crate::report::bytes(free)
            )),
            Ok(_) => {}
            Err(e) => problems.push(e.to_string()),
        }
    }
    let mut plan = plan;
    if let Some(plan) = &mut plan {
        if matches!(destination, Destination::Directory(_)) {
            let configs = checkpoint.companions().iter().filter(|c| is_config_of_a_format(c));
            plan.notes.extend(configs.map(|c| {
                format!("{}: says how the input was quantized, and is left out or replaced", c.display())
            }));
        }
        let of_gguf = checkpoint.gguf().is_some();
        if of_gguf && destination.container() != Container::Gguf {
            plan.notes.push("tokenizer and architecture stay behind: only a GGUF file holds them, and --output NAME.gguf writes one".into());
        } else if checkpoint.is_directory() && matches!(destination, Destination::File(_)) {
            let kept = if of_gguf { "the model" } else { "tensors and recipe only" };
            let others = if of_gguf { "other files" } else { "config.json, tokenizer and all else" };
            if !of_gguf || !checkpoint.companions().is_empty() || checkpoint.config().is_some() {
                plan.notes.push(format!("a single file holds {kept}: {others} stay behind"));
            }
        }
    }
    match plan {
        Some(plan) if problems.is_empty() => {
            plan.log();
            Ok(Prepared { checkpoint, tensors, plan, destination, saturate, replace })
        }
        _ => Err(Error::Refused(problems)),
    }
}

/// Tensors that the output's format has no dtype for.
fn foreign(plan: &Plan, container: Container) -> Vec<String> {
    let tensors = plan.files.iter().flat_map(|file| &file.tensors);
    let foreign = tensors.filter(|t| container == Container::Safetensors && !t.dtype.in_safetensors());
    foreign
        .map(|t| {
            format!("{}: safetensors has no {}; --output NAME.pt can hold it", t.name, t.dtype.torch_name())
        })
        .collect()
}

/// A folder that was made for the result, as `mkdir` leaves it.
fn is_empty_directory(path: &Path) -> bool {
    path.is_dir() && path.read_dir().is_ok_and(|mut entries| entries.next().is_none())
}

/// The tensors of a checkpoint, in reading order.
pub fn infos(checkpoint: &Checkpoint) -> Vec<TensorInfo> {
    checkpoint.tensors().iter().map(|t| t.info.clone()).collect()
}

fn touches(choice: &Choice) -> bool {
    matches!(choice, Choice::Quantize(_) | Choice::Split { .. } | Choice::Cast)
}

/// `--output`, or the input's name with a suffix beside the input. A name that ends as a file's does is one file.
pub(crate) fn destination(checkpoint: &Checkpoint, settings: &Settings, suffix: &str) -> Destination {
    let path = match &settings.output {
        Some(path) => path.clone(),
        None => {
            // "." and ".." have no name of their own
            let input = checkpoint.path();
            let named = if input.file_name().is_some() {
                input.to_owned()
            } else {
                input.canonicalize().unwrap_or_else(|_| input.to_owned())
            };
            let name =
                |name: Option<&std::ffi::OsStr>| name.unwrap_or_default().to_string_lossy().into_owned();
            if checkpoint.gguf().is_some() {
                let stem = if checkpoint.is_directory() { named.file_name() } else { named.file_stem() };
                // a split model becomes one file
                let stem = shard_name(&named).map_or_else(|| name(stem), |(name, ..)| name.to_owned());
                named.with_file_name(format!("{stem}-{suffix}.gguf"))
            } else if checkpoint.is_directory() {
                named.with_file_name(format!("{}-{suffix}", name(named.file_name())))
            } else {
                let result = format!("{}-{suffix}.{}", name(named.file_stem()), name(named.extension()));
                // of the input's format, unless its name says none
                match Destination::of(named.with_file_name(&result)) {
                    Destination::File(path) => path,
                    other => other.path().with_extension("safetensors"),
                }
            }
        }
    };
    Destination::of(path)
}

/// A default name for several formats, which go to folders.
pub(crate) fn as_directory(destination: Destination) -> Destination {
    match destination {
        Destination::File(path) => Destination::Directory(path.with_extension("")),
        other => other,
    }
}

/// Bytes of input that a plan reads, for a progress bar.
pub fn work_bytes(prepared: &Prepared) -> u64 {
    prepared.plan.jobs.iter().map(|job| job_bytes(prepared, job)).sum()
}

/// Bytes of input that a job reads.
fn job_bytes(prepared: &Prepared, job: &plan::Job) -> u64 {
    match job.work {
        Work::Dequantize(_) | Work::DequantizeBlocks(..) => prepared.tensors[job.source].bytes(),
        _ => job.view.elements() * prepared.tensors[job.source].dtype.size() as u64,
    }
}

/// Opens the device of these settings, proven to make the same bytes as the CPU in every kernel that the plan needs.
pub fn open(prepared: &Prepared, settings: &Settings) -> Result<Device> {
    let span = |stage| settings.profile.as_ref().map(|profile| profile.span(stage));
    let opening = span(Stage::Device);
    let mut device = device::open(&settings.device, &settings.gpu)?;
    drop(opening);
    let _verifying = span(Stage::Verify);
    device.verify(|backend| steps(prepared, settings, backend))?;
    tracing::info!(device = device.why, "opened");
    Ok(device)
}

/// The kernels that the plan needs on this backend.
pub fn steps(prepared: &Prepared, settings: &Settings, backend: &dyn Backend) -> Steps {
    let Prepared { plan, tensors, saturate, .. } = prepared;
    let Settings { max_memory, tile_bytes, .. } = *settings;
    Tiling { plan, tensors, saturate: *saturate, max_memory, tile_bytes }.steps(backend)
}

/// Runs a plan: streams every tensor, then puts the result in its place in one step. [`begin`] and [`Begun::run`] in one.
pub fn execute(
    prepared: &Prepared,
    device: &mut Device,
    settings: &Settings,
    interrupted: &AtomicBool,
    progress: &dyn Fn(u64),
) -> Result<Report> {
    begin(prepared, settings)?.run(device, settings, interrupted, progress)
}

/// Runs a plan into an output that is there already. Kernels that [`open`] did not prove are proven first.
pub fn execute_into(
    prepared: &Prepared,
    output: &dyn Output,
    device: &mut Device,
    settings: &Settings,
    interrupted: &AtomicBool,
    progress: &dyn Fn(u64),
) -> Result<Report> {
    let (earlier, finished) = (BTreeMap::new(), |_: usize, _: &JobResult| Ok(()));
    stream(prepared, output, (&earlier, &finished), device, settings, interrupted, progress)
}

/// Streams every tensor; of the jobs: what came of those that were done before, and who is told of the others.
fn stream(
    prepared: &Prepared,
    output: &dyn Output,
    (earlier, finished): (&BTreeMap<usize, JobResult>, Finished),
    device: &mut Device,
    settings: &Settings,
    interrupted: &AtomicBool,
    progress: &dyn Fn(u64),
) -> Result<Report> {
    device.verify(|backend| steps(prepared, settings, backend))?;
    let start = Instant::now();
    let profile = settings.profile.as_ref();
    let source = prepared.checkpoint.source()?.profiled(profile.cloned());
    let profiled = profile.map(|profile| ProfiledOutput::new(output, &prepared.plan.files, profile));
    let stream = Stream {
        plan: &prepared.plan,
        tensors: &prepared.tensors,
        source: &source,
        writer: profiled.as_ref().map_or(output, |profiled| profiled),
        saturate: prepared.saturate,
        max_memory: settings.max_memory,
        tile_bytes: settings.tile_bytes,
        interrupted,
        progress,
        earlier,
        finished,
        profile,
    };
    device.backend.set_profile(settings.profile.clone());
    let results = stream.run(device.backend.as_mut());
    device.backend.set_profile(None);
    let results = results?;
    if interrupted.load(std::sync::atomic::Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    Ok(report(prepared, &results, device, start))
}

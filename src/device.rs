//! Which machine computes: `auto`, `cpu`, `gpu`, or an adapter by name. A GPU is used only if it proves to make the same
//! bytes as the CPU.

use crate::{
    backend::{Backend, CpuBackend},
    error::{Error, Result},
    gpu::{self, Adapter, GpuBackend, GpuOptions},
};

/// What the user asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Choice {
    /// A hardware GPU, discrete first, else the CPU; never a software rasterizer.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The best adapter, software included.
    Gpu,
    /// The first adapter in whose name this is found, in any case.
    Named(String),
}

impl std::str::FromStr for Choice {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        Ok(match text.to_lowercase().as_str() {
            "auto" => Choice::Auto,
            "cpu" => Choice::Cpu,
            "gpu" => Choice::Gpu,
            _ => Choice::Named(text.to_owned()),
        })
    }
}

/// A machine, and why it was taken.
pub struct Device {
    /// Runs the kernels.
    pub backend: Box<dyn Backend>,
    /// One line for the user.
    pub why: String,
}

/// Opens the device that was asked for.
pub fn open(choice: &Choice, options: &GpuOptions) -> Result<Device> {
    match choice {
        Choice::Cpu => Ok(cpu("--device cpu")),
        Choice::Auto => {
            let hardware = gpu::adapters().into_iter().filter(|a| !a.facts.software);
            let mut refused = Vec::new();
            for adapter in hardware {
                match checked(&adapter, options) {
                    Ok(backend) => {
                        return Ok(device(
                            backend,
                            "the best hardware GPU, its kernels checked against the CPU's",
                        ));
                    }
                    Err(e) => refused.push(e.to_string()),
                }
            }
            if refused.is_empty() {
                return Ok(cpu("no hardware GPU found"));
            }
            Ok(cpu(&format!("no GPU can be used: {}", refused.join("; "))))
        }
        Choice::Gpu => {
            let adapters = gpu::adapters();
            let first = adapters.first().ok_or_else(|| {
                Error::Device("--device gpu: no GPU and no driver found (Vulkan, Metal or DX12); --device cpu makes the same bytes".into())
            })?;
            Ok(device(
                checked(first, options)?,
                "--device gpu: the best adapter, its kernels checked against the CPU's",
            ))
        }
        Choice::Named(name) => {
            let adapters = gpu::adapters();
            let wanted = name.to_lowercase();
            let found = adapters
                .iter()
                .find(|a| format!("{} {}", a.facts.name, a.facts.driver).to_lowercase().contains(&wanted));
            let adapter = found.ok_or_else(|| {
                let names: Vec<_> = adapters.iter().map(|a| a.facts.name.as_str()).collect();
                let there = if names.is_empty() {
                    "there are none".into()
                } else {
                    format!("there are: {}", names.join(", "))
                };
                Error::Usage(format!(
                    "--device {name}: no such adapter; {there}; accepted: auto, cpu, gpu, or a part of a name"
                ))
            })?;
            Ok(device(checked(adapter, options)?, "named by --device, its kernels checked against the CPU's"))
        }
    }
}

fn cpu(why: &str) -> Device {
    let backend = CpuBackend::new();
    Device { why: format!("{} ({why})", backend.describe()), backend: Box::new(backend) }
}

fn device(backend: GpuBackend, why: &str) -> Device {
    Device { why: format!("{}: {why}", backend.describe()), backend: Box::new(backend) }
}

/// Opens an adapter, if it has what the kernels need and computes what the CPU computes.
fn checked(adapter: &Adapter, options: &GpuOptions) -> Result<GpuBackend> {
    let name = &adapter.facts.name;
    if let Some(lack) = gpu::lacks(adapter) {
        return Err(Error::Device(format!("{name}: {lack}")));
    }
    let mut backend = GpuBackend::open(adapter, options.clone())?;
    if options.skip_check {
        return Ok(backend);
    }
    let outcome = backend.check(true)?;
    match outcome.differences.first() {
        None => Ok(backend),
        Some(difference) => Err(Error::Device(format!(
            "{name} computes something else than the CPU in {} of {} checks ({difference}); \
             --device cpu makes the right bytes, monoquant devices --check lists all differences",
            outcome.differences.len(),
            outcome.cases
        ))),
    }
}

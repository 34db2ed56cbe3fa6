//! Which machine computes: `auto`, `cpu`, `gpu`, or an adapter by name. A GPU is used only if it proves to make the same
//! bytes as the CPU.

use crate::{
    backend::{Backend, CpuBackend, Steps},
    error::{Error, Result},
    gpu::{self, Adapter, GpuBackend, GpuOptions},
};
use std::collections::VecDeque;

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
    /// What `auto` turns to where this one computes something else than the CPU.
    others: Option<Others>,
}

/// Hardware GPUs that were not tried yet, and what was wrong with those that were.
struct Others {
    adapters: VecDeque<Adapter>,
    refused: Vec<String>,
    options: GpuOptions,
}

/// Opens the device that was asked for. Nothing is compiled or compared yet: see [`Device::verify`].
pub fn open(choice: &Choice, options: &GpuOptions) -> Result<Device> {
    match choice {
        Choice::Cpu => Ok(fixed(cpu("--device cpu"))),
        Choice::Auto => {
            let adapters = gpu::adapters().into_iter().filter(|a| !a.facts.software).collect();
            let mut others = Others { adapters, refused: Vec::new(), options: options.clone() };
            let (backend, why) = others.next();
            Ok(Device { backend, why, others: Some(others) })
        }
        Choice::Gpu => {
            let adapters = gpu::adapters();
            let first = adapters.first().ok_or_else(|| {
                Error::Device("--device gpu: no GPU and no driver found (Vulkan, Metal or DX12); --device cpu makes the same bytes".into())
            })?;
            Ok(fixed(described(opened(first, options)?, "--device gpu: the best adapter")))
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
            Ok(fixed(described(opened(adapter, options)?, "named by --device")))
        }
    }
}

impl Device {
    /// Proves that the device makes the same bytes as the CPU in these steps, which may depend on it. What `auto` took is
    /// replaced if it does not; what was asked for by name is refused.
    pub fn verify(&mut self, steps: impl Fn(&dyn Backend) -> Steps) -> Result<()> {
        loop {
            match (self.backend.verify(&steps(self.backend.as_ref())), &mut self.others) {
                (Ok(()), _) => return Ok(()),
                (Err(e), None) => return Err(e),
                (Err(e), Some(others)) => {
                    others.refused.push(e.to_string());
                    (self.backend, self.why) = others.next();
                }
            }
        }
    }
}

impl Others {
    /// The next GPU that can be opened, or the CPU.
    fn next(&mut self) -> (Box<dyn Backend>, String) {
        while let Some(adapter) = self.adapters.pop_front() {
            match opened(&adapter, &self.options) {
                Ok(backend) => return described(backend, "the best hardware GPU"),
                Err(e) => self.refused.push(e.to_string()),
            }
        }
        let why = match self.refused.as_slice() {
            [] => "no hardware GPU found".into(),
            refused => format!("no GPU can be used: {}", refused.join("; ")),
        };
        cpu(&why)
    }
}

fn fixed((backend, why): (Box<dyn Backend>, String)) -> Device {
    Device { backend, why, others: None }
}

fn cpu(why: &str) -> (Box<dyn Backend>, String) {
    let backend = CpuBackend::new();
    let why = format!("{} ({why})", backend.describe());
    (Box::new(backend), why)
}

fn described(backend: GpuBackend, why: &str) -> (Box<dyn Backend>, String) {
    let why = format!("{}: {why}, its kernels compared with the CPU's", backend.describe());
    (Box::new(backend), why)
}

/// Opens an adapter, if it has what the kernels need.
fn opened(adapter: &Adapter, options: &GpuOptions) -> Result<GpuBackend> {
    match gpu::lacks(adapter) {
        Some(lack) => Err(Error::Device(format!("{}: {lack}", adapter.facts.name))),
        None => GpuBackend::open(adapter, options.clone()),
    }
}

//! Which machines compute: `auto`, `cpu`, `gpu`, an adapter by number or name, or several. A GPU is used only if it proves
//! to make the same bytes as the CPU.

use crate::{
    backend::{Backend, CpuBackend, Steps},
    error::{Error, Result},
    fallback::Fallback,
    gpu::{self, Adapter, GpuBackend, GpuOptions},
    several::Several,
    threads,
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
    /// The first adapter in whose name this is found, in any case; `gpu:N` by its number; or several with commas.
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
    threads::start()?;
    match choice {
        Choice::Cpu => Ok(fixed(cpu("--device cpu"))),
        Choice::Auto => {
            let adapters = gpu::hardware().into();
            let mut others = Others { adapters, refused: Vec::new(), options: options.clone() };
            let (backend, why) = others.next();
            Ok(Device { backend, why, others: Some(others) })
        }
        Choice::Gpu => {
            let adapters = gpu::adapters();
            let first = adapters.first().ok_or_else(|| {
                Error::Device("--device gpu: no GPU and no driver found (Vulkan, Metal or DX12); --device cpu makes the same bytes".into())
            })?;
            Ok(fixed(described(Box::new(opened(first, options)?), "--device gpu: the best adapter")))
        }
        Choice::Named(text) => {
            let adapters = gpu::adapters();
            let machines = machines(text, &adapters)?;
            let backend = |machine: &Machine| match machine {
                Machine::Cpu => Ok(Box::new(CpuBackend::new()) as Box<dyn Backend>),
                Machine::Gpu(i) => Ok(Box::new(opened(&adapters[*i], options)?) as Box<dyn Backend>),
            };
            let mut backends = machines.iter().map(backend).collect::<Result<Vec<_>>>()?;
            let backend =
                if backends.len() == 1 { backends.remove(0) } else { Box::new(Several::new(backends)) };
            Ok(fixed(described(backend, "named by --device")))
        }
    }
}

/// One item of `--device`.
#[derive(Debug, PartialEq)]
enum Machine {
    Cpu,
    /// Index of an adapter.
    Gpu(usize),
}

/// The machines that `--device TEXT` names.
fn machines(text: &str, adapters: &[Adapter]) -> Result<Vec<Machine>> {
    // the name of an adapter may have commas itself
    if let Some(i) = named(text, adapters) {
        return Ok(vec![Machine::Gpu(i)]);
    }
    let list = text.contains(',');
    let refuse = |what: String| Err(Error::Usage(format!("--device {text}: {what}")));
    let mut machines = Vec::new();
    for item in text.split(',').map(str::trim) {
        let lower = item.to_lowercase();
        let number = lower.strip_prefix("gpu:").and_then(|n| n.parse::<usize>().ok());
        let machine = match (lower.as_str(), number) {
            ("cpu", _) => Some(Machine::Cpu),
            ("auto", _) if list => {
                return refuse(
                    "auto chooses by itself; accepted in a list: cpu, gpu:N, or a part of a name".into(),
                );
            }
            ("gpu", _) => (!adapters.is_empty()).then_some(Machine::Gpu(0)),
            (_, Some(n)) => (n < adapters.len()).then_some(Machine::Gpu(n)),
            ("", _) => None,
            _ => named(item, adapters).map(Machine::Gpu),
        };
        let Some(machine) = machine else {
            let there = match adapters {
                [] => "there are none".into(),
                adapters => {
                    format!("there are: {}", adapters.iter().map(numbered).collect::<Vec<_>>().join(", "))
                }
            };
            let missing = match number {
                _ if item.is_empty() => "a name is missing between commas".into(),
                Some(n) => format!("no GPU has the number {n}"),
                None if list => format!("no adapter {item:?}"),
                None => "no such adapter".into(),
            };
            return refuse(format!(
                "{missing}; {there}; accepted: auto, cpu, gpu, gpu:N, a part of a name, or several with commas"
            ));
        };
        if machines.contains(&machine) {
            let name = match machine {
                Machine::Cpu => "the CPU".into(),
                Machine::Gpu(i) => numbered(&adapters[i]),
            };
            return refuse(format!("names {name} twice, which shares nothing; name every device once"));
        }
        machines.push(machine);
    }
    Ok(machines)
}

fn named(text: &str, adapters: &[Adapter]) -> Option<usize> {
    let wanted = text.to_lowercase();
    let name = |a: &Adapter| format!("{} {}", a.facts.name, a.facts.driver).to_lowercase();
    // a comma alone is in the names of some
    let says_something = wanted.contains(char::is_alphanumeric);
    adapters.iter().position(|a| says_something && name(a).contains(&wanted))
}

fn numbered(adapter: &Adapter) -> String {
    format!("gpu:{} ({})", adapter.facts.number, adapter.facts.name)
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
                Ok(backend) => return described(Box::new(backend), "the best hardware GPU"),
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

/// A GPU, or several machines, with the CPU to go on with where they fail.
fn described(backend: Box<dyn Backend>, why: &str) -> (Box<dyn Backend>, String) {
    let why = format!("{}: {why}, its kernels compared with the CPU's", backend.describe());
    (Box::new(Fallback::new(backend)), why)
}

/// Opens an adapter, if it has what the kernels need.
fn opened(adapter: &Adapter, options: &GpuOptions) -> Result<GpuBackend> {
    match gpu::lacks(adapter) {
        Some(lack) => Err(Error::Device(format!("{}: {lack}", adapter.facts.name))),
        None => GpuBackend::open(adapter, options.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str, adapters: &[Adapter]) -> String {
        machines(text, adapters).unwrap_err().to_string()
    }

    #[test]
    fn machines_are_named_by_number_or_name() {
        let adapters = gpu::adapters();
        let name = adapters[0].facts.name.clone();
        // with commas in it, where it is llvmpipe's
        for text in ["gpu:0", "GPU:0", "gpu", &name, &name[..4]] {
            assert_eq!(machines(text, &adapters).unwrap(), [Machine::Gpu(0)], "{text}");
            let both = machines(&format!("cpu, {}", text.split(',').next().unwrap()), &adapters).unwrap();
            assert_eq!(both, [Machine::Cpu, Machine::Gpu(0)], "{text}");
        }
    }

    #[test]
    fn machines_that_are_not_there_are_refused_with_what_is() {
        let adapters = gpu::adapters();
        let there = numbered(&adapters[0]);
        for (text, what) in [
            ("gpu:77", "no GPU has the number 77"),
            ("gpu:0,gpu:77", "no GPU has the number 77"),
            ("gpu:-1", "no such adapter"),
            ("gpu:0,nothing", "no adapter \"nothing\""),
            ("gpu:0,", "missing between commas"),
            ("gpu:0,,cpu", "missing between commas"),
        ] {
            let error = refused(text, &adapters);
            assert!(error.starts_with(&format!("--device {text}: ")), "{error}");
            assert!(error.contains(what) && error.contains(&there), "{text}: {error}");
        }
        assert!(refused("gpu:0", &[]).contains("there are none"));
        assert!(refused("cpu,auto", &adapters).contains("auto chooses by itself"));
        for text in ["gpu:0,gpu:0", "gpu,gpu:0", "cpu,CPU"] {
            assert!(refused(text, &adapters).contains("twice"), "{text}");
        }
    }

    #[test]
    fn auto_turns_to_the_cpu_where_a_gpu_computes_something_else() {
        let corrupt = Some(("magnitude == middle && odd", "magnitude == middle"));
        let options = GpuOptions { corrupt, ..Default::default() };
        let mut others = Others { adapters: gpu::adapters().into(), refused: Vec::new(), options };
        let (backend, why) = others.next();
        let mut device = Device { backend, why, others: Some(others) };
        assert!(!device.why.starts_with("CPU"), "{}", device.why);
        device.verify(|_| [("quantize_pack", 2)].into()).unwrap();
        assert!(device.why.starts_with("CPU") && device.backend.describe().starts_with("CPU"));
        assert!(
            device.why.contains("no GPU can be used") && device.why.contains("quantize_pack"),
            "{}",
            device.why
        );
    }
}

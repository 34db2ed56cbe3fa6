//! The Python door: tensors by their addresses, options as on the command line, errors as exceptions. No arithmetic.

mod observers;
#[allow(unsafe_code)] // one of two files that may; it says why
mod tensors;

use crate::{
    cli, compare, convert as conversions, copies, device,
    error::{Error, Result},
    gpu::{self, GpuOptions},
    inspect,
    plan::Plan as Planned,
    profile::Profile,
    quantize::{self, Prepared, Settings},
    recipe::LayerType,
    report::Report,
    tensor::{Dtype, Float},
    unpack,
    writer::{Destination, MemoryOutput},
};
use pyo3::prelude::*;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};
use tensors::{Place, Source, memory};

#[pymodule(name = "_native")]
mod native {
    #[pymodule_export]
    use super::{
        Plan, compare_models, convert, dequantize, devices, inspect_model, load, main, observers::Observer,
        observers::calibration_json, observers::read_calibration, quantize_model, save, version, write,
    };

    /// A log on stderr where RUST_LOG asks for one. Threads of the engine write it, which Python's logging would make wait
    /// for the interpreter.
    #[pymodule_init]
    fn init(_module: &pyo3::Bound<'_, pyo3::types::PyModule>) -> pyo3::PyResult<()> {
        super::cli::log::start(0);
        Ok(())
    }
}

/// The exception of `mono_quant.exceptions` that says the same.
fn raised(error: Error) -> PyErr {
    let cause = match &error {
        Error::Unfinished { source, .. } => source.as_ref(),
        other => other,
    };
    let class = match cause {
        Error::Usage(_) => "ConfigurationError",
        Error::Format { .. } | Error::Io { .. } | Error::Changed { .. } => "InputError",
        Error::Refused(_) | Error::Device(_) | Error::Differs(_) | Error::Unfinished { .. } => {
            "QuantizationError"
        }
        Error::Interrupted => return pyo3::exceptions::PyKeyboardInterrupt::new_err(error.to_string()),
    };
    Python::attach(|py| {
        let made = py
            .import("mono_quant.exceptions")
            .and_then(|m| m.getattr("of_engine")?.call1((class, error.to_string())));
        made.map_or_else(|e| e, PyErr::from_value)
    })
}

fn json(value: &impl serde::Serialize) -> String {
    // plain numbers, strings and maps: this cannot fail
    serde_json::to_string(value).unwrap_or_default()
}

/// What will be done, with the tensors that it makes.
#[pyclass(frozen, module = "mono_quant._native")]
struct Plan(Prepared);

#[pymethods]
impl Plan {
    /// Name, torch dtype and shape of every output tensor, in order.
    #[getter]
    fn outputs(&self) -> Vec<(String, &'static str, Vec<usize>)> {
        let tensors = self.planned().files.iter().flat_map(|f| &f.tensors);
        tensors.map(|t| (t.name.clone(), t.dtype.torch_name(), t.shape.clone())).collect()
    }

    /// Bytes of input that a run goes through.
    #[getter]
    fn work(&self) -> u64 {
        quantize::work_bytes(&self.0)
    }

    /// One line a tensor or layer, as JSON.
    #[getter]
    fn rows(&self) -> String {
        json(&self.planned().rows)
    }

    #[getter]
    fn notes(&self) -> Vec<String> {
        self.planned().notes.clone()
    }

    /// What goes into the header of a file.
    #[getter]
    fn metadata(&self) -> BTreeMap<String, String> {
        self.planned().files.first().map(|f| f.metadata.clone()).unwrap_or_default()
    }

    /// Other names of weights, and the names that they mean.
    #[getter]
    fn tied(&self) -> BTreeMap<String, String> {
        self.0.checkpoint.tied().clone()
    }

    /// The metadata of the input.
    #[getter]
    fn input_metadata(&self) -> BTreeMap<String, String> {
        self.0.checkpoint.metadata().clone()
    }

    /// The new config.json, as JSON.
    #[getter]
    fn config(&self) -> Option<String> {
        self.planned().folders.first().and_then(|folder| folder.config.as_ref()).map(json)
    }

    /// Computes into memory at these addresses, one an output; returns the report as JSON.
    #[pyo3(signature = (places, device, progress=None))]
    fn run(
        &self,
        py: Python<'_>,
        places: Vec<Place>,
        device: &str,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<String> {
        let stop = AtomicBool::new(false);
        let failed = Mutex::new(None);
        let outcome = py.detach(|| {
            let mut memory = memory(self.planned(), places)?;
            let output = MemoryOutput::new(memory.iter_mut().map(|place| place.bytes()));
            let settings = settings(device);
            let mut device = quantize::open(&self.0, &settings)?;
            let advance = |bytes: u64| tell(progress.as_ref(), &[bytes], &stop, &failed);
            quantize::execute_into(&self.0, &output, &mut device, &settings, &stop, &advance)
        });
        told(failed, outcome)
    }
}

/// An exception that stops a run: of the progress callback, or Ctrl-C.
type Failed = Mutex<Option<PyErr>>;

/// Tells Python of progress, and asks it whether to go on.
fn tell(call: Option<&Py<PyAny>>, numbers: &[u64], stop: &AtomicBool, failed: &Failed) {
    let told = Python::attach(|py| {
        py.check_signals()?;
        let arguments = pyo3::types::PyTuple::new(py, numbers)?;
        call.map_or(Ok(()), |call| call.call1(py, arguments).map(drop))
    });
    if let Err(e) = told {
        stop.store(true, Ordering::Relaxed);
        *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
    }
}

/// The report, or what stopped the run.
fn told(failed: Failed, outcome: Result<Report>) -> PyResult<String> {
    match (failed.into_inner().unwrap_or_else(PoisonError::into_inner), outcome) {
        (Some(e), _) => Err(e),
        (None, outcome) => outcome.map(|report| json(&report)).map_err(raised),
    }
}

impl Plan {
    fn planned(&self) -> &Planned {
        &self.0.plan
    }
}

fn settings(device: &str) -> Settings {
    let Ok(device) = device.parse();
    let gpu = GpuOptions { cache: gpu::cache_directory(), ..GpuOptions::default() };
    Settings { device, gpu, profile: Profile::logged(Instant::now()), ..Settings::default() }
}

fn in_memory() -> Destination {
    Destination::Memory("memory".into())
}

/// Plans a quantization by the options of the command line. `kinds` are the layer types of a module's weights by name.
#[pyfunction]
#[pyo3(signature = (source, options, kinds=None))]
fn quantize_model(
    py: Python<'_>,
    source: Source,
    options: Vec<String>,
    kinds: Option<BTreeMap<String, String>>,
) -> PyResult<Plan> {
    let plan = || -> Result<Plan> {
        let (mut request, on_non_finite) = cli::request(&options)?;
        let declared = kinds.map(|kinds| kinds.into_iter().map(|(k, v)| Ok((k, v.parse()?))).collect());
        request.recipe.declared = declared.transpose().map(|d: Option<BTreeMap<String, LayerType>>| d)?;
        let checkpoint = source.open()?;
        let settings = Settings::default();
        quantize::prepare_checkpoint(checkpoint, &request, on_non_finite, &settings, in_memory()).map(Plan)
    };
    py.detach(plan).map_err(raised)
}

/// Runs a command line that writes a checkpoint, streamed; returns the report as JSON.
#[pyfunction]
fn write(py: Python<'_>, arguments: Vec<std::ffi::OsString>, progress: Py<PyAny>) -> PyResult<String> {
    let stop = AtomicBool::new(false);
    let failed = Mutex::new(None);
    let outcome = py.detach(|| {
        let advance = |bytes, total| tell(Some(&progress), &[bytes, total], &stop, &failed);
        cli::run_watched(arguments, &cli::Watch { stop: &stop, advance: &advance })
    });
    told(failed, outcome)
}

/// Plans to take quantized layers into another layout.
#[pyfunction]
fn convert(py: Python<'_>, source: Source, formats: Vec<String>) -> PyResult<Plan> {
    let plan = || -> Result<Plan> {
        let formats = cli::formats(&formats)?;
        let settings = Settings::default();
        conversions::prepare_checkpoint(source.open()?, &formats, u64::MAX, &settings, in_memory()).map(Plan)
    };
    py.detach(plan).map_err(raised)
}

/// Plans the way back to floats; `dtype` is torch's name.
#[pyfunction]
#[pyo3(signature = (source, dtype=None))]
fn dequantize(py: Python<'_>, source: Source, dtype: Option<&str>) -> PyResult<Plan> {
    let plan = || -> Result<Plan> {
        let float = |name: &str| {
            let float: Option<Float> = Dtype::from_torch(name).and_then(Dtype::float);
            let wrong = || Error::Usage(format!("dtype {name}: accepted are float32, float16 and bfloat16"));
            float.ok_or_else(wrong)
        };
        let dtype = dtype.map(float).transpose()?;
        let settings = Settings::default();
        unpack::prepare_checkpoint(source.open()?, dtype, false, u64::MAX, &settings, in_memory()).map(Plan)
    };
    py.detach(plan).map_err(raised)
}

/// Plans to read every tensor as it is.
#[pyfunction]
fn load(py: Python<'_>, source: Source) -> PyResult<Plan> {
    let plan = || -> Result<Plan> {
        let checkpoint = source.open()?;
        let metadata = checkpoint.metadata().clone();
        copies::prepare(checkpoint, &metadata, &Settings::default(), in_memory()).map(Plan)
    };
    py.detach(plan).map_err(raised)
}

/// Writes tensors to a file of the format that its name says.
#[pyfunction]
fn save(
    py: Python<'_>,
    source: Source,
    path: PathBuf,
    metadata: BTreeMap<String, String>,
    force: bool,
) -> PyResult<()> {
    let write = || -> Result<()> {
        let destination = Destination::of(path.clone());
        if !matches!(destination, Destination::File(_)) {
            return Err(Error::Usage(format!(
                "{}: the name must say the format: .safetensors, .pt, .pth, .bin or .ckpt",
                path.display()
            )));
        }
        let settings = Settings { force, device: device::Choice::Cpu, ..Settings::default() };
        let prepared = copies::prepare(source.open()?, &metadata, &settings, destination)?;
        let mut cpu = quantize::open(&prepared, &settings)?;
        quantize::execute(&prepared, &mut cpu, &settings, &AtomicBool::new(false), &|_| {}).map(drop)
    };
    py.detach(write).map_err(raised)
}

/// SQNR, largest error and size, layer by layer, as JSON; the first model is the signal.
#[pyfunction]
fn compare_models(py: Python<'_>, a: Source, b: Source) -> PyResult<String> {
    let compare = || compare::compare_checkpoints(&a.open()?, &b.open()?, &AtomicBool::new(false));
    py.detach(compare).map(|found| json(&found)).map_err(raised)
}

/// Layers, schemes, sizes, as JSON.
#[pyfunction]
fn inspect_model(py: Python<'_>, source: Source) -> PyResult<String> {
    py.detach(|| inspect::inspect_checkpoint(&source.open()?)).map(|found| json(&found)).map_err(raised)
}

/// What a device choice opens, in words.
#[pyfunction]
fn devices(py: Python<'_>, device: &str) -> PyResult<String> {
    let settings = settings(device);
    py.detach(|| device::open(&settings.device, &settings.gpu).map(|d| d.why)).map_err(raised)
}

/// The command line; returns the exit code.
#[pyfunction]
fn main(py: Python<'_>, arguments: Vec<std::ffi::OsString>) -> u8 {
    py.detach(|| cli::run(arguments))
}

/// The version of the engine.
#[pyfunction]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

//! Observers of activations.

use super::{json, raised, tensors::Values};
use crate::{
    calibration::{ActivationObserver, Calibration, ObserverKind},
    error::{Error, Result},
};
use pyo3::prelude::*;
use std::{collections::BTreeMap, path::PathBuf, sync::Mutex, sync::PoisonError};

/// Finds the range of what it is shown.
#[pyclass(frozen, module = "mono_quant._native")]
pub struct Observer(Mutex<ActivationObserver>);

#[pymethods]
impl Observer {
    /// `kind`: minmax, moving_average, histogram or percentile; `value`: its averaging constant, bins or percentile.
    #[new]
    #[pyo3(signature = (kind, value=None, axis=None))]
    fn new(kind: &str, value: Option<f64>, axis: Option<usize>) -> PyResult<Self> {
        let kind = match (kind, value) {
            ("minmax", _) => ObserverKind::MinMax,
            ("moving_average", None) => ObserverKind::MOVING_AVERAGE,
            ("moving_average", Some(averaging_constant)) => {
                ObserverKind::MovingAverageMinMax { averaging_constant }
            }
            ("histogram", None) => ObserverKind::HISTOGRAM,
            ("histogram", Some(bins)) => ObserverKind::Histogram { bins: bins as usize },
            ("percentile", None) => ObserverKind::PERCENTILE,
            ("percentile", Some(percentile)) => ObserverKind::Percentile { percentile },
            (other, _) => {
                return Err(raised(Error::Usage(format!(
                    "observer {other:?}; accepted: minmax, moving_average, histogram, percentile"
                ))));
            }
        };
        ActivationObserver::new(kind, axis).map(|o| Observer(Mutex::new(o))).map_err(raised)
    }

    /// Takes in a contiguous float32 tensor on the CPU.
    fn observe(&self, py: Python<'_>, address: usize, shape: Vec<usize>, owner: Py<PyAny>) -> PyResult<()> {
        let observe = || -> Result<()> {
            let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
            let values = Values::new(address, count.unwrap_or(0), owner);
            let values = values.get().map_err(|e| Error::refused(format!("float32 values: {e}")))?;
            self.0.lock().unwrap_or_else(PoisonError::into_inner).observe(values, &shape)
        };
        py.detach(observe).map_err(raised)
    }

    /// Low and high of each channel, or of all; None before any data.
    fn ranges(&self) -> Option<Vec<(f32, f32)>> {
        self.get().ranges()
    }

    /// Scales, zero points, smallest and largest code, equal to torch's calculate_qparams.
    #[pyo3(signature = (bits=8, symmetric=false, signed=true, reduce_range=false))]
    fn qparams(
        &self,
        bits: u32,
        symmetric: bool,
        signed: bool,
        reduce_range: bool,
    ) -> PyResult<(Vec<f32>, Vec<i32>, i32, i32)> {
        let found = self.get().qparams(bits, symmetric, signed, reduce_range).map_err(raised)?;
        Ok((found.scales, found.zero_points, found.qmin, found.qmax))
    }

    /// What was seen, as JSON.
    #[getter]
    fn facts(&self) -> String {
        json(self.get().facts())
    }

    /// Everything, as JSON.
    #[getter]
    fn state(&self) -> String {
        json(&*self.get())
    }

    /// An observer from its state.
    #[staticmethod]
    fn from_state(state: &str) -> PyResult<Self> {
        let observer = serde_json::from_str(state);
        observer.map(|o| Observer(Mutex::new(o))).map_err(|e| raised(Error::Usage(format!("state: {e}"))))
    }
}

impl Observer {
    fn get(&self) -> std::sync::MutexGuard<'_, ActivationObserver> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The text of a file of statistics, for `--calibration`.
#[pyfunction]
pub fn calibration_json(symmetric: bool, layers: BTreeMap<String, Py<Observer>>) -> String {
    let layers = layers.into_iter().map(|(name, o)| (name, o.get().get().clone())).collect();
    Calibration::new(symmetric, layers).to_json()
}

/// Whether the codes are symmetric, and the observers by module, of a file of statistics.
#[pyfunction]
pub fn read_calibration(path: PathBuf) -> PyResult<(bool, BTreeMap<String, Observer>)> {
    let read = Calibration::read(&path).map_err(raised)?;
    let layers = read.layers.into_iter().map(|(name, o)| (name, Observer(Mutex::new(o)))).collect();
    Ok((read.symmetric, layers))
}

//! Statistics of a model's layers, as a file that `--calibration` reads.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ActivationObserver;
use crate::error::{Error, Result};
use crate::reader::json;

/// The version of the file.
const VERSION: u32 = 1;

/// What was seen at the inputs of layers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Calibration {
    monoquant_calibration: u32,
    /// Whether the codes of inputs are centred on zero.
    pub symmetric: bool,
    /// By module name.
    pub layers: BTreeMap<String, ActivationObserver>,
}

/// Scale and zero point of a layer's inputs, which are int8.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InputQParams {
    /// Positive and finite.
    pub scale: f32,
    /// From −128 to 127; 0 if symmetric.
    pub zero_point: i32,
}

impl Calibration {
    /// Statistics of these layers.
    pub fn new(symmetric: bool, layers: BTreeMap<String, ActivationObserver>) -> Self {
        Calibration { monoquant_calibration: VERSION, symmetric, layers }
    }

    /// Reads a file that [`Calibration::to_json`] made.
    pub fn read(path: &Path) -> Result<Self> {
        Self::check(json::read(path)?).map_err(|what| Error::format(path, what))
    }

    /// Reads the text of such a file.
    pub fn parse(text: &str) -> Result<Self> {
        let value = serde_json::from_str(text).map_err(|e| Error::Usage(format!("statistics: {e}")))?;
        Self::check(value).map_err(|what| Error::Usage(format!("statistics: {what}")))
    }

    fn check(value: serde_json::Value) -> std::result::Result<Self, String> {
        let version = value.get("monoquant_calibration").and_then(serde_json::Value::as_u64);
        match version {
            Some(v) if v == u64::from(VERSION) => {}
            Some(v) => return Err(format!("statistics of version {v}; accepted: {VERSION}")),
            None => return Err("holds no statistics of monoquant calibrate".into()),
        }
        serde_json::from_value(value).map_err(|e| format!("holds damaged statistics: {e}"))
    }

    /// The text of the file.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    /// Scale and zero point of a module's inputs; `None` if it was never reached.
    pub fn inputs(&self, module: &str) -> Result<Option<InputQParams>> {
        let Some(observer) = self.layers.get(module).filter(|o| o.facts().batches > 0) else {
            return Ok(None);
        };
        let qparams = observer.qparams(8, self.symmetric, true, false);
        let qparams = qparams.map_err(|e| Error::refused(format!("{module}: {e}")))?;
        match (qparams.scales.as_slice(), qparams.zero_points.as_slice()) {
            (&[scale], &[zero_point]) => Ok(Some(InputQParams { scale, zero_point })),
            _ => Err(Error::refused(format!(
                "{module}: inputs take one scale, and its statistics are by channel"
            ))),
        }
    }
}

//! The report: what was done to each tensor, how large it became, and how much it lost.

use crate::{backend::Dispatches, plan::Row, scheme::Strategy, verify::Verification, writer::WrittenFile};
use serde::{Deserialize, Serialize};

/// Peak-to-RMS ratio from which a layer counts as outlier-heavy: Gaussian weights of any real size stay under 7.
pub const OUTLIER_PEAK: f64 = 32.0;

/// What quantization did to one tensor.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// What was planned.
    #[serde(flatten)]
    pub row: Row,
    /// Bits of a code, if it was quantized in this run.
    #[serde(skip)]
    pub bits: Option<u32>,
    /// Signal to quantization noise, in dB; `None` where nothing was quantized, infinite where nothing was lost.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "finite")]
    pub sqnr_db: Option<f64>,
    /// Largest magnitude over the root mean square.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_to_rms: Option<f64>,
    /// Values that were clamped by a cast.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saturated: Option<u64>,
}

/// A file of the input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Its path below the input, or its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// Everything a run did.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Version of this tool.
    pub version: &'static str,
    /// The input.
    pub model: String,
    /// Where the result is.
    pub output: String,
    /// What computed, and why it was chosen.
    pub device: String,
    /// Bytes of tensors in the input.
    pub bytes_before: u64,
    /// Bytes of tensors in the output.
    pub bytes_after: u64,
    /// Signal to quantization noise over all quantized layers, in dB.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "finite")]
    pub sqnr_db: Option<f64>,
    /// Seconds from start to end.
    pub seconds: f64,
    /// Kernels that were dispatched by this run, by name.
    pub dispatches: Dispatches,
    /// What the user should look at.
    pub warnings: Vec<String>,
    /// What loaders refuse, and what was changed from what was asked for.
    pub notes: Vec<String>,
    /// Files of the input directory that did not come along, and why.
    pub left_out: Vec<(String, String)>,
    /// The files of the output, by name; none of an output in memory.
    pub files: Vec<WrittenFile>,
    /// The files of the input, with their sizes.
    pub input: Vec<InputFile>,
    /// The command that makes the same bytes: its name, and the options that decide them. Empty of other callers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// What the output was held against, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verification>,
    /// One a tensor or layer.
    pub tensors: Vec<Entry>,
}

/// JSON has no infinity; a layer without any error is given as 999 dB.
fn finite<S: serde::Serializer>(value: &Option<f64>, s: S) -> std::result::Result<S::Ok, S::Error> {
    match value {
        Some(v) if v.is_infinite() => s.serialize_f64(999.0f64.copysign(*v)),
        Some(v) => s.serialize_f64((v * 1000.0).round() / 1000.0),
        None => s.serialize_none(),
    }
}

/// Sums of squares, from which ratios come.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Squares {
    /// Of the weights.
    pub signal: f64,
    /// Of the differences.
    pub noise: f64,
    /// Largest magnitude.
    pub peak: f64,
    /// Number of weights.
    pub count: u64,
}

impl Squares {
    /// Adds another part.
    pub fn add(&mut self, other: Squares) {
        self.signal += other.signal;
        self.noise += other.noise;
        self.peak = self.peak.max(other.peak);
        self.count += other.count;
    }

    /// Signal to noise in dB.
    pub fn sqnr_db(&self) -> f64 {
        if self.noise == 0.0 { f64::INFINITY } else { 10.0 * (self.signal / self.noise).log10() }
    }

    /// Largest magnitude over the root mean square; 0 for zeros.
    pub fn peak_to_rms(&self) -> f64 {
        let rms = (self.signal / self.count.max(1) as f64).sqrt();
        if rms > 0.0 { self.peak / rms } else { 0.0 }
    }
}

impl Report {
    /// Quantized layers, the worst SQNR first.
    pub fn worst(&self) -> Vec<&Entry> {
        let mut layers: Vec<&Entry> = self.tensors.iter().filter(|e| e.sqnr_db.is_some()).collect();
        layers.sort_by(|a, b| a.sqnr_db.unwrap_or(0.0).total_cmp(&b.sqnr_db.unwrap_or(0.0)));
        layers
    }
}

/// What a user should be warned of in these results.
pub fn warnings(entries: &[Entry]) -> Vec<String> {
    let mut warnings = Vec::new();
    let quantized = entries.iter().filter(|e| e.bits.is_some()).count();
    let matrices = entries.iter().filter(|e| e.row.shape.len() >= 2).count();
    if quantized > 0 && quantized == matrices && quantized > 1 {
        warnings.push("every matrix was quantized, embeddings and output head (if any) too; these usually cost accuracy".into());
    }
    for entry in entries {
        let (Some(bits), Some(sqnr)) = (entry.bits, entry.sqnr_db) else { continue };
        let bound = if bits == 4 { 10.0 } else { 20.0 };
        if sqnr < bound {
            warnings.push(format!(
                "{}: SQNR {sqnr:.1} dB is low for {bits} bits (under {bound} dB)",
                entry.row.name
            ));
        }
        if let Some(scheme) = entry.row.scheme.filter(|_| entry.row.after >= entry.row.before) {
            let better = match scheme.strategy {
                Strategy::Group { .. } => "larger groups, or --strategy channel, are better",
                Strategy::Tensor | Strategy::Channel => "--min-params or --exclude leaves it as it is",
            };
            warnings.push(format!(
                "{}: codes and scales take more room than the weights did ({}); {better}",
                entry.row.name, scheme.strategy
            ));
        }
        if let Some(peak) = entry.peak_to_rms.filter(|&p| p > OUTLIER_PEAK) {
            warnings.push(format!(
                "{}: outlier-heavy, its largest weight is {peak:.0} times the RMS; smaller groups or 8 bits lose less",
                entry.row.name
            ));
        }
    }
    warnings
}

/// A size as people write it, in decimal units.
pub fn bytes(n: u64) -> String {
    bytesize::ByteSize(n).display().si().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever made the codes, a scheme or GGUF's blocks, which have none.
    #[test]
    fn a_low_sqnr_is_warned_of() {
        let entry = |bits, sqnr_db| Entry {
            row: Row {
                name: "w".into(),
                dtype: "F32".into(),
                shape: vec![1, 32],
                action: "Q4_0".into(),
                reason: None,
                before: 128,
                after: 18,
                scheme: None,
            },
            bits,
            sqnr_db: Some(sqnr_db),
            peak_to_rms: Some(3.0),
            saturated: None,
        };
        assert_eq!(warnings(&[entry(Some(4), 9.0)]), ["w: SQNR 9.0 dB is low for 4 bits (under 10 dB)"]);
        assert_eq!(warnings(&[entry(Some(6), 19.0)]).len(), 1);
        assert!(warnings(&[entry(Some(4), 11.0)]).is_empty());
        // converted, not quantized
        assert!(warnings(&[entry(None, 9.0)]).is_empty());
    }
}

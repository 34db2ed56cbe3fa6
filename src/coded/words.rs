//! Layers of GPTQ and AWQ checkpoints: `qweight`, `qzeros`, `scales`, `g_idx`.

use super::{CodedLayer, qparams, quantization_config};
use crate::{
    error::{Error, Result},
    plan::{Coded, Layout},
    reader::{Checkpoint, Source},
    scheme::Strategy,
    tensor::{Dtype, TensorInfo},
};
use serde_json::Value;
use std::collections::HashMap;

/// The layer whose codes are `tensors[codes]`, called `{module}qweight`.
pub fn layer(
    tensors: &[TensorInfo],
    by_name: &HashMap<&str, usize>,
    checkpoint: &Checkpoint,
    source: &Source,
    module: &str,
    codes: usize,
) -> Result<CodedLayer> {
    let name = format!("{module}weight");
    let refused = |what: String| Error::refused(format!("{name}: {what}"));
    let find = |part: &str| by_name.get(format!("{module}{part}").as_str()).copied();
    let missing = |part: &str| refused(format!("{module}{part} is missing beside {module}qweight"));
    let scales = find("scales").ok_or_else(|| missing("scales"))?;
    let zero_points = find("qzeros").ok_or_else(|| missing("qzeros"))?;
    let dims = |i: usize| match tensors[i].shape.as_slice() {
        &[a, b] if a > 0 && b > 0 => Ok((a, b)),
        shape => Err(refused(format!("{} has shape {shape:?}; a matrix is accepted", tensors[i].name))),
    };
    let (code_lines, code_words) = dims(codes)?;
    let (groups, rows) = dims(scales)?;
    let (zero_lines, zero_words) = dims(zero_points)?;
    for i in [codes, zero_points] {
        if tensors[i].dtype != Dtype::I32 {
            return Err(refused(format!("{} is {}; accepted: I32", tensors[i].name, tensors[i].dtype)));
        }
    }
    let Some(scale_dtype) = tensors[scales].dtype.float() else {
        return Err(refused(format!(
            "{} is {}; accepted: F16, BF16, F32",
            tensors[scales].name, tensors[scales].dtype
        )));
    };
    let shapes = || {
        refused(format!(
            "qweight {:?}, qzeros {:?} and scales {:?} fit neither GPTQ ([in·bits/32, out], [groups, out·bits/32], \
             [groups, out]) nor AWQ ([in, out/8], [groups, out/8], [groups, out]) of 4 or 8 bits",
            tensors[codes].shape, tensors[zero_points].shape, tensors[scales].shape
        ))
    };
    let wide = rows.checked_mul(4).ok_or_else(shapes)?; // of any bits in hand, without overflow
    let (layout, bits, cols) = if code_words == rows {
        let bits = [4, 8].into_iter().find(|bits| zero_words == rows * bits / 32 && rows * bits % 32 == 0);
        let bits = bits.ok_or_else(shapes)?;
        let cols = code_lines.checked_mul(32 / bits).ok_or_else(shapes)?;
        (Layout::Gptq { less_one: less_one(checkpoint)? }, bits as u32, cols)
    } else if code_words == zero_words && rows == code_words.saturating_mul(8) {
        (Layout::Awq, 4, code_lines)
    } else {
        return Err(shapes());
    };
    if zero_lines != groups || !cols.is_multiple_of(groups) || wide.checked_mul(cols).is_none() {
        return Err(shapes());
    }
    check_config(checkpoint, &name, layout)?;
    let mut parts = vec![codes, zero_points, scales];
    let config = quantization_config(checkpoint);
    let desc_act = config.and_then(|config| config.get("desc_act")?.as_bool()).unwrap_or(false);
    match find("g_idx") {
        Some(i) => {
            parts.push(i);
            in_order(source, i, &tensors[i], cols, cols / groups)?;
        }
        None if desc_act && groups > 1 => {
            return Err(refused(format!(
                "config.json says desc_act, so that groups may be reordered, and {module}g_idx, which says how, is missing"
            )));
        }
        None => {}
    }
    let strategy = match groups {
        1 => Strategy::Channel,
        n => Strategy::Group { group_size: cols / n },
    };
    let coded = Coded {
        bits,
        layout,
        rows,
        cols,
        group_len: cols / groups,
        scales: (scales, scale_dtype),
        zero_points: Some(zero_points),
        output: scale_dtype,
    };
    let stated = quantization_config(checkpoint).and_then(|config| config.get("sym")?.as_bool());
    let symmetric = match (layout, stated) {
        (Layout::Awq, _) => false,
        (_, Some(symmetric)) => symmetric,
        (_, None) => match qparams(source, tensors, &coded) {
            Ok((_, offsets)) => offsets.iter().all(|&z| z == 0),
            Err(Error::Refused(_)) => false,
            Err(e) => return Err(e),
        },
    };
    Ok(CodedLayer { name, shape: vec![rows, cols], codes, parts, symmetric, coded, strategy, origin: None })
}

/// Whether zero points are stored less one: so does version 1, which is what files without a word about it are.
fn less_one(checkpoint: &Checkpoint) -> Result<bool> {
    let text = |key: &str| quantization_config(checkpoint)?.get(key)?.as_str().map(str::to_owned);
    match text("checkpoint_format").or_else(|| text("format")).as_deref() {
        None | Some("gptq") => Ok(true),
        Some("gptq_v2") => Ok(false),
        Some(other) => Err(Error::format(
            checkpoint.path(),
            format!("checkpoint_format {other}; accepted: gptq, gptq_v2"),
        )),
    }
}

/// Refuses a file whose config says something else than its shapes: which of them is true cannot be known.
fn check_config(checkpoint: &Checkpoint, name: &str, layout: Layout) -> Result<()> {
    let Some(config) = quantization_config(checkpoint) else { return Ok(()) };
    let method = config.get("quant_method").and_then(Value::as_str).unwrap_or_default();
    let expected = if layout == Layout::Awq { "awq" } else { "gptq" };
    if method != expected {
        return Err(Error::refused(format!(
            "{name}: has the shapes of {expected}, but config.json says {method}"
        )));
    }
    let version = config.get("version").and_then(Value::as_str).unwrap_or("gemm");
    if layout == Layout::Awq && !version.eq_ignore_ascii_case("gemm") {
        return Err(Error::refused(format!("{name}: AWQ version {version}; accepted: gemm")));
    }
    Ok(())
}

/// Refuses groups that are not runs of neighbours.
fn in_order(source: &Source, tensor: usize, info: &TensorInfo, cols: usize, group_len: usize) -> Result<()> {
    if info.dtype != Dtype::I32 || info.shape != [cols] {
        let what = format!(
            "{}: {} of shape {:?}; accepted: I32 of shape [{cols}]",
            info.name, info.dtype, info.shape
        );
        return Err(Error::refused(what));
    }
    let mut bytes = vec![0; 4 * cols];
    source.read(tensor, 0, &mut bytes)?;
    let index = bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    match index.enumerate().find(|(i, group)| usize::try_from(*group) != Ok(i / group_len)) {
        None => Ok(()),
        Some((i, group)) => Err(Error::refused(format!(
            "{}: input {i} belongs to group {group}, so the groups are reordered (desc_act), which is not read; \
             accepted: group i / {group_len}",
            info.name
        ))),
    }
}

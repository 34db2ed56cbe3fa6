//! Layers of compressed-tensors checkpoints.

use super::{CodedLayer, quantization_config};
use crate::{
    error::{Error, Result},
    formats::compressed_tensors::{PACKED, SHAPE, ZERO_POINT},
    plan::{Coded, Layout},
    reader::{Checkpoint, Source},
    scheme::Strategy,
    tensor::{Dtype, TensorInfo},
};
use serde_json::Value;
use std::collections::HashMap;

/// The layer `name` whose scales are `tensors[scale]`, if there are codes beside them.
pub fn layer(
    tensors: &[TensorInfo],
    by_name: &HashMap<&str, usize>,
    checkpoint: &Checkpoint,
    source: &Source,
    name: &str,
    scale: usize,
) -> Result<Option<CodedLayer>> {
    let find = |suffix: &str| by_name.get(format!("{name}{suffix}").as_str()).copied();
    let refused = |what: String| Err(Error::refused(format!("{name}: {what}")));
    let packed = find(PACKED);
    let Some(codes) = packed.or_else(|| find("").filter(|&i| tensors[i].dtype == Dtype::I8)) else {
        return Ok(None);
    };
    let Some(scale_dtype) = tensors[scale].dtype.float() else {
        return refused(format!("its scales are {}; accepted: F32, F16, BF16", tensors[scale].dtype));
    };
    if find("_g_idx").is_some() {
        return refused("its groups are reordered (weight_g_idx), which is not read".into());
    }
    let mut parts = vec![codes, scale];
    let shape = match (packed, find(SHAPE)) {
        (None, _) => tensors[codes].shape.clone(),
        (Some(_), Some(i)) => {
            parts.push(i);
            stored_shape(source, i, &tensors[i])?
        }
        (Some(_), None) => {
            return refused(format!("{name}{SHAPE} is missing; it holds the shape of the packed weight"));
        }
    };
    let rows = shape.first().copied().unwrap_or(0);
    let Some(cols) =
        shape.iter().skip(1).try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&c| c > 0 && rows > 0)
    else {
        return refused(format!("shape {shape:?} is no matrix of weights"));
    };
    let groups = tensors[scale].elements() as usize;
    let per_row = if groups == 1 { 1 } else { groups / rows };
    let whole = groups == 1 && rows > 1;
    if !whole && (groups != rows * per_row || per_row == 0 || !cols.is_multiple_of(per_row)) {
        return refused(format!("{groups} scales do not divide {rows} rows of {cols} weights into groups"));
    }
    if groups > 1 && tensors[scale].shape.first() != Some(&rows) {
        return refused(format!(
            "{} has shape {:?}; accepted: one scale, or [{rows}, …] for {rows} rows",
            tensors[scale].name, tensors[scale].shape
        ));
    }
    let strategy = match per_row {
        _ if whole => Strategy::Tensor,
        1 => Strategy::Channel,
        n => Strategy::Group { group_size: cols / n },
    };
    let bits = match packed {
        None => 8,
        Some(i) => packed_bits(&tensors[i], rows, cols, checkpoint, name)?,
    };
    let zero_points = find(ZERO_POINT);
    if let Some(i) = zero_points {
        parts.push(i);
        let stored = &tensors[i];
        let fits = match stored.dtype {
            Dtype::I8 => stored.elements() as usize == groups,
            Dtype::I32 => {
                let rows = if whole { 1 } else { rows };
                packed.is_some()
                    && stored.elements() as usize == (rows * bits as usize).div_ceil(32) * per_row
            }
            _ => false,
        };
        if !fits {
            return refused(format!(
                "zero points {} of shape {:?} do not fit {groups} scales",
                stored.dtype, stored.shape
            ));
        }
    }
    let group_len = crate::tiles::group_len(strategy, rows, cols);
    let coded = Coded {
        bits,
        layout: if packed.is_some() { Layout::Packed } else { Layout::Int8 },
        rows,
        cols,
        group_len,
        scales: (scale, scale_dtype),
        zero_points,
        output: scale_dtype,
    };
    Ok(Some(CodedLayer {
        name: name.to_owned(),
        shape,
        codes,
        parts,
        symmetric: zero_points.is_none(),
        coded,
        strategy,
        origin: None,
    }))
}

fn stored_shape(source: &Source, tensor: usize, info: &TensorInfo) -> Result<Vec<usize>> {
    let bad = |what: String| {
        Error::refused(format!("{}: {what}; expected I64 with 2 to 8 positive numbers", info.name))
    };
    if info.dtype != Dtype::I64 || info.shape.len() != 1 || !(2..=8).contains(&info.shape[0]) {
        return Err(bad(format!("{} of shape {:?}", info.dtype, info.shape)));
    }
    let mut bytes = vec![0; info.bytes() as usize];
    source.read(tensor, 0, &mut bytes)?;
    let numbers = bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap_or_default()));
    let shape: Option<Vec<usize>> = numbers.map(|n| usize::try_from(n).ok().filter(|&n| n > 0)).collect();
    let shape =
        shape.filter(|s| s.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).is_some_and(|n| n < 1 << 48));
    shape.ok_or_else(|| bad("holds no possible shape".into()))
}

/// 4 or 8, from the width of the packed rows; where both fit, the config decides.
fn packed_bits(
    info: &TensorInfo,
    rows: usize,
    cols: usize,
    checkpoint: &Checkpoint,
    name: &str,
) -> Result<u32> {
    let fits = |bits: usize| info.dtype == Dtype::I32 && info.shape == [rows, (cols * bits).div_ceil(32)];
    match (fits(4), fits(8)) {
        (true, false) => Ok(4),
        (false, true) => Ok(8),
        (true, true) => stated_bits(checkpoint, name).ok_or_else(|| {
            Error::refused(format!(
                "{}: rows of {cols} weights fit 4 and 8 bits, and no config says which",
                info.name
            ))
        }),
        (false, false) => Err(Error::refused(format!(
            "{}: {} of shape {:?} does not hold {rows} rows of {cols} weights at 4 or 8 bits; other widths are not read",
            info.name, info.dtype, info.shape
        ))),
    }
}

fn stated_bits(checkpoint: &Checkpoint, name: &str) -> Option<u32> {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let bits = |group: &Value| group.get("weights")?.get("num_bits")?.as_u64().map(|n| n as u32);
    if let Some(groups) = quantization_config(checkpoint).and_then(|c| c.get("config_groups")?.as_object()) {
        let by_name = groups.values().find(|g| {
            g.get("targets")
                .and_then(Value::as_array)
                .is_some_and(|t| t.iter().any(|t| t.as_str() == Some(module)))
        });
        return by_name.or_else(|| groups.values().next()).and_then(bits);
    }
    let ours: Value = serde_json::from_str(checkpoint.metadata().get("monoquant")?).ok()?;
    // the scheme is somewhere in the recipe's method
    fn find(value: &Value) -> Option<u32> {
        match value {
            Value::Object(map) => {
                let here = map.get("bits").and_then(Value::as_u64).map(|n| n as u32);
                here.or_else(|| map.values().find_map(find))
            }
            _ => None,
        }
    }
    find(ours.get("recipe")?.get("method")?)
}

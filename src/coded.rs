//! Quantized checkpoints in: which tensors make up a layer, and what its codes stand for.

pub mod blocks;

pub use blocks::BlockLayer;

use crate::{
    backend::run_on_cpu,
    error::{Error, Result},
    formats::compressed_tensors::{PACKED, SCALE, SHAPE, ZERO_POINT, unpack_zero_points},
    kernels::{Binding, TileBuffers},
    plan::Coded,
    quantize::infos,
    reader::{Checkpoint, Source},
    scheme::Strategy,
    sweeps::{Active, Kind},
    tensor::{Dtype, Float, TensorInfo, View},
    tiles::{Band, Piece, Sweep},
};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};

/// A quantized layer, found in a checkpoint.
#[derive(Debug, Clone)]
pub struct CodedLayer {
    /// Name of its weight, e.g. `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// Shape of its weight.
    pub shape: Vec<usize>,
    /// The tensor of codes.
    pub codes: usize,
    /// Every tensor that belongs to it.
    pub parts: Vec<usize>,
    /// How it is coded. The output dtype is that of the scales.
    pub coded: Coded,
    /// Which weights share a scale.
    pub strategy: Strategy,
    /// Where it came from, if it was transposed or taken out of stacked experts.
    pub origin: Option<Origin>,
}

/// The place of a layer, or of a kept part, in the tensor that it was taken from.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Origin {
    /// Name of that tensor.
    pub source: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Where in it.
    pub view: View,
}

/// A checkpoint's quantized layers, and what else is in it.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// The layers, in reading order.
    pub coded: Vec<CodedLayer>,
    /// Tensors of GGUF blocks, in the order of the file.
    pub blocks: Vec<BlockLayer>,
    /// Tensors that belong to no layer.
    pub rest: Vec<usize>,
    /// Scales of inputs and outputs: without use when weights are floats.
    pub activations: Vec<usize>,
    /// Where kept tensors came from.
    pub origins: HashMap<String, Origin>,
}

/// Finds the layers of a checkpoint, and refuses layouts that are not read.
pub fn layers(checkpoint: &Checkpoint, source: &Source) -> Result<Layers> {
    if checkpoint.gguf().is_some() {
        return Ok(blocks::layers(checkpoint));
    }
    let tensors = infos(checkpoint);
    refuse_other_methods(checkpoint)?;
    let by_name: HashMap<&str, usize> =
        tensors.iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
    let mut origins = origins(checkpoint)?;
    let mut used: HashSet<usize> = HashSet::new();
    let mut layers = Layers::default();
    let mut problems = Vec::new();
    let mut refused: HashSet<&str> = HashSet::new();
    for (i, info) in tensors.iter().enumerate() {
        let Some(name) = info.name.strip_suffix(SCALE).filter(|n| !n.is_empty()) else { continue };
        if name.ends_with("input") || name.ends_with("output") {
            continue; // scales of activations
        }
        match layer(&tensors, &by_name, checkpoint, source, name, i) {
            Ok(Some(mut layer)) => {
                layer.origin = origins.remove(name);
                used.extend(&layer.parts);
                layers.coded.push(layer);
            }
            Ok(None) => {}
            Err(Error::Refused(mut p)) => {
                problems.append(&mut p);
                refused.insert(name);
            }
            Err(e) => return Err(e),
        }
    }
    let mut orphans: BTreeMap<String, (bool, Vec<&str>)> = BTreeMap::new();
    let quantized =
        quantization_config(checkpoint).is_some() || !layers.coded.is_empty() || !refused.is_empty();
    for (i, info) in tensors.iter().enumerate().filter(|(i, _)| !used.contains(i)) {
        let activation = ["input", "output"].iter().any(|side| {
            [SCALE, ZERO_POINT].iter().any(|part| info.name.ends_with(&format!(".{side}{part}")))
        });
        let orphan = if quantized { part_of_a_layer(info) } else { None };
        if let Some((weight, codes)) = orphan.filter(|(weight, _)| !refused.contains(weight.as_str())) {
            let parts = orphans.entry(weight).or_default();
            parts.0 |= codes;
            parts.1.push(&info.name);
        } else if activation && !layers.coded.is_empty() {
            layers.activations.push(i);
        } else {
            layers.rest.push(i);
        }
    }
    for (weight, (codes, parts)) in orphans {
        let missing = if codes { format!("scales ({weight}{SCALE}) are") } else { "codes are".to_owned() };
        problems.push(format!("{weight}: its {missing} missing; there is only {}", parts.join(", ")));
    }
    if !problems.is_empty() {
        return Err(Error::Refused(problems));
    }
    layers.coded.sort_by_key(|l| l.codes);
    layers.origins = origins;
    Ok(layers)
}

/// The weight that a tensor is a part of, by its name and dtype, and whether it is the codes.
fn part_of_a_layer(info: &TensorInfo) -> Option<(String, bool)> {
    let is_weight = |name: &str| name.rsplit('.').next().is_some_and(|last| last.starts_with("weight"));
    if let Some(weight) = info.name.strip_suffix(PACKED) {
        return Some((weight.to_owned(), true));
    }
    if matches!(info.dtype, Dtype::I8 | Dtype::U8) && info.shape.len() >= 2 && is_weight(&info.name) {
        return Some((info.name.clone(), true));
    }
    let part =
        [SCALE, ZERO_POINT, SHAPE, "_g_idx"].iter().find_map(|suffix| info.name.strip_suffix(suffix))?;
    is_weight(part).then(|| (part.to_owned(), false))
}

fn refuse_other_methods(checkpoint: &Checkpoint) -> Result<()> {
    const READ: [&str; 4] = ["pack-quantized", "int-quantized", "naive-quantized", "mixed-precision"];
    let Some(config) = quantization_config(checkpoint) else { return Ok(()) };
    let text = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or("unknown").to_owned();
    let method = text("quant_method");
    if method != "compressed-tensors" {
        return Err(Error::format(
            checkpoint.path(),
            format!("quantized by {method}; accepted: compressed-tensors"),
        ));
    }
    let groups = config.get("config_groups").and_then(Value::as_object);
    let formats = groups.into_iter().flatten().filter_map(|(_, g)| g.get("format")?.as_str());
    for format in formats.chain([text("format").as_str()]) {
        if !READ.contains(&format) {
            let accepted = READ.join(", ");
            return Err(Error::format(
                checkpoint.path(),
                format!("compressed-tensors format {format}; accepted: {accepted}"),
            ));
        }
    }
    Ok(())
}

/// The entry of config.json.
pub fn quantization_config(checkpoint: &Checkpoint) -> Option<&Value> {
    checkpoint.config()?.get("quantization_config").filter(|c| c.is_object())
}

/// Our own notes in the file: how to put transposed and split tensors together again.
fn origins(checkpoint: &Checkpoint) -> Result<HashMap<String, Origin>> {
    let Some(ours) = checkpoint.metadata().get("monoquant") else { return Ok(HashMap::new()) };
    let bad = |e| Error::format(checkpoint.path(), format!("its metadata 'monoquant' cannot be read: {e}"));
    let ours: Value = serde_json::from_str(ours).map_err(bad)?;
    match ours.get("restore") {
        Some(restore) => HashMap::deserialize(restore).map_err(bad),
        None => Ok(HashMap::new()),
    }
}

fn layer(
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
        packed: packed.is_some(),
        rows,
        cols,
        group_len,
        scales: (scale, scale_dtype),
        zero_points,
        output: scale_dtype,
    };
    Ok(Some(CodedLayer { name: name.to_owned(), shape, codes, parts, coded, strategy, origin: None }))
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

/// What a config group is for: module names, `re:` patterns, class names.
pub fn targets(group: &Value) -> impl Iterator<Item = &str> {
    group.get("targets").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// Whether a target names this module; patterns are matched from the start. Class names are not looked at.
pub fn target_matches(target: &str, module: &str) -> bool {
    match target.strip_prefix("re:") {
        Some(pattern) => regex::Regex::new(&format!("^(?:{pattern})")).is_ok_and(|r| r.is_match(module)),
        None => target == module,
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

/// Scales (as f32) and zero points of a layer, a pair a group.
pub fn qparams(source: &Source, tensors: &[TensorInfo], coded: &Coded) -> Result<(Vec<u32>, Vec<i32>)> {
    let groups = coded.rows * coded.cols / coded.group_len.max(1);
    let (tensor, dtype) = coded.scales;
    let mut bytes = vec![0; groups * dtype.size()];
    source.read(tensor, 0, &mut bytes)?;
    let scales: Vec<u32> = bytes.chunks_exact(dtype.size()).map(|b| dtype.decode(b).to_bits()).collect();
    if let Some(i) = scales.iter().position(|&s| !f32::from_bits(s).is_finite()) {
        return Err(Error::refused(format!("{}: scale {i} is not finite", tensors[tensor].name)));
    }
    let Some(tensor) = coded.zero_points else { return Ok((scales, vec![0; groups])) };
    let info = &tensors[tensor];
    let mut bytes = vec![0; info.bytes() as usize];
    source.read(tensor, 0, &mut bytes)?;
    let offsets = if info.dtype == Dtype::I32 {
        let rows = coded.rows.min(groups);
        unpack_zero_points(&bytes, rows, groups / rows.max(1), coded.bits)
    } else {
        bytes.iter().map(|&b| i32::from(b as i8)).collect()
    };
    Ok((scales, offsets))
}

/// Where a piece's codes lie in their tensor, in bytes.
pub fn code_offset(bits: u32, packed: bool, cols: usize, piece: &Piece) -> u64 {
    if !packed {
        return piece.start(cols);
    }
    let bits = bits as usize;
    4 * (piece.row as u64 * (cols * bits).div_ceil(32) as u64 + (piece.col * bits / 32) as u64)
}

/// Weights of whole rows of a layer, on the CPU.
pub fn decode_rows(
    source: &Source,
    layer: &CodedLayer,
    (scales, offsets): &(Vec<u32>, Vec<i32>),
    piece: Piece,
) -> Result<Vec<f32>> {
    let coded = Coded { output: Float::F32, ..layer.coded.clone() };
    let band = Band { pieces: vec![piece], spans: false, sweeps: &[Sweep::Quantize] };
    let mut tile =
        Active::new(Kind::Dequantize { coded: coded.clone(), saturate: false }, 0, band).tile(0, 0);
    let first = piece.start(coded.cols) as usize / coded.group_len;
    let groups = first..first + tile.params.groups as usize;
    tile.preload.push((Binding::Scales, scales[groups.clone()].to_vec()));
    tile.preload.push((Binding::ZeroPoints, offsets[groups].iter().map(|&z| z as u32).collect()));
    let mut buffers = TileBuffers::default();
    buffers.resize(&tile.lengths());
    let input: &mut [u8] = bytemuck::cast_slice_mut(&mut buffers.input);
    let at = code_offset(coded.bits, coded.packed, coded.cols, &piece);
    source.read(layer.codes, at, &mut input[..tile.input_bytes])?;
    run_on_cpu(&tile, &mut buffers);
    Ok(buffers.output[..piece.elements()].iter().map(|&x| f32::from_bits(x)).collect())
}

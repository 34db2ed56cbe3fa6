//! Quantized checkpoints in: which tensors make up a layer, and what its codes stand for.

pub mod blocks;
mod codes;
mod compressed;
mod words;

pub use blocks::BlockLayer;
pub use codes::{Incoming, code_offset, packed_rows};

use crate::{
    backend::run_on_cpu,
    error::{Error, Result},
    formats::compressed_tensors::{PACKED, SCALE, SHAPE, ZERO_POINT},
    kernels::{Binding, TileBuffers},
    packing::ZeroPoints,
    plan::{Coded, Layout},
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
    /// Whether no zero points are stored, or they all are said to be 0.
    pub symmetric: bool,
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
    let mut refused_modules: HashSet<&str> = HashSet::new();
    for (i, info) in tensors.iter().enumerate() {
        let Some(name) = info.name.strip_suffix(SCALE).filter(|n| !n.is_empty()) else { continue };
        if name.ends_with("input") || name.ends_with("output") {
            continue; // scales of activations
        }
        match compressed::layer(&tensors, &by_name, checkpoint, source, name, i) {
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
    for (i, info) in tensors.iter().enumerate() {
        let Some(module) = info.name.strip_suffix("qweight") else { continue };
        if !module.is_empty() && !module.ends_with('.') {
            continue;
        }
        match words::layer(&tensors, &by_name, checkpoint, source, module, i) {
            Ok(mut layer) => {
                layer.origin = origins.remove(&layer.name);
                used.extend(&layer.parts);
                layers.coded.push(layer);
            }
            Err(Error::Refused(mut p)) => {
                problems.append(&mut p);
                refused_modules.insert(module);
            }
            Err(e) => return Err(e),
        }
    }
    for layer in &layers.coded {
        if let Some(&i) = by_name.get(layer.name.as_str()).filter(|i| !layer.parts.contains(i)) {
            problems.push(format!(
                "{}: there is a weight ({}) beside its codes ({}); which of them counts cannot be known",
                layer.name, tensors[i].dtype, tensors[layer.codes].name
            ));
        }
    }
    let mut orphans: BTreeMap<String, (bool, Vec<&str>)> = BTreeMap::new();
    let quantized = quantization_config(checkpoint).is_some()
        || !layers.coded.is_empty()
        || !refused.is_empty()
        || !refused_modules.is_empty();
    let of_words = layers.coded.iter().any(|l| matches!(l.coded.layout, Layout::Gptq { .. } | Layout::Awq));
    for (i, info) in tensors.iter().enumerate().filter(|(i, _)| !used.contains(i)) {
        let activation = ["input", "output"].iter().any(|side| {
            [SCALE, ZERO_POINT].iter().any(|part| info.name.ends_with(&format!(".{side}{part}")))
        });
        let word_module = ["qzeros", "scales", "g_idx"].iter().find_map(|part| info.name.strip_suffix(part));
        if let Some(module) = word_module.filter(|m| of_words && (m.is_empty() || m.ends_with('.'))) {
            if refused_modules.insert(module) {
                problems.push(format!("{module}weight: {module}qweight is missing; there is {}", info.name));
            }
            continue;
        }
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
    name_whole_rows(checkpoint, &mut layers.coded);
    layers.coded.sort_by_key(|l| l.codes);
    layers.origins = origins;
    Ok(layers)
}

/// Rows of one group are groups, not channels, where groups of this size are spoken of.
fn name_whole_rows(checkpoint: &Checkpoint, layers: &mut [CodedLayer]) {
    fn sizes(value: &Value, found: &mut HashSet<usize>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| match value.as_u64() {
                Some(size) if key == "group_size" => drop(found.insert(size as usize)),
                _ => sizes(value, found),
            }),
            Value::Array(items) => items.iter().for_each(|value| sizes(value, found)),
            _ => {}
        }
    }
    let mut spoken = HashSet::new();
    let ours = checkpoint.metadata().get("monoquant").and_then(|text| serde_json::from_str(text).ok());
    for value in quantization_config(checkpoint).cloned().into_iter().chain(ours) {
        sizes(&value, &mut spoken);
    }
    for layer in layers.iter_mut().filter(|l| l.strategy == Strategy::Channel) {
        let group_size = layer.coded.cols;
        if spoken.contains(&group_size) {
            layer.strategy = Strategy::Group { group_size };
        }
    }
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
    const METHODS: [&str; 3] = ["compressed-tensors", "gptq", "awq"];
    let stated = checkpoint.config().and_then(|config| config.get("quantization_config"));
    if stated.is_some_and(|entry| !entry.is_object() && !entry.is_null()) {
        let path = checkpoint.path().join("config.json");
        return Err(Error::format(path, "quantization_config is no JSON object"));
    }
    let Some(config) = quantization_config(checkpoint) else { return Ok(()) };
    let text = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or("unknown").to_owned();
    let method = text("quant_method");
    if !METHODS.contains(&method.as_str()) {
        let accepted = METHODS.join(", ");
        return Err(Error::format(checkpoint.path(), format!("quantized by {method}; accepted: {accepted}")));
    }
    if method != METHODS[0] {
        return Ok(());
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

/// Scales (as f32) and zero points of a layer, a pair a group, row after row.
pub fn qparams(source: &Source, tensors: &[TensorInfo], coded: &Coded) -> Result<(Vec<u32>, Vec<i32>)> {
    let groups = coded.rows * coded.cols / coded.group_len.max(1);
    let (tensor, dtype) = coded.scales;
    let mut bytes = vec![0; groups * dtype.size()];
    source.read(tensor, 0, &mut bytes)?;
    let mut scales: Vec<u32> = bytes.chunks_exact(dtype.size()).map(|b| dtype.decode(b).to_bits()).collect();
    if let Some(i) = scales.iter().position(|&s| !f32::from_bits(s).is_finite()) {
        return Err(Error::refused(format!("{}: scale {i} is not finite", tensors[tensor].name)));
    }
    let across = coded.groups();
    if matches!(coded.layout, Layout::Gptq { .. } | Layout::Awq) {
        let stored = scales;
        scales = (0..groups).map(|i| stored[i % across * coded.rows + i / across]).collect();
    }
    let Some(tensor) = coded.zero_points else { return Ok((scales, vec![0; groups])) };
    let info = &tensors[tensor];
    let mut bytes = vec![0; info.bytes() as usize];
    source.read(tensor, 0, &mut bytes)?;
    let rows = coded.rows.min(groups);
    let unpack = |kind: ZeroPoints| kind.unpack(&bytes, rows, groups / rows.max(1), coded.bits);
    let offsets = match coded.layout {
        Layout::Gptq { less_one } => {
            let offsets = unpack(ZeroPoints::Gptq { less_one });
            // one more than the largest code: some loaders take it for 0, some for 16, some carry it to the neighbour
            if let Some(i) = offsets.iter().position(|&z| z >= 1 << (coded.bits - 1)) {
                let what =
                    format!("{}: zero point {i} overflows, and loaders disagree on what it means", info.name);
                return Err(Error::refused(what));
            }
            offsets
        }
        Layout::Awq => unpack(ZeroPoints::Awq),
        _ if info.dtype == Dtype::I32 => unpack(ZeroPoints::Rows),
        _ => bytes.iter().map(|&b| i32::from(b as i8)).collect(),
    };
    Ok((scales, offsets))
}

/// Weights of whole rows of a layer, on the CPU; of AWQ, eight rows at a time.
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
    let pass = &mut tile.passes[0];
    let first = piece.start(coded.cols) as usize / coded.group_len;
    let groups = first..first + pass.params.groups as usize;
    pass.preload.push((Binding::Scales, scales[groups.clone()].to_vec()));
    pass.preload.push((Binding::ZeroPoints, offsets[groups].iter().map(|&z| z as u32).collect()));
    let mut buffers = TileBuffers::default();
    buffers.resize(&pass.lengths());
    let input: &mut [u8] = bytemuck::cast_slice_mut(&mut buffers.input);
    match coded.layout {
        Layout::Packed | Layout::Int8 => {
            let at = code_offset(coded.bits, coded.packed(), coded.cols, &piece);
            source.read(layer.codes, at, &mut input[..tile.input_bytes])?;
        }
        Layout::Gptq { .. } | Layout::Awq => {
            let codes = packed_rows(source, &coded, layer.codes, piece.row..piece.row + piece.rows)?;
            input[..tile.input_bytes].copy_from_slice(&codes);
        }
    }
    run_on_cpu(&tile.passes[0], &mut buffers);
    Ok(buffers.output[..piece.elements()].iter().map(|&x| f32::from_bits(x)).collect())
}

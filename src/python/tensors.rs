//! Tensors that Python owns, as bytes.
//!
//! One of two files with `unsafe`: torch shares memory by address, and no safe way of its own reaches every dtype without
//! copying.

use crate::{
    error::{Error, Result},
    plan::Plan,
    reader::{
        Checkpoint,
        memory::{Blob, InMemory},
    },
    tensor::{Dtype, TensorInfo},
};
use pyo3::prelude::*;
use std::{collections::BTreeMap, path::PathBuf};

/// A path, or tensors in memory.
#[derive(FromPyObject)]
pub enum Source {
    /// A file or directory.
    Path(PathBuf),
    /// Name for messages, tensors, other names of them, config.json and metadata.
    Memory(String, Vec<Tensor>, BTreeMap<String, String>, Option<String>, BTreeMap<String, String>),
}

/// Name, torch dtype, sizes, strides in elements, address of the first element, and what keeps it there.
type Tensor = (String, String, Vec<usize>, Vec<u64>, usize, Py<PyAny>);

/// Bytes of a tensor that Python keeps.
struct Borrowed {
    address: usize,
    length: usize,
    _owner: Py<PyAny>,
}

impl AsRef<[u8]> for Borrowed {
    fn as_ref(&self) -> &[u8] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: the Python side passes a tensor's own address, sizes and strides, so that these bytes are its
        // storage's, and `_owner` is the tensor, which keeps the storage alive. It must not be written meanwhile, as
        // with any tensor that is in use.
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.length) }
    }
}

impl Source {
    pub fn open(self) -> Result<Checkpoint> {
        match self {
            Source::Path(path) => Checkpoint::open(&path),
            Source::Memory(name, tensors, tied, config, metadata) => {
                let tensors: Vec<InMemory> = tensors.into_iter().map(borrow).collect::<Result<_>>()?;
                let parse = |text: String| serde_json::from_str(&text);
                let config = config.map(parse).transpose();
                let config =
                    config.map_err(|e| Error::Usage(format!("{name}: its config is no JSON: {e}")))?;
                Checkpoint::in_memory(&name, tensors, tied, config, metadata)
            }
        }
    }
}

fn borrow((name, dtype, shape, strides, address, owner): Tensor) -> Result<InMemory> {
    let refused = |what: String| Error::refused(format!("{name}: {what}"));
    let Some(dtype) = Dtype::from_torch(&dtype) else {
        return Err(refused(format!("{dtype} tensors are not read")));
    };
    let too_large = || refused(format!("shape {shape:?} with strides {strides:?} is too large"));
    let last = match shape.contains(&0) {
        true => None,
        false => shape
            .iter()
            .zip(&strides)
            .try_fold(0u64, |last, (&n, &stride)| last.checked_add((n as u64 - 1).checked_mul(stride)?)),
    };
    let length = match last {
        None if shape.contains(&0) => Some(0),
        last => last.and_then(|last| last.checked_add(1)?.checked_mul(dtype.size() as u64)),
    };
    let length = length.and_then(|n| usize::try_from(n).ok()).ok_or_else(too_large)?;
    let mut expected = 1;
    let mut contiguous = true;
    for (&n, &stride) in shape.iter().zip(&strides).rev() {
        contiguous &= n == 1 || stride == expected;
        expected = expected.saturating_mul(n as u64);
    }
    let strides = (!contiguous && length > 0).then_some(strides);
    let blob = Blob::new(Borrowed { address, length, _owner: owner });
    Ok(InMemory { info: TensorInfo { name, dtype, shape }, blob, start: 0, strides })
}

/// Address of a tensor to be filled, its bytes, and what keeps it there.
pub type Place = (usize, usize, Py<PyAny>);

/// Memory of one output tensor.
pub struct Writable {
    address: usize,
    length: usize,
    _owner: Py<PyAny>,
}

impl Writable {
    pub fn bytes(&mut self) -> &mut [u8] {
        if self.length == 0 {
            return &mut [];
        }
        // SAFETY: the Python side made this tensor for the result, with this many bytes, and nobody else has it yet;
        // `_owner` keeps it alive.
        unsafe { std::slice::from_raw_parts_mut(self.address as *mut u8, self.length) }
    }
}

/// Places of the plan's outputs, in order.
pub fn memory(plan: &Plan, places: Vec<Place>) -> Result<Vec<Writable>> {
    let outputs: Vec<&TensorInfo> = plan.files.iter().flat_map(|f| &f.tensors).collect();
    let fits = outputs.len() == places.len()
        && outputs.iter().zip(&places).all(|(t, &(_, length, _))| t.bytes() == length as u64);
    if !fits {
        return Err(Error::Usage("internal error: places that are not those of the outputs".into()));
    }
    Ok(places.into_iter().map(|(address, length, _owner)| Writable { address, length, _owner }).collect())
}

/// Values of a contiguous float32 tensor on the CPU.
pub struct Values(Borrowed);

impl Values {
    pub fn new(address: usize, count: usize, owner: Py<PyAny>) -> Self {
        Values(Borrowed { address, length: count * 4, _owner: owner })
    }

    pub fn get(&self) -> std::result::Result<&[f32], bytemuck::PodCastError> {
        match self.0.as_ref() {
            // nothing has no alignment
            [] => Ok(&[]),
            bytes => bytemuck::try_cast_slice(bytes),
        }
    }
}
